"""The bundled arithmetic and identity: right answers, clean sides, the same text every time."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dataset.samples import arithmetic, identity

Record = dict[str, Any]
ARITHMETIC = list(arithmetic.records())
IDENTITY = list(identity.records())
EQUATION = re.compile(r"(\d+)([+-])(\d+)=(\d+)")


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


@pytest.mark.parametrize("generate", [arithmetic.records, identity.records])
def test_two_runs_give_the_same_records(generate: Callable[[], Iterator[Record]]) -> None:
    assert list(generate()) == list(generate())


@pytest.mark.parametrize("records", [ARITHMETIC, IDENTITY])
def test_roles_alternate_and_the_assistant_speaks_last(records: list[Record]) -> None:
    for record in records:
        roles = [turn["role"] for turn in record["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(turn["content"].strip() == turn["content"] != "" for turn in record["conversations"])
        assert not re.search(r"\{(?!\{)[a-z]+\}(?!\})", str([turn["content"] for turn in record["conversations"]]))
        assert record.get("split", "heldout") == "heldout"


# Arithmetic


def test_every_equation_is_right_and_within_0_to_100() -> None:
    for record in ARITHMETIC:
        (answer,) = answers(record)
        equations = EQUATION.findall(answer)
        assert len(equations) == 1
        a, sign, b, result = equations[0]
        assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
        assert all(0 <= int(number) <= 100 for number in (a, b, result))
        assert re.findall(r"\d+", answer)[-1] == result


def test_the_question_holds_the_operands_in_the_order_of_the_answer() -> None:
    for record in ARITHMETIC:
        (question,), (answer,) = questions(record), answers(record)
        a, _, b, _ = EQUATION.findall(answer)[0]
        assert re.findall(r"\d+", question) == [a, b]
        low, high = sorted((int(a), int(b)))
        assert record["group"] == f"arithmetic:{low:03d},{high:03d}"


def test_a_pair_of_operands_stays_on_one_side() -> None:
    sides = {record["group"]: record.get("split") for record in ARITHMETIC}
    assert all(record.get("split") == sides[record["group"]] for record in ARITHMETIC)
    assert sum(side == "heldout" for side in sides.values()) >= len(sides) / 5


def test_every_problem_is_asked_twice_in_training_or_once_held_out() -> None:
    plain = [record for record in ARITHMETIC if record["kind"] == "plain"]
    times = Counter(answers(record)[0] for record in plain)
    sides = {answers(record)[0]: record.get("split") for record in plain}
    assert len(times) == len(arithmetic.problems()) == 2 * 5151
    assert all(count == (1 if sides[answer] == "heldout" else 2) for answer, count in times.items())
    assert len(training(plain)) >= 15_500 and len(heldout(plain)) >= 2_000


def test_word_problems_reach_their_counts_in_at_least_25_scenes() -> None:
    word = [record for record in ARITHMETIC if record["kind"] == "word"]
    assert len(training(word)) == arithmetic.NUM_WORD_TRAINING
    assert len(heldout(word)) == arithmetic.NUM_WORD_HELDOUT
    assert len(arithmetic.scenes()) >= 25
    assert {record["kind"] for record in ARITHMETIC} == {"plain", "word"}


def test_no_arithmetic_question_stands_twice() -> None:
    asked = Counter(questions(record)[0] for record in ARITHMETIC)
    assert max(asked.values()) == 1


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
