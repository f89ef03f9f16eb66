"""The reward model beside its controls.

Task `sums`: pairs about sums whose rejected answers are wrong (dataset/samples/preference/sums.py).
The reward model then picks the best of eight answers of a weaker model: of SFT, stopped early.

    reward            trained as it should be
    shuffled_labels   half of the training pairs, drawn at random, have their sides exchanged
    no_prompt         all questions, in training and in the test, are the same single character

Task `bundled`: the same with the pairs of the samples, whose rejected answers are wrong, rude,
evasive and so on. They are about other facts and sums than the training pairs.

Task `real_pairs`: pairs that people made. Nine tenths of the prompts train, the rest tests. Their
file is `$REAL_PAIRS`, JSON lines of `chosen` and `rejected`, plain or .xz.
"""

import os
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.post_training_arms.arm import FinishedRun, Outcome, Start, finished_run, start_sha256
from benchmarks.post_training_arms.best_of import best_of
from benchmarks.post_training_arms.product import last_metrics, read_lines, train, write_lines
from benchmarks.post_training_arms.runs import Runs
from benchmarks.report import Target
from configs.load import load_profile
from configs.schema import UserError
from dataset.records.files import read_records
from dataset.records.keys import normalised_question, text_hash
from dataset.samples.generators import generated
from dataset.samples.preference.prompts import SIDES
from dataset.samples.sets import SAMPLE_SETS
from dataset.tokenizer import RustBPETokenizer
from evaluation.intervals import Metric
from evaluation.stage import Evaluation
from model.heads import read_reward_model
from model.weights import load_model

Pair = dict[str, Any]
"""A preference record."""
Pairs = list[Pair]
Change = Callable[[Pair], Pair]

TASKS = ("sums", "bundled", "real_pairs")
ARMS = ("reward", "shuffled_labels", "no_prompt")
REAL_PAIRS = "REAL_PAIRS"
SETTINGS = {
    "sums": ("--epochs", "3", "--learning_rate", "5e-3"),
    "bundled": ("--epochs", "2", "--learning_rate", "5e-4"),
    "real_pairs": ("--epochs", "1", "--learning_rate", "5e-4"),
}
NO_PROMPT = "？"
SAMPLES = 8
QUESTIONS = 600
"""Held-out sums that best of 8 is measured on."""
POLICY_STEPS = 150
"""Steps of SFT, of 4,096 tokens, after which the weaker model is stopped."""


def prepare(task: str, folder: Path) -> Start:
    """The training pairs of each arm, and the test pairs."""
    base = finished_run()
    pairs, validation, test = _pairs_of(task, base)
    changes = {"reward": _as_it_is, "shuffled_labels": _coin(), "no_prompt": _without_prompt}
    data = {name: write_lines(folder / f"{name}.jsonl", map(change, pairs)) for name, change in changes.items()}
    for name in data:  # beside each training file its validation pairs
        write_lines(folder / f"{name}_heldout.jsonl", map(_changed_for_test(name), validation))
    data |= {"test": write_lines(folder / "test.jsonl", test), "questions": base.heldout("conversations")}
    if task == "sums":
        words = ("--from_weight", str(base.weights("pretrain")), "--data_path", str(base.tokens("conversations")))
        train("sft", folder / "policy", 0, *words, "--max_steps", str(POLICY_STEPS))
        data["policy"] = folder / "policy" / base.weights("sft").name
    weights = base.weights("sft")
    start = start_sha256(data | {"weights": weights}, {"settings": SETTINGS[task], "samples": SAMPLES})
    return Start(weights, data, start)


def _pairs_of(task: str, base: FinishedRun) -> tuple[Pairs, Pairs, Pairs]:
    """Training, validation and test pairs. Validation pairs have a `split`, as a trainer wants."""
    if task == "sums":
        records = list(generated(SAMPLE_SETS["reward_sums"]))
        train_pairs, validation, test = (
            [one for one in records if one.get("split", "train") == side] for side in SIDES
        )
        return train_pairs, validation, test
    if task == "bundled":
        heldout = read_lines(base.heldout("pairs"))
        validation, test = ([pair for pair in heldout if pair["split"] == half] for half in ("validation", "test"))
        return read_lines(base.records("pairs")), validation, test
    path = os.environ.get(REAL_PAIRS)
    if not path:
        raise UserError(f"{REAL_PAIRS} is not set: name a file of real pairs, JSON lines of chosen and rejected.")
    pairs: tuple[Pairs, Pairs] = ([], [])
    for pair in map(dict, read_records(Path(path))):
        # By prompt: all pairs of one question are on the same side.
        prompt = "".join(str(message["content"]) for message in pair["chosen"][:-1])
        pairs[text_hash(normalised_question(prompt))[0] % 10 == 0].append(pair)
    # No setting is chosen by the tenth that is left, so it serves for both.
    return pairs[0], [pair | {"split": "validation"} for pair in pairs[1]], pairs[1]


