"""The bundled identity and dialogue: right answers, clean sides, the same text every time."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dataset.samples import dialogue, identity

Record = dict[str, Any]
IDENTITY = list(identity.records())
DIALOGUE = list(dialogue.records())


def questions(record: Record) -> list[str]:
    return [turn["content"] for turn in record["conversations"] if turn["role"] == "user"]


def answers(record: Record) -> list[str]:
    return [turn["content"] for turn in record["conversations"] if turn["role"] == "assistant"]


def heldout(records: list[Record]) -> list[Record]:
    return [record for record in records if record.get("split") == "heldout"]


def training(records: list[Record]) -> list[Record]:
    return [record for record in records if "split" not in record]


def key_without_marks(text: str) -> str:
    return "".join(char for char in text.lower() if char.isalnum())


@pytest.mark.parametrize("generate", [identity.records, dialogue.records])
def test_two_runs_give_the_same_records(generate: Callable[[], Iterator[Record]]) -> None:
    assert list(generate()) == list(generate())


@pytest.mark.parametrize("records", [IDENTITY, DIALOGUE])
def test_roles_alternate_and_the_assistant_speaks_last(records: list[Record]) -> None:
    for record in records:
        roles = [turn["role"] for turn in record["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(turn["content"].strip() == turn["content"] != "" for turn in record["conversations"])
        assert not re.search(r"\{(?!\{)[a-z]+\}(?!\})", str([turn["content"] for turn in record["conversations"]]))
        assert record.get("split", "heldout") == "heldout"


# Identity


def test_the_identity_file_is_what_the_generator_writes() -> None:
    assert identity.SAMPLE_FILE.read_text(encoding="utf-8") == identity.sample_text()


def test_identity_reaches_its_counts() -> None:
    assert len(training(IDENTITY)) >= 420
    assert len(heldout(IDENTITY)) >= 240
    assert sum(len(questions(record)) > 1 for record in IDENTITY) >= 50


def test_no_identity_question_stands_on_both_sides() -> None:
    trained = {identity.normalised(question) for record in training(IDENTITY) for question in questions(record)}
    tested = {identity.normalised(question) for record in heldout(IDENTITY) for question in questions(record)}
    assert not trained & tested


def test_held_out_clauses_are_no_training_clauses_behind_another_greeting() -> None:
    topics = identity.topics()
    for topic in topics.values():
        trained = {key_without_marks(clause) for form in topic["training"].values() for clause in form}
        tested = {key_without_marks(clause) for form in topic["heldout"].values() for clause in form}
        assert not trained & tested


def test_every_identity_answer_names_the_model_and_the_maker_exactly_where_asked() -> None:
    with_maker = {topic["answer"] for name, topic in identity.topics().items() if name in identity.ABOUT_MAKER}
    for record in IDENTITY:
        for answer in answers(record):
            assert "{{name}}" in answer
            assert ("{{author}}" in answer) == (answer in with_maker)
        assert not any("{{" in question for question in questions(record))


# Dialogue


def test_dialogue_reaches_its_counts() -> None:
    rounds = Counter(len(questions(record)) for record in DIALOGUE)
    assert len(DIALOGUE) >= 4_000
    assert len({str(record) for record in DIALOGUE}) == len(DIALOGUE)
    assert len({key_without_marks(questions(record)[0]) for record in DIALOGUE}) >= 3_000
    assert rounds[2] + rounds[3] + rounds[4] >= 800
    assert set(rounds) == {1, 2, 3, 4}


def test_dialogue_never_names_the_model_or_its_maker() -> None:
    for record in DIALOGUE:
        assert not re.search(r"\{\{|minillm|语言模型|开发", " ".join(answers(record)).lower())


def test_dialogue_answers_are_short_whole_sentences() -> None:
    for record in DIALOGUE:
        for answer in answers(record):
            assert 8 <= len(answer) <= 80
            assert answer.endswith(("。", "！", "？", "”"))


def test_one_question_has_one_answer() -> None:
    first_answer: dict[str, str] = {}
    for record in DIALOGUE + IDENTITY:
        key = key_without_marks(questions(record)[0])
        assert first_answer.setdefault(key, answers(record)[0]) == answers(record)[0]


def test_dialogue_and_identity_ask_different_things() -> None:
    about_model = {key_without_marks(question) for record in IDENTITY for question in questions(record)}
    assert not about_model & {key_without_marks(questions(record)[0]) for record in DIALOGUE}
