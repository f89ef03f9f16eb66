"""Kill the pipeline again and again, rerun it each time, and compare the end with that of a run nobody disturbed.
A third run is killed too, and its settings change in between.

    python benchmarks/kill_resume.py --work_dir /path/with/space
    python benchmarks/kill_resume.py --work_dir /path/with/space --profile configs/cpu.yaml --seed 7 --json kills.json

The kills are `kill -9` at random moments (of a seed) in the mix, in the export, after and during saves of each trainer,
in an evaluation, between the evaluation's line and the mark that its stage is done, and of `run.sh` alone. The settings
that change: pretraining is begun as a shorter run and made longer, SFT is begun at another rate, and once everything is
done that rate is tried again and given up: the finished weights must stand at every kill.
All files go below the work folder; the environment is that of `run.sh` (VENV_DIR), so run that once before.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs.artifacts import sha256_file, write_json
from configs.cli import Parser, run
from configs.load import read_yaml
from configs.paths import CONFIG_DIR, ROOT
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE, STAGES
from trainer.resume import saved_states

POLL_SECONDS = 0.001
LIMIT_SECONDS = 3600.0
"""A run or a moment that takes longer has failed."""
STEPS = {"pretrain": 120, "sft": 120, "dpo": 80}
SAVE_INTERVAL = 4
"""Steps of the small profile, which is `smoke` but for these."""


# --- one call of run.sh -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folders:
    """Where one pipeline's files are."""

    base: Path

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def out(self) -> Path:
        return self.base / "out"

    @property
    def results(self) -> Path:
        return self.base / "tf_dir" / "eval_results.jsonl"

    def states(self, stage: str) -> Path:
        """Where the resume states of a stage are."""
        return self.out / "checkpoints" / stage

    def saved(self, stage: str) -> Path | None:
        """The newest resume state of a stage; None while there is none."""
        try:
            return next(iter(saved_states(self.states(stage))), None)
        except FileNotFoundError:
            return None  # replaced or removed while we looked

    def saved_at(self, stage: str) -> int:
        """When that was saved, in ns; 0 while there is none."""
        try:
            path = self.saved(stage)
            return path.stat().st_mtime_ns if path else 0
        except FileNotFoundError:
            return 0

    def num_results(self) -> int:
        """Whole lines in the results file."""
        return self.results.read_bytes().count(b"\n") if self.results.exists() else 0

    def status(self, stage: str) -> str:
        """What the stage's record says: running, done, or nothing."""
        path = self.out / "stages" / f"{stage}.json"
        return str(json.loads(path.read_text(encoding="utf-8"))["status"]) if path.exists() else ""

    def weights(self) -> dict[str, Path]:
        """Stage -> its weight file, as far as there are any."""
        found = {stage: self.out.glob(f"{spec.weights}_*.pth") for stage, spec in STAGE_TABLE.items()}
        newest = {stage: [path for path in paths if ".previous" not in path.name] for stage, paths in found.items()}
        return {stage: paths[0] for stage, paths in newest.items() if paths}


