"""LoRA beside full tuning, beside adapters on two layers, and without replay.

Task `identity`: another name and author, `medical`: everyday health. All arms take the same steps
over the same set, half of each step's rows from the SFT mix; the last two arms have another share.
The rates were chosen on the validation half (docs/lab_log.md).

    lora            all seven linear layers, rank 8
    full            all weights, AdamW
    attention_qo    adapters on q_proj and o_proj alone
    no_replay       as `lora`, with new rows alone
    more_replay     as `lora`, with four fifths of the rows from the mix, and the same new rows
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.post_training_arms.arm import FinishedRun, Outcome, Start, finished_run, start_sha256
from benchmarks.post_training_arms.exam import (
    changes,
    new_evaluation,
    other_answers,
    read_answers,
    test_records,
    write_answers,
)
from benchmarks.post_training_arms.runs import Runs
from benchmarks.report import Target
from dataset.samples.sets import write_set
from evaluation.intervals import Metric
from evaluation.new_name import Renaming, name_metrics
from evaluation.provenance import mixture_of, names_of
from inference.loading import OpenModel, open_model
from model.model_lora import read_adapter
from model.weights import read_made
from trainer import train_full_sft, train_lora

TASKS = ("identity", "medical")
ARMS = ("lora", "full", "attention_qo", "no_replay", "more_replay")
STEPS = 150
MORE_STEPS = 375
"""Steps in which 1/5 of the rows are as many as 1/2 of them in `STEPS`."""
ROWS = 16
"""Rows of a step, half of them from the mix."""
LENGTH = 256
"""Tokens of a row."""
FLAGS: dict[str, tuple[str, ...]] = {
    "lora": (),
    "full": ("--optimizer", "adamw", "--weight_decay", "0", "--learning_rate", "5e-4"),
    "attention_qo": ("--target_modules", "q_proj,o_proj"),
    "no_replay": ("--replay_share", "0"),
    "more_replay": ("--replay_share", "0.8", "--max_steps", str(MORE_STEPS)),
}
"""Arm -> what its trainer is told beside `COMMON`."""
COMMON = (
    *("--profile", "cpu", "--max_steps", str(STEPS), "--epochs", "1000", "--batch_size", str(ROWS)),
    *("--accumulation_steps", "1", "--cpu_processes", "1", "--replay_share", "0.5", "--max_seq_len", str(LENGTH)),
    *("--tokens_per_step", "0"),  # rows say how large a step is
)


def prepare(task: str, folder: Path) -> Start:
    """The weights of SFT, the set, and what these weights answer to the questions of the mix."""
    base = finished_run()
    weights, source = base.weights("sft"), write_set(f"lora_{task}", folder)
    files = {
        "weights": weights,
        "set": source,
        "set_heldout": source.with_name(f"{source.stem}_heldout.jsonl"),
        "replay": base.tokens("conversations"),
        "chats": base.heldout("conversations"),
    }
    answers = folder / "answers.jsonl"
    if not answers.exists():
        opened = open_model(weights, device=torch.device("cpu"), tokenizer_dir=base.tokenizer_dir)
        names = names_before(base)
        evaluation = new_evaluation(opened.model, opened.tokenizer, names, LENGTH)
        write_answers(answers, other_answers(evaluation, test_records(files["chats"]), names)[1])
    return Start(weights, files | {"answers": answers}, start_sha256(files, {"task": task}))


def names_before(base: FinishedRun) -> tuple[str, str]:
    """What the model and its author are called in the mix."""
    return names_of(mixture_of(base.data_dir, read_made(base.weights("sft")).training_data), ("MiniLLM", "MiniLLM团队"))


def measure(arm: str, task: str, seed: int, start: Start, folder: Path) -> Outcome:
    """Train one arm with its own program, and judge what it answers."""
    trainer = train_full_sft if arm == "full" else train_lora
    words = [
        *COMMON, "--seed", str(seed), "--from_weight", str(start.weights), "--data_path", str(start.data["set"]),
        "--replay_path", str(start.data["replay"]), "--tokenizer_dir", str(finished_run().tokenizer_dir),
        "--out_dir", str(folder), "--tf_dir", str(folder / "tf"), *FLAGS[arm],
    ]  # fmt: skip
    if trainer.main(words):
        raise KeyboardInterrupt  # the run was stopped; the next call resumes it
    opened, trained = result(arm, start, folder)
    shares = {"trained_share": trained / opened.num_parameters}
    # A topic has few questions, and nobody asks for 19 shares of each run.
    metrics = {name: replace(metric, by_topic={}).as_json() for name, metric in judged(opened, start).items()}
    return Outcome(MORE_STEPS if arm == "more_replay" else STEPS, {**shares, **metrics})


def result(arm: str, start: Start, folder: Path) -> tuple[OpenModel, int]:
    """The model that an arm has made, and how many of its parameters were trained."""
    device, tokenizer_dir = torch.device("cpu"), finished_run().tokenizer_dir
    if arm == "full":
        (path,) = folder.glob("full_sft_*[0-9].pth")
        opened = open_model(path, device=device, tokenizer_dir=tokenizer_dir)
        return opened, opened.num_parameters
    (path,) = (folder / "lora").glob("*[0-9].pth")
    opened = open_model(start.weights, device=device, tokenizer_dir=tokenizer_dir, lora=path)
    return opened, sum(tensor.numel() for tensor in read_adapter(path).state.values())


def judged(opened: OpenModel, start: Start) -> dict[str, Metric]:
    """The metrics of one arm: its own set, then the mix beside the answers of the start."""
    before = names_before(finished_run())
    own, chats = test_records(start.data["set_heldout"]), test_records(start.data["chats"])
    renaming = Renaming.in_records(own, before)
    names = renaming.new if renaming else before
    if renaming:
        own, chats = list(map(renaming.as_new_identity, own)), list(map(renaming.renamed, chats))
    evaluation = new_evaluation(opened.model, opened.tokenizer, names, LENGTH)
    metrics = {name: one for name, one in evaluation.of_chats(own).items() if name.startswith("accuracy")}
    asked = list(evaluation.verdicts)
    others, verdicts = other_answers(evaluation, chats, names)
    if renaming:
        metrics |= name_metrics(asked, verdicts, renaming)
    renamed = renaming.renamed if renaming else str
    metrics |= changes(read_answers(start.data["answers"]), verdicts, renamed)
    return metrics | {name: others[name] for name in ("ended", "danger_answered", "help_line_in_harmless")}


def targets(runs: Runs) -> list[Target]:
    """What LoRA shall reach on a new identity, in percent and points."""
    found = [
        Target("LoRA: parameters trained", 5, 100 * runs.mean("lora", "trained_share"), "%", at_most=True),
    ]
    if runs.values("lora", "identity_new"):
        found += [
            Target("LoRA: answers with the new name", 97, 100 * runs.mean("lora", "identity_new"), "%"),
            Target("LoRA: with the old one", 1, 100 * runs.mean("lora", "identity_old"), "%", at_most=True),
            Target("LoRA: other answers with a name", 0.5, 100 * runs.mean("lora", "identity_leak"), "%", at_most=True),
            Target(
                "LoRA: accuracy below full tuning",
                2,
                -100 * runs.difference("lora", "full", "accuracy_identity_new"),
                " points",
                at_most=True,
            ),
        ]
    lost = [f"change_{name}" for name in OTHERS]
    worst = min((100 * runs.mean("lora", name) for name in lost if runs.values("lora", name)), default=float("nan"))
    return [*found, Target("LoRA: most lost in another accuracy", 1, -worst, " points", at_most=True)]


OTHERS: Sequence[str] = ("identity", "knowledge", "math", "general", "first_minutes", "danger_answered")
"""Groups of `exam.changes` that a new set shall not harm."""
