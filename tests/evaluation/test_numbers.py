"""The numbers that a text ends with, as a person reads them."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.answers import AnswerRule, Said, is_right
from evaluation.numbers import chinese_number, result_of, same_result
from evaluation.questions import Question

SAME = [
    ("一共1,234元。", "一共1234元。"), ("1，234", "1234"), ("1,234,567.80", "1234567.8"), ("0.50", "0.5"), ("12.0", "12"),
    ("十二", "12"), ("十二", "一共十二个"), ("二十", "20"), ("一百零五", "105"), ("两百", "200"), ("三千五", "3500"),
    ("一万二", "12000"), ("二〇二六", "2026"), ("一亿二千万", "120000000"), ("三万五千", "35000"), ("一点五", "1.5"),
    ("负五", "-5"), ("负5", "-5"), ("零下5度", "-5"), ("−5", "-5"), ("答案是3/4。", "3/4"), ("四分之三", "3/4"),
    ("6/8", "3/4"), ("0.75", "3/4"), ("½", "1/2"), ("1½", "3/2"), ("1又1/2", "1.5"), ("50%", "0.5"), ("百分之五十", "50%"),
    ("50％", "1/2"), ("3+4=7。", "等于7"), ("8-3=5", "5"), ("三加四等于七", "7"), ("3+4=七", "7"), ("12-5=7，还剩7个。", "7"),
    ("x=5，y=3。", "y=3，x=5"), ("x=5", "5"), ("x=5或x=-5", "x=-5，x=5"), ("3~5个", "3到5个"), ("3-5", "三至五"),
    ("12平方米（单位：m2）", "12"), ("12cm³", "12"), ("12m²", "12m^2"), ("CO2有3种原子", "3"), ("13÷4=3……1", "3余1"),
    ("商是3，余数是1", "3余1"), ("3小时20分", "3时20分"), ("10³", "1000"), ("1.2×10^5", "120000"), ("3万", "30000"),
    ("1.2亿", "120000000"), ("5千克", "5"), ("１２", "12"), ("答案是：-5", "-5"), ("我一共有五个", "5"), ("3*4=12", "十二"),
    ("0.1+0.2=0.3", "3/10"), ("它有十分好看的3朵", "3"), ("3.", "3"), ("第1题的答案是8", "8"), ("7", "a=3，b=4，所以a+b=7"),
]  # fmt: skip
OTHER = [
    ("一共1,234元。", "一共9,234元。"), ("1,234", "234"), ("答案是3/4。", "答案是1/4。"), ("3/4", "4"),
    ("x=5，y=3。", "x=9，y=3。"), ("x=5，y=3", "y=5，x=3"), ("x=5，y=3", "3"),
    ("答：12平方米（单位：m2）", "答：99平方米（单位：m2）"), ("共3-5个", "5"),
    ("共3-5个", "-5"), ("共3-5个", "2-5个"), ("5", "-5"), ("3余1", "5余1"), ("3余1", "1"), ("3小时20分", "5小时20分"),
    ("50%", "50"), ("1.5", "15"), ("7", "3+4"), ("4", "0+4"), ("3", "6-3"), ("3", "9÷3"), ("4", "12/3"), ("4", "3+4="),
    ("4", "3加4等于"), ("12", "m12"), ("7", "不知道"), ("7", ""), ("2", "H2O"), ("10", "10^2"), ("3", "星期三"), ("1", "一样"),
    ("1", "第一"), ("一百二", "102"), ("十二", "二十"), ("3:30", "5:30"), ("2", "m2"), ("0", "1/0"), ("100,200", "200"),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "said"), SAME)
def test_equal_results_agree_however_they_are_written(expected: str, said: str) -> None:
    assert same_result(expected, said)
    assert is_right(Question([], expected, "math"), said, ("MiniLLM", "x"))


def test_several_variables_are_all_asked_for_where_the_expected_answer_has_them_alone() -> None:
    working = "a=3，b=4，所以a+b=7"
    assert same_result("7", working)
    assert same_result(working, working)
    assert not same_result(working, "7")
    assert not same_result("a=3，b=5", working)


@pytest.mark.parametrize(("expected", "said"), OTHER)
def test_other_results_do_not_agree(expected: str, said: str) -> None:
    assert not same_result(expected, said)
    assert not is_right(Question([], expected, "math"), said, ("MiniLLM", "x"))


@pytest.mark.parametrize(
    "text", ["十二", "没有数。", "3-5", "x=5，y=3。", "3+4", "答：（m2）", "三加四", "1.5", "？！", "12/3"]
)
def test_equal_texts_are_always_right(text: str) -> None:
    if text != "？！":
        assert is_right(Question([], text, "math"), text, ("MiniLLM", "x"))


@pytest.mark.parametrize(
    ("expected", "said", "right"),
    [
        ("1.5", "15", False),
        ("3-5", "35", False),
        ("-5", "5", False),
        ("1/4", "14", False),
        ("50%", "50", False),
        ("12:30", "1230", False),
        ("3 + 4 = 7。", "3+4=7", True),
    ],
)
def test_marks_inside_numbers_are_no_punctuation(expected: str, said: str, right: bool) -> None:
    assert is_right(Question([], expected, "math"), said, ("MiniLLM", "x")) is right
    assert is_right(Question([], expected, "knowledge"), said, ("MiniLLM", "x")) is right


def test_the_thing_counted_must_occur() -> None:
    question = Question([], "5+2=7，小明有7个苹果。", "math", "word", counted=("苹果",))
    rule = AnswerRule(question, ("MiniLLM", "x"))
    assert rule.broken(Said("一共7个苹果。")) == ""
    assert rule.broken(Said("5+2=7，小明有7个面包。")) == "does not speak of 苹果"
    assert rule.broken(Said("5+2=8，小明有8个苹果。")) == "another number"
    assert rule.broken(Said("苹果。")) == "no number"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("零", 0),
        ("十", 10),
        ("十五", 15),
        ("一百", 100),
        ("一百一十", 110),
        ("一百二", 120),
        ("三百零五", 305),
        ("两千", 2000),
        ("一万零三", 10003),
        ("十万", 100000),
        ("一百万", 10**6),
        ("三亿", 3 * 10**8),
        ("一九四九", 1949),
        ("九十九", 99),
    ],
)
def test_chinese_numerals(text: str, value: int) -> None:
    assert chinese_number(text) == value


def spoken(number: int) -> str:
    """A number below 10,000 as a person says it."""
    text, zero = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            text += ("零" if zero else "") + "零一二三四五六七八九"[digit] + name
            zero = False
        elif text:
            zero = True
    return (text or "零").removeprefix("一") if 10 <= number < 20 else text or "零"


def test_every_number_is_read_as_it_is_spoken() -> None:
    for number in range(10_000):
        assert chinese_number(spoken(number)) == number, spoken(number)


SOME = st.text(
    alphabet="0123456789.,，/%-+=×÷^²³½ 一二三十百千万亿点分之负余…~到至是为等于得xym个元小时:：（）", max_size=30
)


@settings(deadline=None)
@given(st.one_of(st.text(), SOME), st.one_of(st.text(), SOME))
def test_no_text_breaks_the_reading_and_each_agrees_with_itself(one: str, other: str) -> None:
    assert same_result(one, other) in {True, False}
    assert same_result(one, one) == (result_of(one) is not None)
    if Said(one).plain:
        assert is_right(Question([], one, "math"), one, ("MiniLLM", "x"))


@settings(deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(0, 10**6))
def test_each_way_to_write_a_number_gives_that_number(whole: int, part: int) -> None:
    for text in (f"{whole}", f"{whole:,}", f"答案是{whole}。", f"{whole}.0", f"x+1={whole}"):
        assert result_of(text) == ("number", Fraction(whole)), text
    text = f"{abs(whole)}.{part:06d}"
    assert result_of(text) == ("number", Fraction(text))
