"""Conversations: the fields beside the turns, and which turns have targets."""

from typing import Any

import pytest

from dataset.records.record import ChatRecord, LeftOut
from dataset.records.shapes import parse_record
from tests.dataset.records.conversations import ASSISTANT, LONG, USER, turns


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "礼貌", "history": [["早", "早！"]], "instruction": "你好", "output": "你好！"},
        {"system_prompt": "礼貌", "history": '[["早", "早！"]]', "query": "你好", "response": "你好！"},
        {
            "system": "礼貌",
            "history": [{"role": "user", "content": "早"}, {"role": "assistant", "content": "早！"}],
            "prompt": "你好",
            "completion": "你好！",
        },
        {"system": "礼貌", "history": [["早", "早！"]], "messages": [USER, ASSISTANT]},
        {"conversation": [{"system": "礼貌", "input": "早", "output": "早！"}, {"input": "你好", "output": "你好！"}]},
        {
            "system": "礼貌",
            "conversation": [{"human": "早", "assistant": "早！"}, {"human": "你好", "assistant": "你好！"}],
        },
        {"system": "礼貌", "instruction": "Human:早\nAssistant:早！\nHuman:你好\nAssistant:", "output": "你好！"},
        {
            "meta_instruction": "礼貌",
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: 早<eoh>\n",
                    "MOSS": "<|MOSS|>: 早！<eom>\n",
                    "Commands": "<|Commands|>: None<eoc>",
                },
                "turn_2": {"Human": "<|Human|>: 你好<eoh>", "MOSS": "<|MOSS|>: 你好！<eom>"},
            },
        },
        {
            "messages": [
                {"role": "System", "content": "礼貌"},
                {"role": "用户", "content": [{"type": "text", "text": "早"}]},
                {"role": "chatgpt", "content": ["早", "！"]},
                {"role": " User ", "content": "你好"},
                {"role": "助手", "content": "你好！"},
            ]
        },
    ],
)
def test_history_and_system_become_turns_whatever_their_shape(fields: dict[str, Any]) -> None:
    record = parse_record(fields)
    assert turns(record) == LONG
    assert parse_record(record.fields) == record


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"loss": False},
        {"train": False},
        {"training": "false"},
        {"weight": 1, "loss": 0},
    ],
)
def test_a_turn_marked_so_is_context_alone(mark: dict[str, Any]) -> None:
    wrong = {"role": "assistant", "content": "错的", **mark}
    record = parse_record({"messages": [USER, wrong, USER, {**ASSISTANT, "weight": 1, "loss": True}]})
    assert isinstance(record, ChatRecord)
    assert record.messages == [USER, {"role": "assistant", "content": "错的", "loss": False}, USER, ASSISTANT]
    assert "错的" not in record.plain_text()
    assert parse_record(record.fields) == record
    last = parse_record({"messages": [USER, ASSISTANT, USER, wrong]})
    assert isinstance(last, ChatRecord)
    assert last.messages == [USER, ASSISTANT]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": [USER, ASSISTANT], "label": False}, "label is false"),
        ({"prompt": "问", "completion": "答", "label": "False"}, "label is false"),
        ({"instruction": "问", "output": "答", "kto_tag": 0}, "kto_tag is false"),
        ({"question": "问？", "A": "一", "B": "二", "answer": "A", "label": False}, "label is false"),
        ({"messages": [USER, ASSISTANT], "train": False}, "train is false"),
        ({"messages": [USER, ASSISTANT], "weight": 0}, "weight is false"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "all answers are marked as not to be learnt"),
    ],
)
def test_a_record_that_is_marked_as_not_for_training_is_left_out(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(LeftOut, match=expected):
        parse_record(fields)


def test_labels_that_are_no_judgement_decide_nothing() -> None:
    for label in (True, 0, 1, "消极", None):
        assert turns(parse_record({"messages": [USER, ASSISTANT], "label": label})) == [
            ("user", "你好"),
            ("assistant", "你好！"),
        ]


def test_what_a_user_says_last_without_an_answer_is_left_out() -> None:
    assert turns(parse_record({"conversations": [USER, ASSISTANT, USER]})) == [
        ("user", "你好"),
        ("assistant", "你好！"),
    ]
