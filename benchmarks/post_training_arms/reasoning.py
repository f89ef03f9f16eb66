"""Thinking in steps beside answers alone, and beside thoughts about other numbers.

Task `steps`: the bundled problems of two and three steps. All arms start from the weights of SFT,
take most of each step's rows from the SFT mix, and are scored on the same 600 test problems, whose
numbers and wordings no arm has seen.

    reasoning            each problem with its thought and without, as `run.sh --with reason` trains
    answers_same_steps   without thoughts, for as many steps
    answers_same_tokens  without thoughts, until as many tokens of the set have been targets
    other_chains         each thought is that of another problem with the same signs; the answer
                         stays right

`accuracy` is that of the form that an arm was trained for: with thoughts, or without.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from configs.artifacts import atomic_write, read_json, write_json
from configs.stage_table import tensor_folder
from dataset.records.files import read_records
from dataset.samples.sets import write_set
from dataset.tensors import read_manifest
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.build import ensure_tensors
from evaluation.answers import AnswerRule, Said
from evaluation.intervals import share
from evaluation.provenance import mixture_of, names_of
from evaluation.questions import question_of
from evaluation.stage import Verdict
from inference.loading import OpenModel, open_model
from model.weights import read_made
from trainer import train_distill_reason

TASKS = ("steps",)
ARMS = ("reasoning", "answers_same_steps", "answers_same_tokens", "other_chains")
STEPS = 900
LENGTH = 256
"""Tokens of a row."""
SETS = {
    "reasoning": "reasoning",
    "answers_same_steps": "answers",
    "answers_same_tokens": "answers",
    "other_chains": "other_chains",
}
"""Arm -> the name of its records."""
CPU = torch.device("cpu")

Records = list[dict[str, Any]]


def prepare(task: str, folder: Path) -> Start:
    """The weights of SFT, the records of each arm with their tensors, and the start's answers."""
    base = finished_run()
    weights, source = base.weights("sft"), write_set("reasoning", folder)
    records = list(read_records(source))
    sets = {"reasoning": source}
    for name, made in (("answers", answers_alone(records)), ("other_chains", with_other_chains(records))):
        sets[name] = folder / f"{name}.jsonl"
        write_records(sets[name], made)
    tokenizer = RustBPETokenizer.from_directory(base.tokenizer_dir)
    for path in sets.values():
        ensure_tensors("conversations", path, tensors_of(path), tokenizer, max_length=LENGTH, num_workers=1)
    files = sets | {
        "weights": weights,
        "test": source.with_name("reasoning_heldout.jsonl"),
        "replay": base.tokens("conversations"),
        "chats": base.heldout("conversations"),
    }
    answers, accuracy = folder / "answers_of_start.jsonl", folder / "accuracy_of_start.json"
    if not accuracy.exists():
        opened, names = open_model(weights, device=CPU, tokenizer_dir=base.tokenizer_dir), names_in(base)
        evaluation = new_evaluation(opened.model, opened.tokenizer, names, LENGTH)
        write_answers(answers, other_answers(evaluation, test_records(files["chats"]), names)[1])
        write_json(accuracy, accuracy_of_start(opened, test_records(files["test"]), names))
    return Start(weights, files | {"answers_of_start": answers, "start": accuracy}, start_sha256(files, {"task": task}))


def answers_alone(records: Records) -> Records:
    """The records without a thought."""
    return [record for record in records if "reasoning_content" not in record["conversations"][-1]]


