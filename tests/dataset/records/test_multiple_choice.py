"""Multiple choice becomes a question and its answer."""

from typing import Any

import pytest

from dataset.records.shapes import parse_record
from tests.dataset.records.conversations import turns


@pytest.mark.parametrize(
    "fields",
    [
        {"Question": "哪个最大？", "A": "一", "B": "二", "C": "三", "D": "四", "Answer": "B"},
        {"question": "哪个最大？", "A": "一", "B": "二", "C": "三", "D": "四", "answer": "b"},
        {"question": "哪个最大？", "choice": ["一", "二", "三", "四"], "answer": "二"},
        {"question": "哪个最大？", "options": ["(A)一", "(B)二", "(C)三", "(D)四"], "label": "B", "answer": None},
        {"question": "哪个最大？", "choices": {"A": "一", "B": "二", "C": "三", "D": "四"}, "answer": ["B"]},
        {"question": "哪个最大？", "options": ["一", "二", "三", "四"], "label": 1},
    ],
)
def test_multiple_choice_becomes_question_and_answer(fields: dict[str, Any]) -> None:
    expected = [("user", "哪个最大？\nA. 一\nB. 二\nC. 三\nD. 四"), ("assistant", "答案：B。二")]
    assert turns(parse_record(fields)) == expected


def test_multiple_choice_puts_its_passage_first() -> None:
    record = parse_record({"context": "短文。", "question": "问？", "choice": ["甲", "乙"], "answer": "乙"})
    assert turns(record)[0] == ("user", "短文。\n问？\nA. 甲\nB. 乙")
