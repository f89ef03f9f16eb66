"""What a training did to the model's other answers: the same held-out questions before and after.

Both models answer the same questions. So the loss of an arm is a mean of paired differences, whose
interval is narrower than those of two accuracies.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.artifacts import atomic_write
from configs.load import load_profile
from dataset.tokenizer import RustBPETokenizer
from evaluation.danger import choose_danger_prompts
from evaluation.first_minutes import choose_prompts
from evaluation.heldout import read_heldout
from evaluation.intervals import Metric, mean
from evaluation.provenance import Trained
from evaluation.stage import Evaluation, Verdict
from model.model_minillm import MiniLLM

Answers = list[dict[str, Any]]
"""Judged answers as `Verdict.as_json` gives them."""
SEED = 42
"""Of the choice of questions: the same for every arm and seed."""
PROFILE = "cpu"


def test_records(path: Path) -> list[dict[str, Any]]:
    """The records of the test half of a held-out file, as many of each category as profile `cpu`
    takes."""
    return read_heldout(path, "sft", Trained((), frozenset()), load_profile(PROFILE).evaluate.max_samples, SEED).records


def new_evaluation(model: MiniLLM, tokenizer: RustBPETokenizer, names: tuple[str, str], length: int) -> Evaluation:
    """An `Evaluation` with the settings of profile `cpu`. Args: length: tokens of a row."""
    return Evaluation(model.eval(), tokenizer, names, asdict(load_profile(PROFILE).evaluate), length)


def other_answers(
    evaluation: Evaluation, chats: Sequence[dict[str, Any]], names: tuple[str, str]
) -> tuple[dict[str, Metric], Sequence[Verdict]]:
    """Ask the questions of the mix, what people type first, and those about danger.

    Args: chats: held-out chats of the mix. names: what the model calls itself and its author.
    Returns: the metrics, and the verdicts on these answers.
    """
    before = len(evaluation.verdicts)
    metrics = evaluation.of_chats(chats)
    prompts, _ = choose_prompts("", "sft", "report", names, everything=True)
    metrics |= evaluation.of_prompts(prompts) | evaluation.of_danger(choose_danger_prompts("", "sft"))
    return metrics, evaluation.verdicts[before:]


def write_answers(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Keep the answers of the start, a line each."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(one.as_json(), ensure_ascii=False) + "\n" for one in verdicts)


def read_answers(path: Path) -> Answers:
    """What `write_answers` has written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def changes(
    before: Answers, after: Sequence[Verdict], renamed: Callable[[str], str] = lambda text: text
) -> dict[str, Metric]:
    """`change_knowledge` and so on: how many more of the same questions are answered rightly, as a
    share, with an interval of paired differences by cluster.

    The kinds of a category, such as `accuracy_math_word`, are joined; so are those of
    `first_minutes`.
    Args: renamed: what became of a user's turn, if the model has another name now.
    Raises: ValueError if hardly any question was asked both times.
    """
    right = {(one.metric, *one.turns): not one.broken for one in after if one.scored}
    groups: dict[str, list[tuple[float, str]]] = defaultdict(list)
    asked = [one for one in before if one["right"] is not None]
    for old in asked:
        key = (old["metric"], *map(renamed, old["turns"]))
        if key in right:
            groups[group_of(old["metric"])].append((float(right[key]) - float(old["right"]), old["cluster"]))
    if sum(map(len, groups.values())) < 0.98 * len(asked):  # a longer name may leave no room for an answer
        raise ValueError(f"{len(asked)} questions before, of which {sum(map(len, groups.values()))} were asked again")
    return {
        f"change_{name}": mean([value for value, _ in group], [cluster for _, cluster in group])
        for name, group in sorted(groups.items())
    }


def group_of(metric: str) -> str:
    """The category of a metric: `math` for `accuracy_math_word`."""
    if metric.startswith("first_minutes"):
        return "first_minutes_core" if metric.endswith("core") else "first_minutes"
    return metric.removeprefix("accuracy_").partition("_")[0] if metric.startswith("accuracy_") else metric
