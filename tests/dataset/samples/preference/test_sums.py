"""Pairs about sums: what is wrong with each rejected answer, and what is not."""

from collections import Counter
from typing import Any

import pytest

from dataset.samples.generators import generated
from dataset.samples.preference.prompts import equation


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    """All of them."""
    return list(generated("preference.sums"))


def sides_of(pair: dict[str, Any]) -> tuple[str, str]:
    """Both answers."""
    return pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]


def is_right(answer: str) -> bool:
    """Whether the equation of an answer is right."""
    found = equation(answer)
    assert found is not None
    a, sign, b, result = found
    return {"+": a + b, "-": a - b, "×": a * b, "÷": a / max(b, 1)}[sign] == result


def test_a_wrong_sum_has_the_right_numbers_and_a_wrong_result(pairs: list[dict[str, Any]]) -> None:
    for pair in pairs:
        chosen, rejected = sides_of(pair)
        assert is_right(chosen) and chosen != rejected
        if pair["kind"] == "wrong_sum":
            assert not is_right(rejected) or equation(chosen) != equation(rejected)


def test_an_other_sum_is_right_for_a_problem_that_nobody_asked(pairs: list[dict[str, Any]]) -> None:
    for pair in pairs:
        if pair["kind"] == "other_sum":
            chosen, rejected = map(equation, sides_of(pair))
            assert chosen is not None and rejected is not None and is_right(pair["rejected"][-1]["content"])
            assert chosen[1] == rejected[1] and (chosen[0] == rejected[0]) != (chosen[2] == rejected[2])


def test_length_tells_nothing(pairs: list[dict[str, Any]]) -> None:
    longer = [len(chosen) - len(rejected) for chosen, rejected in map(sides_of, pairs)]
    assert sum(difference != 0 for difference in longer) < 0.01 * len(pairs)


def test_there_are_more_than_500_held_out_pairs_in_each_half_about_problems_of_their_own(
    pairs: list[dict[str, Any]],
) -> None:
    counts = Counter(pair.get("split", "train") for pair in pairs)
    assert counts["validation"] > 500 and counts["test"] > 500 and counts["train"] > 7000
    clusters = {
        side: {pair["cluster"] for pair in pairs if pair.get("split", "train") == side}
        for side in ("train", "validation", "test")
    }
    sums = {side: {name for name in names if "," in name} for side, names in clusters.items()}
    assert not sums["train"] & (sums["validation"] | sums["test"]) and not sums["validation"] & sums["test"]
    assert all(pair["chosen"][0] == pair["rejected"][0] for pair in pairs)
