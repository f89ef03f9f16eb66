"""GRPO and PPO beside their controls, from one start that is right 35 to 50% of the time.

Tasks: `arithmetic`, sums and differences to 299; `words`, a sentence with given words and length.
The start is the SFT weights of a finished run after a few more steps of SFT on other problems of
the task (`lessons`), half of each batch from the mix. All arms see the same prompts.

Arms: `grpo`; `sft_gold`: SFT on the gold answers of the same prompts; `permuted`: GRPO with the
rewards of a step shuffled; `right_only`: the same rollouts, trained on right answers alone; `ppo`.
Each is scored at its end and at the weights that its validation chose (`chosen_...`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.post_training_arms.arm import Outcome, Start, finished_run, start_sha256
from benchmarks.post_training_arms.policy_scores import Scores, greedy_accuracy, keep_answers, scores_of
from benchmarks.post_training_arms.runs import Runs
from benchmarks.report import Target
from configs.artifacts import atomic_write
from configs.paths import ROOT
from configs.schema import UserError
from dataset.samples.prompts import sentences, sums
from dataset.samples.sets import write_set

TASKS = ("arithmetic", "words")
ARMS = ("grpo", "sft_gold", "permuted", "right_only", "ppo")
ARMS_OF_TASK = {"arithmetic": ARMS, "words": ("grpo",)}
"""There is no gold answer to `words`, so it has no control that learns from one."""


@dataclass(frozen=True)
class Task:
    """What belongs to one task."""

    prompts: str
    """Name of the bundled set."""
    lessons: Any
    """The generator with what the start learns from."""
    steps: Sequence[int]
    """Lengths of the start's SFT that are tried, until its accuracy lies between the bounds."""
    low: float
    high: float
    max_gen_len: int
    rate: float
    """Peak rate of the start's SFT, with Muon: 5e-3 is that of the profile's SFT."""
    replay: float
    """Share of that SFT's rows that come from the mix."""
    flags: tuple[str, ...] = ()
    """Of GRPO."""


WORDS_FLAGS = ("--num_minibatches", "1", "--warmup_ratio", "0", "--max_steps", "160")
TASK = {
    "arithmetic": Task("prompts_sums", sums, (180, 215, 260), 0.35, 0.50, 24, 1.0e-3, 0.5),
    "words": Task("prompts_words", sentences, (150, 250, 400), 0.10, 0.50, 32, 4.0e-3, 0.2, WORDS_FLAGS),
}
SFT_GOLD_RATE = 1.0e-3
"""Peak rate of `sft_gold`, with Muon."""
COMMON = ("--profile", "cpu", "--cpu_processes", "1", "--log_interval", "1")


def trainer(program: str, folder: Path, *words: str) -> None:
    """Run a trainer in a process of its own, which resumes what it has begun in this folder."""
    command = [sys.executable, str(ROOT / program), *COMMON, "--out_dir", str(folder), "--tf_dir", str(folder / "tf")]
    tokenizer = ("--tokenizer_dir", str(finished_run().tokenizer_dir))
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([*command, *tokenizer, *words], env=os.environ | {"DATA_DIR": str(folder)}, check=False)
    if done.returncode:
        raise UserError(f"{program} {' '.join(words)}: ended with exit code {done.returncode}.")


def weights_in(folder: Path, stem: str) -> Path:
    """The weights of this stem in a folder."""
    return next(folder.glob(f"{stem}_[0-9]*.pth"))


# --- the start ------------------------------------------------------------------------------------


def prepare(task: str, folder: Path) -> Start:
    """SFT on lessons, for the first number of steps after which the accuracy is within bounds."""
    kind, run = TASK[task], finished_run()
    prompts = write_set(kind.prompts, folder)
    lessons = folder / "lessons.jsonl"
    with atomic_write(lessons) as file:
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in kind.lessons.lessons())
    for steps in kind.steps:
        place = folder / f"sft-{steps}"
        words = [
            "--data_path", str(lessons), "--from_weight", str(run.weights("sft")), "--max_steps", str(steps),
            "--learning_rate", str(kind.rate), "--epochs", "9", "--max_seq_len", "256", "--tokens_per_step", "4096",
            "--replay_share", str(kind.replay), "--replay_path", str(run.tokens("conversations")),
        ]  # fmt: skip
        trainer("trainer/train_full_sft.py", place, *words)
        weights = weights_in(place, "full_sft")
        accuracy = greedy_accuracy(weights, prompts, kind.max_gen_len)
        print(f"start of {task}: {steps} steps, accuracy {accuracy:.3f} on the validation prompts", flush=True)
        if accuracy >= kind.low:
            break
    if not kind.low <= accuracy <= kind.high:
        raise UserError(
            f"the start of {task} is right {accuracy:.0%} of the time, not {kind.low:.0%} to {kind.high:.0%}."
        )
    data = {"prompts": prompts, "chats": run.heldout("conversations")}
    settings = {"steps": steps, "lr": kind.rate, "replay": kind.replay, "max_gen_len": kind.max_gen_len}
    return Start(weights, data, start_sha256({"weights": weights, **data}, settings))


