"""Kills the pipeline at planned moments, starts it again, and notes what was saved or lost."""

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import proc
from benchmarks.kills.pipeline import LIMIT_SECONDS, POLL_SECONDS, Folders, Pipeline
from configs.artifacts import sha256_file
from configs.schema import UserError
from configs.stage_table import STAGES


@dataclass(slots=True)
class Kill:
    """One `kill -9`, and what the same command did when it was started again."""

    number: int
    stage: str
    moment: str
    seconds: float
    """From the start of that run."""
    state_step: int | None = None
    """Finished steps in the resume state at the kill."""
    resumed_after: int | None = None
    """The step after which the next run said that it resumes."""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Killer:
    """Starts the pipeline, waits for a moment, kills it, and starts it again."""

    def __init__(self, folders: Folders, profile: Path, threads: int, seed: int, took: dict[str, float]) -> None:
        self.folders, self.profile, self.threads, self.took = folders, profile, threads, took
        self.rng = random.Random(seed)
        self.kills: list[Kill] = []
        self.starts = 0
        self.pipeline = self.start()

    def __enter__(self) -> None:
        """Whatever happens, no pipeline outlives this."""

    def __exit__(self, *_: object) -> None:
        if self.pipeline.process.poll() is None:
            self.pipeline.kill_all()

    def carry_out(self, plan: Sequence[Callable[[], None]]) -> int:
        """Do the kills and wait for the end. Returns: the exit code."""
        for kill in plan:
            kill()
            print(f"kill {len(self.kills)}: {self.kills[-1].stage}, {self.kills[-1].moment}", flush=True)
        return self.pipeline.end()

    def report(self, problems: list[str], seconds: float) -> dict[str, Any]:
        """Print the kills, and run once more.

        Args: problems: what was found so far. Returns: all that is known, as plain data.
        """
        found = [f"kill {kill.number}: {text}" for kill in self.kills for text in kill.problems]
        again = self.start()
        if again.end() or not again.says("everything is up to date"):
            problems.append(f"{again.log}: a run after the last one did not find everything up to date")
        print_table(self.kills)
        print(
            f"{self.folders.base.name} run: {seconds:.0f} s, {self.starts - 1} starts; a run after it ended in "
            f"{again.seconds:.1f} s"
        )
        kills = [asdict(kill) for kill in self.kills]
        return {"seconds": round(seconds, 1), "kills": kills, "problems": found + problems}

    def start(self) -> Pipeline:
        """The same command once more."""
        self.starts += 1
        return Pipeline(self.folders, self.profile, self.threads, self.folders.base / f"run_{self.starts:02}.log")

    def plan(self) -> list[Callable[[], None]]:
        """The kills in the order in which the pipeline meets them."""
        return [
            lambda: self.in_command("mix", "build_chinese_mix.py"),
            self.during_export,
            lambda: self.after_save("pretrain"),
            lambda: self.during_save("pretrain"),
            lambda: self.after_save("pretrain"),
            lambda: self.in_command("pretrain", "evaluate_stage.py"),
            lambda: self.after_save("sft"),
            lambda: self.after_save("sft"),
            lambda: self.between_line_and_mark("sft"),
            lambda: self.after_save("dpo"),
            lambda: self.shell_alone("dpo"),
            lambda: self.after_save("dpo"),
        ]

    def plan_of_changes(self, final: Path, other_rate: Path) -> list[Callable[[], None]]:
        """The kills of a run that begins with a shorter pretraining; its settings change twice."""
        return [
            lambda: self.after_save("pretrain", then=final),
            lambda: self.after_save("pretrain", then=other_rate),
            lambda: self.after_save("sft", then=final, resumes=False),
            lambda: self.after_save("sft"),
        ]

    def try_and_give_up(self, other: Path) -> list[str]:
        """Once all is done, begin again with other settings, then return to the first.

        Returns: what was lost.
        """
        final, self.profile = self.profile, other
        before = {stage: sha256_file(path) for stage, path in self.folders.weights().items()}
        self.pipeline = self.start()
        self.after_save("sft", then=final, resumes=None)
        code, after = self.pipeline.end(), self.folders.weights()
        lost = [stage for stage in STAGES if stage not in after or sha256_file(after[stage]) != before[stage]]
        problems = [f"{stage}: finished weights were lost when other settings were tried" for stage in lost]
        return problems + ([f"{self.pipeline.log}: ended with {code}"] if code else [])

    def in_command(self, stage: str, script: str) -> None:
        """At a random moment in the first three quarters of a script's time.

        That time is known from the undisturbed run.
        """
        run = self.pipeline
        run.wait_for(lambda: script in run.text().partition(f"stage {stage}: start")[2], f"{script} of stage {stage}")
        time.sleep(self.rng.uniform(0.05, 0.75) * self.took[f"{stage} {script}"])
        self.kill(stage, f"in {script}")

    def during_export(self) -> None:
        """While the tensors of one of the stages are being written."""
        stage = self.rng.choice(STAGES)
        folder = self.folders.data / f".{stage}_tokens.tmp"
        self.pipeline.wait_for(folder.exists, f"unfinished tensors of {stage}")
        time.sleep(self.rng.uniform(0, 0.1))
        self.kill("export", f"while {stage} tensors are written")

    def after_save(self, stage: str, then: Path | None = None, resumes: bool | None = True) -> None:
        """Between two saves, after one to three of them in this run.

        Args: then: the profile from now on. resumes: whether the next run continues from the state;
        None: it has nothing to train.
        """
        self.wait_for_saves(stage, self.rng.randint(1, 3))
        time.sleep(self.rng.uniform(0, self.took[f"{stage} save"]))
        self.kill(stage, "after a save" + (f", then {then.stem}" if then else ""), then, resumes)

    def during_save(self, stage: str) -> None:
        """While the temporary file of a state is being written."""
        self.wait_for_saves(stage, 1)
        folder = self.folders.states(stage)
        self.pipeline.wait_for(lambda: any(folder.glob("*/.state.pt.*")), f"unfinished state of {stage}")
        self.kill(stage, "during a save")

    def between_line_and_mark(self, stage: str) -> None:
        """Once the line is in the results file."""
        number = STAGES.index(stage)
        self.pipeline.wait_for(lambda: self.folders.num_results() > number, f"result line of {stage}")
        self.kill(stage, "between result line and done mark")
        if self.folders.num_results() != number + 1:
            self.kills[-1].problems.append(f"{self.folders.num_results()} result lines instead of {number + 1}")

    def shell_alone(self, stage: str) -> None:
        """`run.sh` after a save; the trainer saves and ends, and the next run waits for it."""
        self.wait_for_saves(stage, self.rng.randint(1, 3))
        time.sleep(self.rng.uniform(0, self.took[f"{stage} save"]))
        orphaned, kill = self.pipeline, self.record(stage, "run.sh alone")
        before = self.folders.saved_at(stage)
        left = orphaned.kill_shell()
        killed = time.perf_counter()
        following = self.start()
        while any(pid in left for pid in proc.session(orphaned.process.pid)):
            if time.perf_counter() - killed > LIMIT_SECONDS:
                raise UserError(f"{orphaned.log}: the trainer trains on without run.sh. See that file.")
            time.sleep(POLL_SECONDS)
        kill.notes.append(f"trainer ended {time.perf_counter() - killed:.1f} s later")
        if not left:
            kill.problems.append("no trainer was running")
        if not orphaned.says("the state is saved"):
            kill.problems.append("the trainer did not say that it saved")
        if self.folders.status(stage) != "done" and self.folders.saved_at(stage) == before:
            kill.problems.append("the trainer saved nothing")
        kill.state_step = self.saved_step(stage)
        self.pipeline = following
        if following.says("waiting until it ends"):
            kill.notes.append("next run waited")
        self.note_resume(kill)

    def wait_for_saves(self, stage: str, count: int) -> None:
        """Wait until this run has saved the stage's state so many times."""
        seen, before = set[int](), self.folders.saved_at(stage)

        def saved() -> bool:
            seen.add(self.folders.saved_at(stage))
            return len(seen - {before, 0}) >= count

        self.pipeline.wait_for(saved, f"save number {count} of {stage}")

    def record(self, stage: str, moment: str) -> Kill:
        """Note a kill that is about to happen."""
        kill = Kill(len(self.kills) + 1, stage, moment, self.pipeline.seconds)
        self.kills.append(kill)
        return kill

    def kill(self, stage: str, moment: str, then: Path | None = None, resumes: bool | None = True) -> None:
        """Kill everything and start again, perhaps with another profile."""
        kill = self.record(stage, moment)
        self.pipeline.kill_all()
        kill.state_step = self.saved_step(stage)
        if self.folders.status(stage) != "running":
            kill.problems.append(f"too late: the stage is {self.folders.status(stage) or 'not begun'}")
        torn = [path for path in self.folders.base.rglob("*") if path.name.endswith(".tmp")]
        kill.notes += [f"{path.name} left behind" for path in torn]
        finished = {path: sha256_file(path) for path in self.folders.weights().values()}
        self.profile = then or self.profile
        self.pipeline = self.start()
        if resumes:
            self.note_resume(kill)
        elif resumes is False:
            self.note_start(kill)
        lost = [path.name for path, sha256 in finished.items() if not path.exists() or sha256_file(path) != sha256]
        kill.problems += [f"{name}: gone before new weights were complete" for name in lost]

    def note_start(self, kill: Kill) -> None:
        """That the next run starts anew, and leaves the state alone."""
        run = self.pipeline
        run.wait_for(lambda: run.has_stepped(kill.stage), f"first step of {kill.stage}")
        if run.says("resuming after step"):
            kill.problems.append("resumed from a state of other settings")
        if self.saved_step(kill.stage) is None:
            kill.problems.append("the state of other settings is gone")

    def note_resume(self, kill: Kill) -> None:
        """From which step the next run resumes; a trainer says it."""
        if kill.state_step is None:
            return
        run = self.pipeline
        run.wait_for(
            lambda: run.says("resuming after step") or run.has_stepped(kill.stage), f"first step of {kill.stage}"
        )
        if match := re.search(r"resuming after step (\d+) of", run.text()):
            kill.resumed_after = int(match[1])
        if kill.resumed_after != kill.state_step:
            kill.problems.append(f"resumed after step {kill.resumed_after}, but {kill.state_step} was saved")

    def saved_step(self, stage: str) -> int | None:
        """Finished steps in the stage's resume state."""
        path = self.folders.saved(stage) if stage in STAGES else None
        if path is None:
            return None
        return int(torch.load(path, map_location="cpu", weights_only=True)["step"])


def print_table(kills: Sequence[Kill]) -> None:
    """The kills as a Markdown table."""
    print("| # | stage | moment | s after the start | step saved | resumed after step | notes |")
    print("|---|---|---|---|---|---|---|")
    for kill in kills:
        steps = ["-" if step is None else str(step) for step in (kill.state_step, kill.resumed_after)]
        notes = "; ".join([*kill.notes, *(f"PROBLEM: {text}" for text in kill.problems)])
        print(f"| {kill.number} | {kill.stage} | {kill.moment} | {kill.seconds:.1f} | {' | '.join(steps)} | {notes} |")
