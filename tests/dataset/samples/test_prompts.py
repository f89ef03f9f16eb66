"""The bundled prompts: no key on two sides, and nothing that the model has learnt before."""

from typing import Any

import pytest

from dataset.samples.arithmetic.problems import LIMIT
from dataset.samples.prompts import sentences, sums


def sides(generator: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {"lessons": list(generator.lessons())}
    for record in generator.records():
        found.setdefault(record.get("split", "train"), []).append(record)
    return found


@pytest.mark.parametrize("generator", [sums, sentences])
def test_no_key_stands_on_two_sides(generator: Any) -> None:
    found = sides(generator)
    assert {side: len(records) for side, records in found.items()} == {
        "lessons": generator.NUM_LESSONS,
        **generator.NUM_PROMPTS,
    }
    seen: set[str] = set()
    for records in found.values():
        keys = {record["cluster"] for record in records}
        assert not keys & seen
        seen |= keys


@pytest.mark.parametrize("generator", [sums, sentences])
def test_no_question_comes_twice(generator: Any) -> None:
    asked = [r["conversations"][0]["content"] for records in sides(generator).values() for r in records]
    assert len(set(asked)) == len(asked)


def test_a_sum_has_a_number_that_the_bundled_arithmetic_does_not_have() -> None:
    for records in sides(sums).values():
        for record in records:
            small, large = map(int, record["cluster"].split())
            assert 0 <= small <= large <= sums.LARGEST and large > LIMIT


@pytest.mark.parametrize("generator", [sums, sentences])
def test_the_prompts_are_the_same_in_each_process(generator: Any) -> None:
    assert list(generator.records())[:50] == list(generator.records())[:50]
