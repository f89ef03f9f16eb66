"""What must be true of the bundled requests that no such model can fulfil."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from dataset.samples.limits import questions as limits
from dataset.samples.unknown import questions as unknown
from dataset.samples.unknown.questions import normalised

PARTS = ("ask", *limits.HALVES)


@cache
def all_records() -> list[dict[str, Any]]:
    return list(limits.records())


def question(record: dict[str, Any]) -> str:
    return str(record["conversations"][0]["content"])


def test_every_answer_has_many_wordings_and_as_many_held_out_in_each_half() -> None:
    assert len(limits.answers()) >= 20
    for name in limits.answers():
        assert len(limits.wordings(name)) >= 60, name
        for half in limits.HALVES:
            assert len(limits.wordings(name, half)) >= 2, name


def test_no_wording_stands_twice_in_one_part_or_in_two() -> None:
    found = Counter(
        normalised(wording) for name in limits.answers() for part in PARTS for wording in limits.wordings(name, part)
    )
    assert [wording for wording, count in found.items() if count > 1] == []


def test_heldout_wordings_are_far_from_those_of_training() -> None:
    """They share less than 80% of their character pairs, so another particle is not enough."""

    def pairs(text: str) -> set[str]:
        return {text[i : i + 2] for i in range(len(text) - 1)}

    training = [pairs(normalised(way)) for name in limits.answers() for way in limits.wordings(name)]
    for name in limits.answers():
        for half in limits.HALVES:
            for way in limits.wordings(name, half):
                own = pairs(normalised(way))
                nearest = max(len(own & other) / len(own | other) for other in training)
                assert nearest <= 0.6, (way, nearest)


def test_answers_are_short_honest_sentences() -> None:
    for answer in limits.answers().values():
        assert len(answer) <= 30 and answer.endswith("。")
        assert "我" in answer
    assert len(set(limits.answers().values())) == len(limits.answers())


def test_every_answer_is_trained_on_and_held_out() -> None:
    training = Counter(record["cluster"] for record in all_records() if "split" not in record)
    assert sum(training.values()) >= 2400
    for name in limits.answers():
        assert training[f"limits:{name}"] >= limits.NUM_TRAINING
        for half in limits.HALVES:
            own = [r for r in all_records() if r["cluster"] == f"limits:{name}" and r.get("split") == half]
            assert len(own) == len(limits.wordings(name, half))
    for record in all_records():
        name = record["cluster"].removeprefix("limits:")
        assert record["kind"] == "limits"
        assert record["conversations"][-1]["content"] == limits.answers()[name]


def test_every_training_wording_is_used_and_every_slot_is_filled() -> None:
    asked = "|".join(normalised(question(record)) for record in all_records() if "split" not in record)
    for name in limits.answers():
        for way in limits.wordings(name):
            if "{" not in way:
                assert normalised(way) in asked, way
    assert all("{" not in question(record) for record in all_records())


def test_no_record_is_there_twice() -> None:
    asked = Counter(question(record) for record in all_records())
    assert [text for text, count in asked.items() if count > 1] == []


def test_nothing_is_asked_that_is_answered_as_unknown() -> None:
    elsewhere = {normalised(question(record)) for record in unknown.records()}
    assert not elsewhere & {normalised(question(record)) for record in all_records()}


def test_the_records_come_out_the_same_every_time() -> None:
    assert list(limits.records()) == list(limits.records())
