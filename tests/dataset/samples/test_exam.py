"""The bundled samples leave out all questions of the exam of the first minutes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.records.keys import normalised_question
from dataset.samples.exam import MOST_ALIKE, Exam, trigrams

EXAM = Exam([["法国的首都是哪里？"], ["7*8"], ["我叫小明", "我叫什么？"]])


@pytest.mark.parametrize(
    "turns",
    [
        ["法国的首都是哪里？"],
        ["  法国的首都是哪里 "],
        ["你好", "法国的首都是哪里！"],
        ["７*８"],
        ["我叫小明。", "我叫什么"],
        ["你好", "我叫小明", "我叫什么呢"],
    ],
)
def test_the_same_question_in_other_clothes_is_found(turns: list[str]) -> None:
    assert EXAM.asks(turns)


@pytest.mark.parametrize(
    "turns", [["德国的首都是哪里？"], ["78"], ["7*9"], ["我叫小明"], ["我叫什么？"], [], ["法国"], ["法国的首都在哪？"]]
)
def test_another_question_is_not(turns: list[str]) -> None:
    assert not EXAM.asks(turns)


@given(
    st.lists(st.text("我你法国首都是哪里", min_size=1, max_size=12), min_size=1, max_size=8),
    st.text("我你法国首都", min_size=1),
)
def test_it_finds_what_a_comparison_with_each_question_finds(questions: list[str], asked: str) -> None:
    def alike(one: str, other: str) -> bool:
        a, b = trigrams(normalised_question(one)), trigrams(normalised_question(other))
        return one == other or len(a & b) > MOST_ALIKE * len(a | b)

    assert Exam([[question] for question in questions]).asks([asked]) == any(alike(q, asked) for q in questions)
