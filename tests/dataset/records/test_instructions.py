"""A question and its answer in separate columns."""

from typing import Any

import pytest

from dataset.records.record import ChatRecord
from dataset.records.shapes import parse_record
from tests.dataset.records.conversations import ASSISTANT, USER, turns


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"instruction": "翻译", "input": "cat", "output": "猫"}, [("user", "翻译\ncat"), ("assistant", "猫")]),
        (
            {"instruction": "翻译", "input": "", "output": "猫", "text": "问：翻译 答：猫"},
            [("user", "翻译"), ("assistant", "猫")],
        ),
        (
            {"instruction": "再见", "output": "再会", "history": [["你好", "您好"]], "system": "礼貌"},
            [("system", "礼貌"), ("user", "你好"), ("assistant", "您好"), ("user", "再见"), ("assistant", "再会")],
        ),
        ({"prompt": "一加一", "response": "二"}, [("user", "一加一"), ("assistant", "二")]),
        ({"input": "还剩几页？", "golden": "9", "grade": 1}, [("user", "还剩几页？"), ("assistant", "9")]),
    ],
)
def test_instructions_become_conversations(fields: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    record = parse_record(fields)
    assert turns(record) == expected
    assert record.fields.items() >= fields.items()


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        ({"context": "材料。", "question": "问？", "answer": "答"}, "材料。\n问？"),
        ({"instruction": "据材料答", "context": "材料。", "response": "答"}, "据材料答\n材料。"),
        ({"prompt": "你是导游：", "query": "门在哪", "response": "答"}, "你是导游：\n门在哪"),
        ({"instruction": "用一句话答", "question": "门在哪", "answer": "答"}, "用一句话答\n门在哪"),
        ({"instruction": "一", "input": "三", "context": ["二", "二半"], "output": "答"}, "一\n二\n二半\n三"),
        ({"instruction": "同", "prompt": "同", "output": "答"}, "同"),
        ({"text": "材料。", "question": "问？", "answer": "答"}, "材料。\n问？"),
        ({"kind": "翻译", "input": "猫", "target": "答"}, "猫"),
        ({"问题": "问？", "回答": "答"}, "问？"),
    ],
)
def test_every_part_of_a_question_is_in_it(fields: dict[str, Any], question: str) -> None:
    record = parse_record(fields)
    assert turns(record) == [("user", question), ("assistant", "答")]
    assert parse_record(record.fields) == record


def test_trl_prompt_and_completion_learn_the_completion_alone() -> None:
    record = parse_record({"prompt": [USER, ASSISTANT, {"role": "user", "content": "再见"}], "completion": [ASSISTANT]})
    assert isinstance(record, ChatRecord)
    assert [m.get("loss", True) for m in record.messages if m["role"] == "assistant"] == [False, True]
