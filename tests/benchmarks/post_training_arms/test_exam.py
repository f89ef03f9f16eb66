"""The same questions before and after: paired differences, joined by category."""

from pathlib import Path

import pytest

from benchmarks.post_training_arms.exam import changes, group_of, read_answers, write_answers
from evaluation.stage import Verdict
from inference.engine import Answer


def verdict(turn: str, metric: str, *, right: bool, scored: bool = True) -> Verdict:
    """A judged answer; the question is its own cluster."""
    broken = "" if right else "wrong"
    return Verdict(metric, (turn,), Answer("答", True, 1), ("对",), broken, scored=scored, cluster=turn)


BEFORE = [
    verdict("一", "accuracy_math", right=True),
    verdict("二", "accuracy_math_word", right=False),
    verdict("三", "accuracy_knowledge", right=True),
    verdict("四", "first_minutes_facts", right=True),
    verdict("五", "", right=False, scored=False),
]


def test_a_change_is_a_mean_of_paired_differences(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.jsonl", BEFORE)
    before = read_answers(tmp_path / "a.jsonl")
    after = [verdict("一", "accuracy_math", right=True), verdict("二", "accuracy_math_word", right=True), *BEFORE[2:4]]
    found = changes(before, after)
    assert {name: (metric.value, metric.n) for name, metric in found.items()} == {
        "change_math": (0.5, 2),
        "change_knowledge": (0.0, 1),
        "change_first_minutes": (0.0, 1),
    }
    assert changes(before, BEFORE)["change_math"].value == 0.0


def test_a_question_is_found_again_under_the_new_name(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.jsonl", [verdict("你是甲吗", "accuracy_identity", right=True)])
    before, after = read_answers(tmp_path / "a.jsonl"), [verdict("你是乙吗", "accuracy_identity", right=False)]
    assert changes(before, after, lambda text: text.replace("甲", "乙"))["change_identity"].value == -1.0
    with pytest.raises(ValueError, match="0 were asked again"):
        changes(before, after)


@pytest.mark.parametrize(
    ("metric", "group"),
    [
        ("accuracy_math_word", "math"),
        ("accuracy_general_danger", "general"),
        ("first_minutes_core", "first_minutes_core"),
        ("first_minutes_facts", "first_minutes"),
        ("danger_answered", "danger_answered"),
    ],
)
def test_kinds_are_joined_in_their_category(metric: str, group: str) -> None:
    assert group_of(metric) == group
