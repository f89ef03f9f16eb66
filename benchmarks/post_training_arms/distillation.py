"""Distillation beside its controls: a student of half the teacher's size.

Task `documents`: the pretrained weights teach raw text; the figure is bits per byte of held-out
text.

    distilled           labels and the teacher's distribution
    alone               the same student on the same rows in the same order, without a teacher
    alone_longer        the same for the time that distilled takes: more steps, more rows
    untrained_teacher   the teacher is a network with random weights
    uniform_teacher     the teacher finds all tokens equally likely

Task `arithmetic`: the weights of SFT teach sums to a student that can do some already; the figure
is the accuracy of greedy answers to held-out sums.

    off_policy          reverse KL on the right answers of the data
    on_policy           reverse KL on the student's own answers to the same questions, as many steps
    off_policy_longer   as off_policy, for the time that on_policy takes
"""

import math
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks.post_training_arms.arm import FinishedRun, Outcome, Start, finished_run, start_sha256
from benchmarks.post_training_arms.product import evaluate, last_metrics, read_lines, train, write_lines
from benchmarks.post_training_arms.runs import Runs
from benchmarks.report import Target
from configs.schema import UserError
from evaluation.intervals import Metric, share
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import load_model, save_weights

TASKS = ("documents", "arithmetic")
ARMS_OF = {
    "documents": ("distilled", "alone", "alone_longer", "untrained_teacher", "uniform_teacher"),
    "arithmetic": ("on_policy", "off_policy", "off_policy_longer"),
}
ARMS = tuple(arm for arms in ARMS_OF.values() for arm in arms)

STUDENT = ("--preset", "128x3")
"""1,410,112 parameters; the teacher, 192 x 4, has 2.8 million."""
STEPS = 120
"""Steps of 4,096 tokens on documents."""
MIXTURE = ("--alpha", "0.5", "--temperature", "1", "--beta", "0")
FIRST_STEPS = 200
"""Steps on sums, with labels, that make the student from which the arms of arithmetic start."""
ARITHMETIC_STEPS = 40
ALONE_LONGER = 2.1
"""Steps of alone_longer for each of distilled, whose steps take so many times as long."""
LONGER = 2.0
"""Steps of off_policy_longer for each of on_policy, whose steps take so many times as long."""
ARITHMETIC = ("--alpha", "0", "--beta", "1", "--temperature", "1", "--learning_rate", "1e-3")
"""Reverse KL alone, on policy and off."""


def prepare(task: str, folder: Path) -> Start:
    """The teachers, the data, and for arithmetic the student to start from."""
    base = finished_run()
    return _prepare_documents(base, folder) if task == "documents" else _prepare_arithmetic(base, folder)


def _prepare_documents(base: FinishedRun, folder: Path) -> Start:
    teacher = base.weights("pretrain")
    data = {"train": base.tokens("documents"), "heldout": base.heldout("documents"), "teacher": teacher}
    data |= {name: _stand_in(teacher, name, folder) for name in ("untrained_teacher", "uniform_teacher")}
    settings = {"student": STUDENT, "steps": STEPS, "mixture": MIXTURE}
    return Start(teacher, data, start_sha256(data, settings))


def _stand_in(teacher: Path, name: str, folder: Path) -> Path:
    """A teacher that knows nothing: random weights, or an embedding of zeros, so all logits are
    0."""
    path = folder / f"{name}.pth"
    if not path.exists():
        model, manifest = load_model(teacher)
        torch.manual_seed(0)
        model = MiniLLM(model.config)
        if name == "uniform_teacher":
            torch.nn.init.zeros_(model.model.embed_tokens.weight)
        save_weights(path, model, WeightsManifest(stage="pretrain", tokenizer_sha256=manifest.tokenizer_sha256))
    return path


def _prepare_arithmetic(base: FinishedRun, folder: Path) -> Start:
    teacher = base.weights("sft")
    sums = {
        "train": write_lines(folder / "sums.jsonl", _sums(base.records("conversations"))),
        "heldout": write_lines(folder / "sums_test.jsonl", _sums(base.heldout("conversations"))),
    }
    words = (*STUDENT, *MIXTURE, "--teacher", str(teacher), "--max_steps", str(FIRST_STEPS))
    train("distill", folder / "student", 0, *words, "--data_path", str(sums["train"]))
    weights = folder / "student" / "full_dist_128.pth"
    settings = {"steps": ARITHMETIC_STEPS, "mixture": ARITHMETIC, "longer": LONGER}
    files = sums | {"teacher": teacher, "student": weights}
    return Start(weights, sums | {"teacher": teacher}, start_sha256(files, settings))