def _as_it_is(pair: Pair) -> Pair:
    return pair


def _coin() -> Change:
    """A function that exchanges the sides of every second pair or so."""
    flip = random.Random(0)

    def exchanged(pair: Pair) -> Pair:
        sides = (pair["rejected"], pair["chosen"]) if flip.random() < 0.5 else (pair["chosen"], pair["rejected"])
        return pair | {"chosen": sides[0], "rejected": sides[1]}

    return exchanged


def _without_prompt(pair: Pair) -> Pair:
    question = {"role": "user", "content": NO_PROMPT}
    return pair | {side: [question, pair[side][-1]] for side in ("chosen", "rejected")}


def _changed_for_test(arm: str) -> Change:
    """What an arm does to pairs that are not trained on: labels stay right."""
    return _without_prompt if arm == "no_prompt" else _as_it_is


def measure(arm: str, task: str, seed: int, start: Start, folder: Path) -> Outcome:
    """Train one reward model; score it beside SFT and DPO, and as a judge of the best of 8."""
    data = ("--data_path", str(start.data[arm]), "--from_weight", str(start.weights))
    train("reward", folder, seed, *SETTINGS[task], *data)
    (checkpoint,) = folder.glob("reward_*.pth")
    reward, base = read_reward_model(checkpoint), finished_run()
    tokenizer = RustBPETokenizer.from_directory(base.tokenizer_dir)
    mix = load_profile("cpu").mix
    names = (mix.name, mix.author)
    length = reward.manifest.settings.train["max_seq_len"]
    evaluation = Evaluation(reward.model, tokenizer, names, asdict(load_profile("cpu").evaluate), length)
    pairs = list(map(_changed_for_test(arm), read_lines(start.data["test"])))
    metrics = evaluation.of_rewards(pairs, load_model(start.weights)[0].eval(), base.weights("dpo"))
    if task == "sums" and arm != "no_prompt":
        policy = load_model(start.data["policy"])[0].eval()
        sums = [record for record in read_lines(start.data["questions"]) if _is_sum(record)]
        sums = random.Random(0).sample(sums, min(QUESTIONS, len(sums)))
        found = best_of(reward, policy, tokenizer, sums, names, n=SAMPLES, seed=1000 * seed)
        metrics |= {f"best_of_{SAMPLES}_{name}": metric for name, metric in found.items()}
    logged = last_metrics(folder, "reward")
    figures: dict[str, object] = {name: _plain(metric) for name, metric in metrics.items()}
    return Outcome(int(logged["step"]), figures | {"proven": float(reward.proven)})


def _is_sum(record: dict[str, Any]) -> bool:
    kinds = ("", "word")
    return record["category"] == "math" and record.get("kind", "") in kinds and record["split"] == "test"


def _plain(metric: Metric) -> dict[str, Any]:
    return {name: value for name, value in metric.as_json().items() if name in ("value", "n", "ci95")}


def targets(runs: Runs) -> list[Target]:
    """What a reward model shall reach, in percent and points."""

    def percent(arm: str, metric: str) -> float:
        return 100 * runs.mean(arm, metric)

    wrong = [
        Target("reward: pairs whose rejected answer is wrong", 90, percent("reward", "reward_accuracy_wrong"), "%"),
        Target("reward: the same, labels shuffled", 55, percent("shuffled_labels", "reward_accuracy_wrong"), "%", True),
    ]
    if runs.values("reward", "best_of_8_best"):
        likeliest = percent("reward", "best_of_8_best") - percent("reward", "best_of_8_likeliest")
        return [
            *wrong,
            Target(
                "reward: no prompt, answers that are right for another problem",
                55,
                percent("no_prompt", "reward_accuracy_other_sum"),
                "%",
                True,
            ),
            Target("reward: best of 8 over the mean sample", 8, percent("reward", "best_of_8_gain"), " points"),
            Target("reward: best of 8 over the likeliest", 0, likeliest, " points"),
        ]
    if runs.values("reward", "reward_accuracy_wrong"):
        return [*wrong, Target("reward: no prompt", 55, percent("no_prompt", "reward_accuracy_wrong"), "%", True)]
    return [Target("reward: length-matched, real pairs", 60, percent("reward", "reward_accuracy_length_matched"), "%")]