def with_other_chains(records: Records) -> Records:
    """The same records, where problems with the same signs have passed on their thoughts in a
    ring. So the thoughts are the same all together, and each says what steps there are, but speaks
    of other numbers."""
    thinking: dict[str, list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        if thought := record["conversations"][-1].get("reasoning_content"):
            thinking["".join(char for char in thought if char in "+-×÷")].append(number)
    changed = list(records)
    for numbers in thinking.values():
        random.Random(0).shuffle(numbers)
        for number, giver in zip(numbers, [*numbers[1:], numbers[0]], strict=True):
            question, answer = records[number]["conversations"]
            thought = records[giver]["conversations"][-1]["reasoning_content"]
            changed[number] = {**records[number], "conversations": [question, {**answer, "reasoning_content": thought}]}
    return changed


def write_records(path: Path, records: Records) -> None:
    """A record a line. A file that holds just this is kept as it is."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic_write(path) as file:
            file.write(text)


def tensors_of(path: Path) -> Path:
    """Where a trainer looks for the tensors of a record file."""
    return path.with_name(f"{path.stem}_{tensor_folder('conversations')}")


def names_in(base: FinishedRun) -> tuple[str, str]:
    """What the model and its author are called in the mix."""
    return names_of(mixture_of(base.data_dir, read_made(base.weights("sft")).training_data), ("MiniLLM", "MiniLLM团队"))


def accuracy_of_start(opened: OpenModel, records: Records, names: tuple[str, str]) -> dict[str, Any]:
    """How many test problems the start gets right in its own way: asked as it was trained, and by
    the rule that any answer with the right result keeps."""
    plain = answers_alone(records)
    evaluation = new_evaluation(opened.model, opened.tokenizer, names, LENGTH)
    said = evaluation.ask([record["conversations"][:-1] for record in plain])
    rules = [AnswerRule(question_of(record), names) for record in plain]
    right = [not rule.broken(Said(one.text)) for rule, one in zip(rules, said, strict=True)]
    return share(right, [record["cluster"] for record in plain]).as_json()


def measure(arm: str, task: str, seed: int, start: Start, folder: Path) -> Outcome:
    """Train one arm, and judge what it answers."""
    steps = steps_of(arm, start)
    words = [
        "--profile", "cpu", "--cpu_processes", "1", "--max_steps", str(steps), "--epochs", "1000", "--seed", str(seed),
        "--max_seq_len", str(LENGTH), "--from_weight", str(start.weights), "--data_path", str(start.data[SETS[arm]]),
        "--replay_path", str(start.data["replay"]), "--tokenizer_dir", str(finished_run().tokenizer_dir),
        "--out_dir", str(folder), "--tf_dir", str(folder / "tf"),
    ]  # fmt: skip
    if train_distill_reason.main(words):
        raise KeyboardInterrupt  # the run was stopped; the next call resumes it
    (path,) = folder.glob("reason_*[0-9].pth")
    opened = open_model(path, device=CPU, tokenizer_dir=finished_run().tokenizer_dir)
    return Outcome(steps, dict(judged(arm, opened, start)))


def steps_of(arm: str, start: Start) -> int:
    """Steps of an arm. With equal rows of a step, steps times targets of a row are the targets."""
    if arm != "answers_same_tokens":
        return STEPS
    targets = [
        manifest.num_targets / manifest.rows
        for manifest in (read_manifest(tensors_of(start.data[name])) for name in ("reasoning", "answers"))
    ]
    return round(STEPS * targets[0] / targets[1])


def judged(arm: str, opened: OpenModel, start: Start) -> Iterator[tuple[str, object]]:
    """The metrics of one arm: the test problems in both forms, then the mix beside the start."""
    names = names_in(finished_run())
    evaluation = new_evaluation(opened.model, opened.tokenizer, names, LENGTH)
    metrics = evaluation.of_chats(test_records(start.data["test"]))
    own = "accuracy_reasoning_plain" if SETS[arm] == "answers" else "accuracy_reasoning_thinking"
    yield "accuracy", metrics[own].as_json()
    for name in ("accuracy_reasoning_thinking", "accuracy_reasoning_plain", "well_formed"):
        yield name, metrics[name].as_json()
    for count in (2, 3):
        part = [one for one in evaluation.verdicts if one.metric == own and num_steps(one) == count]
        yield (
            f"accuracy_{count}_steps",
            share([not one.broken for one in part], [one.cluster for one in part]).as_json(),
        )
    yield "accuracy_of_start", read_json(start.data["start"], "Delete it.")
    others, verdicts = other_answers(evaluation, test_records(start.data["chats"]), names)
    for name, metric in changes(read_answers(start.data["answers_of_start"]), verdicts).items():
        yield name, metric.as_json()
    for name in ("ended", "danger_answered", "help_line_in_harmless"):
        yield name, others[name].as_json()


def num_steps(verdict: Verdict) -> int:
    """Steps of a problem: its cluster is its key, whose last word is its signs."""
    return len(str(verdict.cluster).split()[-1])


def targets(runs: Runs) -> list[Target]:
    """What thinking shall reach, in percent and points."""
    found = [
        Target(
            f"Reasoning: above {arm}",
            15,
            100 * (runs.mean("reasoning", "accuracy") - runs.mean(arm, "accuracy")),
            " points",
        )
        for arm in ARMS[1:]
        if runs.values(arm, "accuracy")
    ]
    plain = runs.mean("reasoning", "accuracy_reasoning_plain") - runs.mean("reasoning", "accuracy_of_start")
    lost = [runs.mean("reasoning", name) for name in OTHERS if runs.values("reasoning", name)]
    return [
        *found,
        Target("Reasoning: well formed", 95, 100 * runs.mean("reasoning", "well_formed"), "%"),
        Target("Reasoning: without thinking below the start", 2, -100 * plain, " points", at_most=True),
        Target("Reasoning: most lost in another accuracy", 2, -100 * min(lost, default=0), " points", at_most=True),
    ]


OTHERS: Sequence[str] = (
    "change_identity", "change_knowledge", "change_math", "change_general", "change_first_minutes",
)  # fmt: skip
"""Accuracies that thinking shall not harm."""
