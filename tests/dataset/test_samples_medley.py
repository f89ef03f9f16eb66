"""Conversations of many subjects are made of training records alone."""

from collections import Counter

from dataset.samples import arithmetic, dialogue, identity, knowledge, medley

RECORDS = list(medley.records())


def turns_of(record: dict) -> list[tuple[str, str]]:
    """Question and answer of each turn."""
    contents = [message["content"] for message in record["conversations"]]
    return list(zip(contents[::2], contents[1::2], strict=True))


def test_every_turn_is_a_training_record_of_another_sample() -> None:
    known = {
        turn
        for module in (arithmetic, dialogue, identity, knowledge)
        for turn in medley.training_turns(module.records())
    }
    assert all(turn in known for record in RECORDS for turn in turns_of(record))


def test_no_turn_asks_a_held_out_question() -> None:
    heldout = {
        record["conversations"][0]["content"]
        for module in (arithmetic, identity, knowledge)
        for record in module.records()
        if record.get("split", "train") != "train"
    }
    assert heldout
    assert not heldout & {question for record in RECORDS for question, _ in turns_of(record)}


def test_roles_alternate_over_two_to_five_turns_and_all_are_for_training() -> None:
    for record in RECORDS:
        roles = [message["role"] for message in record["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert record["split"] == "train"
    assert set(Counter(len(turns_of(record)) for record in RECORDS)) == {2, 3, 4, 5}


def test_subjects_change_within_conversations() -> None:
    sums = {question for question, _ in medley.training_turns(arithmetic.records())}
    mixed = sum(1 for r in RECORDS if 0 < sum(q in sums for q, _ in turns_of(r)) < len(turns_of(r)))
    assert mixed > len(RECORDS) / 4


def test_the_conversations_are_the_same_each_time() -> None:
    assert list(medley.records()) == RECORDS