class Pipeline:
    """`run.sh` in a session of its own, its output in a file."""

    def __init__(self, folders: Folders, profile: Path, threads: int, log: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_ARGS")}
        environment |= {
            "DATA_DIR": str(folders.data),
            "OUT_DIR": str(folders.out),
            "TF_DIR": str(folders.results.parent),
            "OMP_NUM_THREADS": str(threads),
        }
        self.log, self.started = log, time.perf_counter()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", str(ROOT / "scripts" / "run.sh"), "--profile", str(profile)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True, cwd=ROOT,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def says(self, words: str) -> bool:
        return words in self.text()

    def has_stepped(self, stage: str) -> bool:
        """Whether a trainer has shown a step of this stage."""
        return re.search(rf"\b{stage} +\d+% \(\d+/\d+ steps\)", self.text()) is not None

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for a moment. Raises: UserError when the run ends before it."""
        deadline = time.perf_counter() + LIMIT_SECONDS
        while not is_so():
            if self.process.poll() is not None:
                raise UserError(f"{self.log}: ended ({self.process.returncode}) before {what}. Take more steps.")
            if time.perf_counter() > deadline:
                raise UserError(f"{self.log}: still no {what} after {LIMIT_SECONDS:.0f} s. See that file.")
            time.sleep(POLL_SECONDS)

    def end(self) -> int:
        """Wait for its end. Returns: the exit code."""
        return self.process.wait(LIMIT_SECONDS)

    def kill_all(self) -> None:
        """`kill -9` for every process of the session, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        while _session(self.process.pid):
            time.sleep(POLL_SECONDS)

    def kill_shell(self) -> list[int]:
        """`kill -9` for `run.sh` alone. Returns: the processes that it leaves behind."""
        left = [pid for pid in _session(self.process.pid) if pid != self.process.pid]
        self.process.kill()
        self.process.wait()
        return left


def _session(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(session) == leader and state != "Z":
            found.append(int(folder.name))
    return found


# --- the kills --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Kill:
    """One `kill -9`, and how the same command went on."""

    number: int
    stage: str
    moment: str
    seconds: float
    """From the start of that run."""
    state_step: int | None = None
    """Finished steps in the resume state at the kill."""
    resumed_after: int | None = None
    """The step from which the next run said that it goes on."""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Tormentor:
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
        """Print the kills; what they and one more run found beside these problems, as plain data."""
        found = [f"kill {kill.number}: {text}" for kill in self.kills for text in kill.problems]
        again = self.start()
        if again.end() or not again.says("everything is up to date"):
            problems.append(f"{again.log}: a run after the last one did not find everything up to date")
        print_table(self.kills)
        print(
            f"{self.folders.base.name} run: {seconds:.0f} s, {self.starts - 1} starts; a run after it ended in "
            f"{again.seconds:.1f} s"
        )
        return {
            "seconds": round(seconds, 1), "kills": [asdict(kill) for kill in self.kills], "problems": found + problems,
        }  # fmt: skip

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
        """The kills of a run that began with a shorter pretraining, and after which the next one has other settings."""
        return [
            lambda: self.after_save("pretrain", then=final),
            lambda: self.after_save("pretrain", then=other_rate),
            lambda: self.after_save("sft", then=final, resumes=False),
            lambda: self.after_save("sft"),
        ]

    def try_and_give_up(self, other: Path) -> list[str]:
        """Begin again with other settings once everything is done, and return to the first. Returns: what was lost."""
        final, self.profile = self.profile, other
        before = {stage: sha256_file(path) for stage, path in self.folders.weights().items()}
        self.pipeline = self.start()
        self.after_save("sft", then=final, resumes=None)
        code, after = self.pipeline.end(), self.folders.weights()
        lost = [stage for stage in STAGES if stage not in after or sha256_file(after[stage]) != before[stage]]
        problems = [f"{stage}: finished weights were lost when other settings were tried" for stage in lost]
        return problems + ([f"{self.pipeline.log}: ended with {code}"] if code else [])

    def in_command(self, stage: str, script: str) -> None:
        """Somewhere in the first three quarters of the time that the script took in the undisturbed run."""
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

        Args: then: the profile from now on. resumes: whether that run takes the state; None: it has nothing to train.
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
        while any(pid in left for pid in _session(orphaned.process.pid)):
            if time.perf_counter() - killed > LIMIT_SECONDS:
                raise UserError(f"{orphaned.log}: the trainer goes on without run.sh. See that file.")
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
        """Where the next run goes on; a trainer says it."""
        if kill.state_step is None:
            return
        run = self.pipeline
        run.wait_for(
            lambda: run.says("resuming after step") or run.has_stepped(kill.stage), f"first step of {kill.stage}"
        )
        if match := re.search(r"resuming after step (\d+) of", run.text()):
            kill.resumed_after = int(match[1])
        if kill.resumed_after != kill.state_step:
            kill.problems.append(f"went on after step {kill.resumed_after}, but {kill.state_step} was saved")

    def saved_step(self, stage: str) -> int | None:
        """Finished steps in the stage's resume state."""
        path = self.folders.saved(stage) if stage in STAGES else None
        if path is None:
            return None
        return int(torch.load(path, map_location="cpu", weights_only=True)["step"])


# --- the undisturbed run ----------------------------------------------------------------------------------------


def reference_run(folders: Folders, profile: Path, threads: int) -> dict[str, float]:
    """Run to the end. Returns: seconds of each script, and seconds between two saves of each trainer."""
    run = Pipeline(folders, profile, threads, folders.base / "run_01.log")
    marks: list[tuple[float, str]] = []
    saves: dict[str, list[float]] = {stage: [] for stage in STAGES}
    known: dict[str, int] = {}
    stage, shown = "", 0
    while run.process.poll() is None:
        lines = [line for line in run.text().splitlines() if line.startswith(("stage ", "$ python"))]
        for line in lines[shown:]:
            marks.append((run.seconds, line))
        shown = len(lines)
        for stage in STAGES:
            stamp = folders.saved_at(stage)
            if stamp and known.get(stage) != stamp:
                known[stage] = stamp
                saves[stage].append(run.seconds)
        time.sleep(0.005)
    if run.process.returncode:
        raise UserError(f"{run.log}: the undisturbed run failed ({run.process.returncode}). See that file.")
    took: dict[str, float] = {"all": run.seconds}
    stage = ""
    for (start, line), (end, _) in zip(marks, [*marks[1:], (run.seconds, "")], strict=True):
        if match := re.match(r"stage (\w+): start", line):
            stage = match[1]
        elif match := re.search(r"/(\w+\.py)", line):
            took[f"{stage} {match[1]}"] = end - start
    for stage, moments in saves.items():
        if len(moments) < 5:
            raise UserError(
                f"{stage}: only {len(moments)} saves in the whole run. Take a profile with more steps or a smaller save_interval."
            )
        took[f"{stage} save"] = (moments[-1] - moments[0]) / (len(moments) - 1)
    return took


# --- the comparison ---------------------------------------------------------------------------------------------


def differences(reference: Folders, killed: Folders, *, settings_changed: bool = False) -> list[str]:
    """What a run that was killed has not as the undisturbed one.

    Where its settings changed in between, states of other settings may be left, and lines of evaluations made anew.
    """
    problems = []
    expected, found = reference.weights(), killed.weights()
    for stage in STAGES:
        if stage not in expected or stage not in found:
            problems.append(f"{stage}: weights are missing")
            continue
        problems += [f"{stage}: {text}" for text in tensor_differences(expected[stage], found[stage])]
    problems += result_differences(reference.results, killed.results, last_of_each=settings_changed)
    for name in ("mix_manifest.json", *(f"{stage}_tokens/manifest.json" for stage in STAGES)):
        ours, theirs = (
            json.loads((folders.data / name).read_text(encoding="utf-8")) for folders in (reference, killed)
        )
        ours.pop("source", None), theirs.pop("source", None)  # holds the path
        if name != "mix_manifest.json":
            ours["validation"].pop("path"), theirs["validation"].pop("path")
        if ours != theirs:
            problems.append(f"{name}: differs")
    expected_files, found_files = (
        {path.relative_to(folders.base) for folder in (folders.data, folders.out) for path in folder.rglob("*")}
        for folders in (reference, killed)
    )
    left = {path for path in found_files - expected_files if not (settings_changed and "checkpoints" in path.parts)}
    problems += [f"{path}: left over" for path in sorted(left)]
    problems += [f"{path}: missing" for path in sorted(expected_files - found_files)]
    temporary = [path for path in killed.base.rglob("*") if path.name.endswith((".tmp", ".old"))]
    return problems + [f"{path}: a temporary file is left" for path in temporary]


def tensor_differences(expected: Path, found: Path) -> list[str]:
    """Tensors that are not the same bit by bit."""
    ours, theirs = (torch.load(path, map_location="cpu", weights_only=True)["model"] for path in (expected, found))
    if ours.keys() != theirs.keys():
        return [f"other tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}"]
    return [name for name in ours if _bytes(ours[name]) != _bytes(theirs[name])]


def _bytes(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.contiguous().view(torch.uint8).numpy().tobytes()


def result_differences(expected: Path, found: Path, *, last_of_each: bool = False) -> list[str]:
    """Whether each stage has one whole line, with the figures of the undisturbed run; or its last line has them."""
    problems = []
    ours = [json.loads(line) for line in expected.read_text(encoding="utf-8").splitlines()]
    text = found.read_text(encoding="utf-8")
    try:
        theirs = [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        return [f"eval_results.jsonl: a torn line ({error})"]
    if not text.endswith("\n"):
        problems.append("eval_results.jsonl: its last line has no end")
    if last_of_each:
        newest = {line["stage"]: line for line in theirs}
        theirs = [newest[stage] for stage in STAGES if stage in newest]
    if [line["stage"] for line in theirs] != list(STAGES):
        problems.append(f"eval_results.jsonl: stages {[line['stage'] for line in theirs]}")
    elif [line["metrics"] for line in ours] != [line["metrics"] for line in theirs]:
        problems.append("eval_results.jsonl: other figures")
    return problems


# --- the whole --------------------------------------------------------------------------------------------------


def small_profile(path: Path, **changes: dict[str, Any]) -> Path:
    """`smoke` with more steps and frequent saves. Without a warm-up a shorter run begins as a longer one does.

    Args: changes: stage -> settings.
    """
    values = read_yaml(CONFIG_DIR / "smoke.yaml") | {"profile": "kill_resume"}
    for stage, steps in STEPS.items():
        own = {"epochs": 100, "max_steps": steps, "save_interval": SAVE_INTERVAL, "warmup_ratio": 0.0}
        values[stage] = values[stage] | own | changes.get(stage, {})
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def print_table(kills: Sequence[Kill]) -> None:
    """The kills as a Markdown table."""
    print("| # | stage | moment | s after the start | step saved | went on after step | notes |")
    print("|---|---|---|---|---|---|---|")
    for kill in kills:
        steps = ["-" if step is None else str(step) for step in (kill.state_step, kill.resumed_after)]
        notes = "; ".join([*kill.notes, *(f"PROBLEM: {text}" for text in kill.problems)])
        print(f"| {kill.number} | {kill.stage} | {kill.moment} | {kill.seconds:.1f} | {' | '.join(steps)} | {notes} |")


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--work_dir", type=Path, required=True, metavar="DIR", help="where all files go 工作目录")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="a profile's YAML file (small, made for this) 配置文件"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of all runs 线程数 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the moments 随机种子 (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too 结果文件")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """An undisturbed run, one that is killed, one whose settings change too; exit 1 when their ends differ."""
    arguments = build_parser().parse_args(argv)
    if not Path("/proc/self/stat").exists():
        raise UserError("/proc: missing. This benchmark finds processes there: run it on Linux.")
    work = arguments.work_dir.resolve()
    reference, killed, changed = (Folders(work / name) for name in ("reference", "killed", "changed"))
    for folders in (reference, killed, changed):
        shutil.rmtree(folders.base, ignore_errors=True)
        folders.base.mkdir(parents=True)
    profile = arguments.profile.resolve() if arguments.profile else small_profile(work / "kill_resume.yaml")
    took = reference_run(reference, profile, arguments.threads)
    print(f"undisturbed run: {took['all']:.0f} s", flush=True)

    reports = {"killed": torment(killed, profile, took, arguments, reference)}
    if arguments.profile:
        print("the run whose settings change is left out: it needs the small profile, whose steps are known")
    else:
        reports["changed"] = torment_with_changes(changed, profile, took, arguments, reference)
    problems = [f"{name}: {text}" for name, report in reports.items() for text in report["problems"]]
    for problem in problems:
        print(f"DIFFERS: {problem}")
    print(f"verdict: {'FAILED' if problems else 'weights bit-identical, nothing lost, nothing left over'}")
    if arguments.json:
        verdict = {
            "seed": arguments.seed, "threads": arguments.threads, "profile": str(profile), "torch": torch.__version__,
            "undisturbed_seconds": round(took["all"], 1), **reports,
        }  # fmt: skip
        write_json(arguments.json, verdict)
    return 1 if problems else 0


def torment(
    folders: Folders, profile: Path, took: dict[str, float], arguments: Namespace, reference: Folders
) -> dict[str, Any]:
    """Kill a run as planned, and compare its end. Returns: kills, seconds and problems."""
    started = time.perf_counter()
    tormentor = Tormentor(folders, profile, arguments.threads, arguments.seed, took)
    with tormentor:
        code = tormentor.carry_out(tormentor.plan())
    problems = [f"{tormentor.pipeline.log}: ended with {code}"] if code else differences(reference, folders)
    return tormentor.report(problems, time.perf_counter() - started)


def torment_with_changes(
    folders: Folders, profile: Path, took: dict[str, float], arguments: Namespace, reference: Folders
) -> dict[str, Any]:
    """The same with settings that change, and in the end are those of the undisturbed run."""
    started = time.perf_counter()
    shorter = small_profile(folders.base / "shorter.yaml", pretrain={"max_steps": STEPS["pretrain"] // 2})
    other_rate = small_profile(folders.base / "other_rate.yaml", sft={"learning_rate": 5.0e-3})
    tormentor = Tormentor(folders, shorter, arguments.threads, arguments.seed, took)
    with tormentor:
        code = tormentor.carry_out(tormentor.plan_of_changes(profile, other_rate))
        problems = [f"{tormentor.pipeline.log}: ended with {code}"] if code else []
        if not problems:
            problems = differences(reference, folders, settings_changed=True)
            problems += tormentor.try_and_give_up(other_rate)
            problems += differences(reference, folders, settings_changed=True)
    return tormentor.report(problems, time.perf_counter() - started)


if __name__ == "__main__":
    run(main)
