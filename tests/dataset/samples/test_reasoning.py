"""The bundled reasoning: right steps, both forms of each problem, sides that share nothing."""

import re
from collections import Counter
from typing import Any

import pytest

from dataset.records.shapes import parse_record
from dataset.samples.arithmetic.problems import heldout_pairs
from dataset.samples.generators import generated
from dataset.samples.reasoning import questions as reasoning
from dataset.samples.reasoning.chains import worked
from dataset.samples.tables import yaml_table

Record = dict[str, Any]
ALL = list(reasoning.records())
RECORDS = [record for record in ALL if "kind" in record]
OTHERS = [record for record in ALL if "kind" not in record]
THINKING = [record for record in RECORDS if record["kind"] == "reasoning_thinking"]
SIDES = ("train", "validation", "test")
STEP = re.compile(r"(\d+)([-+×÷])(\d+)=(\d+)。")
NUMBER = re.compile(r"\d+")


def side_of(record: Record) -> str:
    return str(record.get("split", "train"))


def question(record: Record) -> str:
    return str(record["conversations"][0]["content"])


def answer(record: Record) -> Record:
    return dict(record["conversations"][1])


def test_each_problem_is_answered_with_a_thought_and_without() -> None:
    plain = [record for record in RECORDS if record["kind"] == "reasoning_plain"]
    assert len(plain) == len(THINKING) == len(RECORDS) // 2
    for one, other in zip(THINKING, plain, strict=True):
        assert question(one) == question(other) and answer(one)["content"] == answer(other)["content"]
        assert answer(other)["enable_thinking"] is False and "reasoning_content" not in answer(other)
        assert side_of(one) == side_of(other)


def test_thoughts_are_two_or_three_right_steps_and_the_answer_is_the_last_result() -> None:
    lengths = Counter()
    for record in THINKING:
        thought = answer(record)["reasoning_content"]
        steps = STEP.findall(thought)
        assert "".join(f"{a}{sign}{b}={c}。" for a, sign, b, c in steps) == thought
        for a, sign, b, c in steps:
            a, b, c = int(a), int(b), int(c)
            assert {"+": a + b, "-": a - b, "×": a * b, "÷": a / b}[sign] == c and 0 < c <= 100
        assert NUMBER.findall(answer(record)["content"]) == [steps[-1][3]]
        lengths[len(steps)] += 1
    assert set(lengths) == {2, 3} and min(lengths.values()) > len(THINKING) / 3


def problem_of(record: Record) -> tuple[list[int], list[str]]:
    """The numbers and signs of a problem, sorted, read from its thought: what no step gives."""
    steps = STEP.findall(answer(record)["reasoning_content"])
    numbers = Counter(int(number) for step in steps for number in (step[0], step[2]))
    numbers.subtract(int(step[3]) for step in steps[:-1])
    return sorted(numbers.elements()), sorted(step[1] for step in steps)


def test_no_side_has_a_problem_or_a_question_of_another() -> None:
    sides: dict[str, str] = {}
    for record in THINKING:
        for key in (question(record), str(problem_of(record))):
            assert sides.setdefault(key, side_of(record)) == side_of(record)
        if side_of(record) != "train":
            numbers, signs = problem_of(record)
            assert record["cluster"] == f"chain {' '.join(map(str, numbers))} {''.join(signs)}"
    counts = Counter(map(side_of, THINKING))
    assert counts["test"] >= 500 and counts["train"] >= 10_000 and counts["validation"] >= 100
    assert len({record["cluster"] for record in THINKING if side_of(record) == "test"}) >= 500


def test_the_key_of_a_problem_forgets_the_order_of_its_numbers_and_signs() -> None:
    chains = [worked(numbers, signs) for numbers, signs in (((9, 7, 5), "+-"), ((7, 9, 5), "+-"), ((9, 5, 7), "-+"))]
    other = worked((9, 7, 4), "+-")
    assert {chain.key for chain in chains if chain} == {"chain 5 7 9 +-"} and all(chains)
    assert other is not None and other.key == "chain 4 7 9 +-"


def test_no_step_of_training_is_held_out_by_the_arithmetic() -> None:
    held_out = heldout_pairs()
    for record in THINKING:
        for a, sign, b, _ in STEP.findall(answer(record)["reasoning_content"]):
            assert sign in "×÷" or (min(int(a), int(b)), max(int(a), int(b))) not in held_out


@pytest.mark.parametrize(
    ("numbers", "signs", "thought"),
    [
        ((12, 7, 5), "+-", "12+7=19。19-5=14。"),
        ((3, 4, 5), "×+", "3×4=12。12+5=17。"),
        ((5, 3, 4), "+×", "3×4=12。5+12=17。"),
        ((3, 2, 5, 1), "×+×", "3×2=6。5×1=5。6+5=11。"),
        ((12, 4, 2), "÷+", "12÷4=3。3+2=5。"),
    ],
)
def test_products_come_first_and_then_it_goes_from_left_to_right(
    numbers: tuple[int, ...], signs: str, thought: str
) -> None:
    chain = worked(numbers, signs)
    assert chain is not None and chain.thought == thought
    assert chain.goes_in_order is ("×" not in signs[1:])


@pytest.mark.parametrize(
    ("numbers", "signs"), [((5, 7, 9), "-+"), ((60, 60, 9), "+-"), ((13, 4, 1), "÷+"), ((12, 9, 1), "×+")]
)
def test_a_chain_with_a_step_that_the_start_has_not_learnt_is_none(numbers: tuple[int, ...], signs: str) -> None:
    assert worked(numbers, signs) is None


def test_wordings_stand_on_one_side_only() -> None:
    for table in yaml_table(reasoning.WORDINGS_FILE).values():
        assert tuple(table) == SIDES
        for part in ("first", "asks"):
            told = [wording for side in SIDES for wording in {wording[part] for wording in table[side]}]
            assert len(set(told)) == len(told)


def test_other_questions_have_both_forms_and_a_short_thought() -> None:
    assert len(OTHERS) == 2 * sum(count for _, count in reasoning.OTHERS.values())
    thoughts: Counter[bool] = Counter()
    for one, other in zip(OTHERS[::2], OTHERS[1::2], strict=True):
        assert question(one) == question(other) and answer(one)["content"] == answer(other)["content"]
        assert answer(other)["enable_thinking"] is False and "split" not in one and "{{" not in str(one)
        assert answer(one)["enable_thinking"] is True  # so that nothing teaches the model to begin it
        thought = answer(one)["reasoning_content"]
        assert thought == reasoning.NOTHING_TO_WORK_OUT or thought[:-1] in answer(one)["content"]
        thoughts[thought == reasoning.NOTHING_TO_WORK_OUT] += 1
    assert thoughts[False] > 500 and thoughts[True] > 1000
    held_out = {question(record) for name in reasoning.OTHERS for record in generated(name) if "split" in record}
    assert not held_out & set(map(question, OTHERS))


def test_records_are_read_as_they_are() -> None:
    for record in [*RECORDS[:50], *OTHERS[:50]]:
        parsed = parse_record(record)
        assert parsed.fields["conversations"] == record["conversations"]
