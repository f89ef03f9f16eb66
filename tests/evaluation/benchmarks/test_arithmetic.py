"""evaluation/benchmarks/arithmetic.py: the strict last number, and rules that do not read."""

from fractions import Fraction

import pytest

from evaluation.benchmarks.arithmetic import (
    by_keyword,
    difference_of_two,
    is_right,
    numbers_in,
    rule_outcomes,
    sum_of_two,
)
from evaluation.benchmarks.items import Item


@pytest.mark.parametrize(
    ("golden", "answer", "right"),
    [
        ("9", "99-90=9页", True),
        ("9", "答案是9，因为99-90", False),
        ("9", "９", True),
        ("9", "", False),
        ("9", "九", False),
        ("0.5", "1/2", True),
        ("2/6", "1/3", True),
        ("12%", "0.12", True),
        ("1234", "1,234元", True),
        ("9", "9.0", True),
        ("9", "1/0", False),
    ],
)
def test_the_last_number_alone_decides(golden: str, answer: str, right: bool) -> None:
    assert is_right(golden, answer) is right


def test_numbers_are_found_in_their_order() -> None:
    assert numbers_in("有3个，给了1/2，再加20%") == [Fraction(3), Fraction(1, 2), Fraction(1, 5)]


def test_the_rules_take_the_first_two_numbers() -> None:
    question = "有3个苹果和5个梨，还有7个桃"
    assert sum_of_two(question) == 8
    assert difference_of_two(question) == 2
    assert by_keyword(question) == 2
    assert by_keyword(question + "，一共几个？") == 8
    assert sum_of_two("有3个") is None


def test_the_commonest_answer_is_that_of_each_grade() -> None:
    items = [
        Item(f"grade {grade}", "有1个和2个，一共几个", golden=golden)
        for grade, golden in [(1, "3"), (1, "3"), (1, "4"), (2, "5")]
    ]
    outcomes = rule_outcomes(items)
    assert outcomes["commonest"] == [1, 1, 0, 1]
    assert outcomes["keyword"] == outcomes["sum"] == [1, 1, 0, 0]
    assert outcomes["difference"] == [0, 0, 0, 0]
