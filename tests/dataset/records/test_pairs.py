"""Preference pairs: every shape that is accepted, and the fields beside the answers."""

from typing import Any

import pytest

from dataset.records.record import PreferenceRecord
from dataset.records.shapes import parse_record
from tests.dataset.records.conversations import ASSISTANT, LONG, USER


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "哼"}]},
        {"prompt": "你好", "chosen": "你好！", "rejected": "哼"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "哼"}]},
        {
            "conversations": [{"from": "human", "value": "你好"}],
            "chosen": {"from": "gpt", "value": "你好！"},
            "rejected": {"from": "gpt", "value": "哼"},
        },
    ],
)
def test_preference_pairs_become_two_conversations(fields: dict[str, Any]) -> None:
    record = parse_record(fields)
    assert isinstance(record, PreferenceRecord)
    assert record.chosen == [USER, ASSISTANT]
    assert record.rejected == [USER, {"role": "assistant", "content": "哼"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "礼貌", "history": [["早", "早！"]], "instruction": "你好", "chosen": "你好！", "rejected": "哼"},
        {
            "system": "礼貌",
            "history": [["早", "早！"]],
            "chosen": [USER, ASSISTANT],
            "rejected": [USER, {"role": "assistant", "content": "哼"}],
        },
        {
            "system": "礼貌",
            "history": [["早", "早！"]],
            "query": "你好",
            "response": "你好！",
            "rejected_response": "哼",
        },
        {
            "system": "礼貌",
            "history": [["早", "早！"]],
            "messages": [USER, ASSISTANT],
            "rejected_messages": [USER, {"role": "assistant", "content": "哼"}],
        },
        {
            "input": {"messages": [{"role": role, "content": said} for role, said in LONG[:-1]]},
            "preferred_output": [ASSISTANT],
            "non_preferred_output": [{"role": "assistant", "content": "哼"}],
        },
    ],
)
def test_pairs_keep_system_and_history(fields: dict[str, Any]) -> None:
    record = parse_record(fields)
    assert isinstance(record, PreferenceRecord)
    assert [(m["role"], m["content"]) for m in record.chosen] == LONG
    assert record.rejected == [*record.chosen[:-1], {"role": "assistant", "content": "哼"}]
    assert parse_record(record.fields) == record


def test_a_pair_asks_its_prompt_and_its_input() -> None:
    record = parse_record({"prompt": "翻译", "input": "cat", "chosen": "猫", "rejected": "狗"})
    assert isinstance(record, PreferenceRecord)
    assert record.chosen[0] == {"role": "user", "content": "翻译\ncat"}


def test_marks_around_the_answers_of_a_pair_go_and_are_counted() -> None:
    record = parse_record({"prompt": "问", "chosen": "好<|im_end|>", "rejected": "坏<|im_end|>"})
    assert isinstance(record, PreferenceRecord)
    assert (record.chosen[-1]["content"], record.rejected[-1]["content"], record.marks) == ("好", "坏", 2)