def _sums(path: Path) -> list[dict[str, object]]:
    """Single questions about numbers, without those that no answer is known to."""
    return [
        record
        for record in read_lines(path)
        if record["category"] == "math" and record.get("kind", "") in ("", "basic", "times", "word")
    ]


def measure(arm: str, task: str, seed: int, start: Start, folder: Path) -> Outcome:
    """Train one student and score it."""
    if arm not in ARMS_OF[task]:
        raise UserError(f"--arm {arm}: no arm of the task {task}. Its arms: {', '.join(ARMS_OF[task])}.")
    data = ("--data_path", str(start.data["train"]))
    if task == "documents":
        steps = round(STEPS * (ALONE_LONGER if arm == "alone_longer" else 1))
        stage, words = "pretrain", [*STUDENT, "--max_steps", str(steps), *data]
        if not arm.startswith("alone"):
            teacher = start.data["teacher" if arm == "distilled" else arm]
            stage, words = "distill", [*words, *MIXTURE, "--data_kind", "documents", "--teacher", str(teacher)]
    else:
        steps = round(ARITHMETIC_STEPS * (LONGER if arm == "off_policy_longer" else 1))
        share = ("--on_policy_share", "1", "--max_gen_len", "48") if arm == "on_policy" else ()
        weights = ("--from_weight", str(start.weights), "--teacher", str(start.data["teacher"]))
        stage, words = "distill", [*ARITHMETIC, "--max_steps", str(steps), *data, *weights, *share]
    train(stage, folder, seed, *words)
    (checkpoint,) = folder.glob("*_128.pth")
    logged = last_metrics(folder, stage)
    answers = folder / "answers.jsonl"
    exam = ("--first_minutes", "none", "--danger_prompts", "none", "--answers_file", str(answers))
    metrics = evaluate(stage, checkpoint, start.data["heldout"], *exam)
    counted = {"tokens": logged["tokens"], "targets": logged["targets"], "training_seconds": logged["seconds"]}
    if task == "documents":
        figures = {name: metric for name, metric in metrics.items() if name.startswith("bits_per_byte")}
    else:
        figures = {"accuracy": accuracy(answers).as_json(), "ended": metrics["ended"], "loss": metrics["loss"]}
    return Outcome(int(logged["step"]), figures | counted)


def accuracy(answers: Path) -> Metric:
    """The share of right answers over all kinds of sums."""
    scored = [line for line in read_lines(answers) if line["right"] is not None]
    return share([line["right"] for line in scored], [line["cluster"] for line in scored])


def targets(runs: Runs) -> list[Target]:
    """What a student shall gain by its teacher: in percent of bits per byte, and in points."""
    if runs.values("distilled", "bits_per_byte"):
        return _targets_of_documents(runs)
    gain = 100 * runs.difference("on_policy", "off_policy", "accuracy")
    longer = 100 * runs.difference("on_policy", "off_policy_longer", "accuracy")
    return [
        Target("distillation: on-policy over off-policy, equal tokens", 5, gain, " points"),
        Target("distillation: the same, equal time (a tie or a loss is expected)", 0, longer, " points"),
    ]


def _targets_of_documents(runs: Runs) -> list[Target]:
    alone = runs.mean("alone", "bits_per_byte")
    lower = runs.differences("alone", "distilled", "bits_per_byte")
    gain = mean(lower) if lower else math.nan
    error = stdev(lower) / len(lower) ** 0.5 if len(lower) > 1 else math.nan
    hurt, uniform = (
        100 * runs.difference(arm, "alone", "bits_per_byte") / alone for arm in ("untrained_teacher", "uniform_teacher")
    )
    return [
        Target("distillation: bits per byte below the student alone", 1, 100 * gain / alone, "%"),
        Target("distillation: that difference, in standard errors over the seeds", 2, gain / error),
        Target(
            "distillation: the same, equal time (a tie or a loss is expected)",
            0,
            100 * runs.difference("alone_longer", "distilled", "bits_per_byte") / alone,
            "%",
        ),
        Target("distillation: an untrained teacher hurts", 0, hurt, "%"),
        Target("distillation: a uniform teacher does not help", 0, uniform, "%"),
    ]
