"""The set lora_identity: the new names alone, and held-out wordings that nothing has trained on."""

from collections import Counter
from typing import Any

import pytest

from dataset.records.keys import normalised_question
from dataset.samples.adapters import identity
from dataset.samples.identity import questions

RECORDS = list(identity.records())


def asked(records: list[dict[str, Any]]) -> list[str]:
    """What their users say, normalised."""
    return [normalised_question(record["conversations"][0]["content"]) for record in records]


def of_side(side: str) -> list[dict[str, Any]]:
    return [record for record in RECORDS if record.get("split", "training") == side]


def test_each_answer_names_the_new_model_or_its_author() -> None:
    for record in RECORDS:
        texts = [turn["content"] for turn in record["conversations"]] + record.get("accepted", [])
        assert identity.NAME in texts[1] or identity.AUTHOR in texts[1]
        assert not any("{" in text or "MiniLLM" in text for text in texts)
        assert record["category"] == "identity"


def test_there_are_at_least_500_test_questions_of_many_clauses() -> None:
    assert len(of_side("test")) >= 500
    assert len({record["cluster"] for record in of_side("test")}) >= 100
    assert 500 <= len(of_side("training")) <= 2_000
    topics = Counter(record["topic"] for record in of_side("test"))
    assert (
        set(topics) == {topic.name for topic in identity.naming_topics()} == {r["topic"] for r in of_side("training")}
    )


def test_no_question_is_asked_twice_in_the_set() -> None:
    assert max(Counter(asked(RECORDS)).values()) == 1


@pytest.mark.parametrize("side", ["validation", "test"])
def test_weights_trained_on_the_mix_have_not_seen_the_held_out_wordings(side: str) -> None:
    trained = [identity.filled(record) for record in questions.records() if "split" not in record]
    turns = {
        normalised_question(turn["content"])
        for record in trained
        for turn in record["conversations"]
        if turn["role"] == "user"
    }
    assert not turns & set(asked(of_side(side)))