# --- the arms -------------------------------------------------------------------------------------


def measure(arm: str, task: str, seed: int, start: Start, folder: Path) -> Outcome:
    """Train one arm, and score its last weights and those that its validation chose."""
    if arm not in ARMS_OF_TASK[task]:
        raise UserError(f"--arm {arm}: task {task} has only {', '.join(ARMS_OF_TASK[task])}.")
    kind, prompts = TASK[task], start.data["prompts"]
    common = ("--data_path", str(prompts), "--from_weight", str(start.weights), "--seed", str(seed))
    policy = (*common, "--max_gen_len", str(kind.max_gen_len), "--no-rollback")
    match arm:
        case "grpo":
            trainer("trainer/train_grpo.py", folder, *policy, *kind.flags)
        case "permuted":
            trainer("benchmarks/post_training_arms/permuted_rewards.py", folder, *policy)
        case "right_only":
            trainer("trainer/train_grpo.py", folder, *policy, "--advantage", "none")
        case "ppo":
            trainer("trainer/train_ppo.py", folder, *policy)
        case "sft_gold":
            rate = ("--learning_rate", str(SFT_GOLD_RATE))
            trainer(
                "trainer/train_full_sft.py", folder, *common, *rate, "--max_seq_len", "256", "--tokens_per_step", "1024"
            )
    stem = {"sft_gold": "full_sft", "ppo": "ppo_actor"}.get(arm, "grpo")
    before = whole_scores(start.weights, start.weights.parent / "test", start, kind)
    after = whole_scores(weights_in(folder, stem), folder / "end", start, kind)
    metrics = before.metrics("start_") | after.metrics() | after.change(before)
    if task == "words":
        metrics |= after.fluency(before, start.weights)
        keep_answers(after, folder / "answers.jsonl")
    if stem != "full_sft":
        chosen = whole_scores(weights_in(folder, f"best_{stem}"), folder / "chosen", start, kind)
        metrics |= chosen.metrics("chosen_") | chosen.change(before, "chosen_")
    lines = [json.loads(line) for line in next((folder / "tf" / "metrics").glob("*.jsonl")).read_text().splitlines()]
    logged = [line for line in lines if "sampling_seconds" in line]
    if logged:
        metrics["sampling_share"] = sum(line["sampling_seconds"] for line in logged) / logged[-1]["seconds"]
        metrics["groups_without_variance"] = mean(line["groups_without_variance"] for line in logged)
    return Outcome(steps=max(line["step"] for line in lines), metrics=metrics)


def whole_scores(weights: Path, folder: Path, start: Start, kind: Task) -> Scores:
    """All scores of some weights: test prompts, held-out chats, first minutes."""
    return scores_of(weights, folder, start.data["prompts"], kind.max_gen_len, start.data["chats"])


# --- what is wanted -------------------------------------------------------------------------------


def targets(runs: Runs) -> list[Target]:
    """The figures that GRPO and PPO want to reach, as means over seeds."""

    def value(arm: str, metric: str) -> float:
        found = [line.value(metric) for line in runs.lines if line.arm == arm]
        return mean(found) if found else float("nan")

    def points(arm: str, metric: str) -> float:
        return 100 * (value(arm, metric) - value(arm, f"start_{metric}"))

    wanted = []
    if "grpo" in runs.arms:
        length = 100 * (value("grpo", "length") / value("grpo", "start_length") - 1)
        wanted += [
            Target("GRPO, greedy accuracy over the start", 20, points("grpo", "accuracy"), " points"),
            Target("GRPO, sampled accuracy over the start", 20, points("grpo", "accuracy_sampled"), " points"),
            Target("GRPO, change of length", 10, abs(length), "%", at_most=True),
            Target("GRPO, other accuracies lost", 1, -100 * value("grpo", "other_change"), " points", at_most=True),
            Target("GRPO, ended", 99, 100 * value("grpo", "ended"), "%"),
        ]
    if "ppo" in runs.arms:
        wanted.append(Target("PPO, greedy accuracy over the start", 12, points("ppo", "accuracy"), " points"))
    return wanted
