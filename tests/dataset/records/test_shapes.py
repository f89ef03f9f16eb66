"""The record shapes: what is accepted, what it becomes, what is refused and why."""

import json
from typing import Any

import pytest

from dataset.records.record import BadRecord, ChatRecord, TextRecord
from dataset.records.shapes import parse_record
from tests.dataset.records.conversations import ASSISTANT, USER, turns

CALL = {"name": "add", "arguments": {"a": 1}}


def reason(fields: dict[str, Any]) -> str:
    with pytest.raises(BadRecord) as error:
        parse_record(fields)
    return str(error.value)


def test_raw_text_keeps_its_own_fields() -> None:
    record = parse_record({"text": "一段话。", "id": 7})
    assert isinstance(record, TextRecord)
    assert (record.text, record.fields) == ("一段话。", {"text": "一段话。", "id": 7})


def test_minimind_conversations_keep_system_tool_and_reasoning_fields() -> None:
    conversation = [
        {"role": "system", "content": "", "tools": json.dumps([CALL]), "reasoning_content": ""},
        {"role": "user", "content": "算", "tools": None},
        {"role": "assistant", "content": None, "reasoning_content": "想", "tool_calls": json.dumps([CALL])},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "得2"},
    ]
    record = parse_record({"conversations": conversation, "lang": "zh"})
    assert isinstance(record, ChatRecord)
    assert record.fields["lang"] == "zh"
    assert record.messages == [
        {"role": "system", "content": "", "tools": [CALL]},
        {"role": "user", "content": "算"},
        {"role": "assistant", "content": "", "reasoning_content": "想", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "得2"},
    ]
    assert record.plain_text() == "算\n得2"


def test_sharegpt_becomes_role_and_content() -> None:
    record = parse_record(
        {
            "system": "简短",
            "conversations": [
                {"from": "human", "value": "算"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "得2"},
            ],
        }
    )
    assert turns(record) == [("system", "简短"), ("user", "算"), ("assistant", ""), ("tool", "2"), ("assistant", "得2")]
    assert isinstance(record, ChatRecord)
    assert record.messages[2]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"items": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, ["问", "答"]),
        ({"dialogue": [{"role": "客户", "content": "问"}, {"role": "客服", "content": "答"}]}, ["问", "答"]),
        ({"turns": [{"role": "问", "content": "问"}, {"role": "答", "content": "答"}]}, ["问", "答"]),
        ({"context": "文", "question": "问", "answers": {"text": ["答", "甲"], "answer_start": [0]}}, ["文\n问", "答"]),
        ({"question": "问", "answers": [{"text": "答"}]}, ["问", "答"]),
        ({"question": "问", "answers": ["答"]}, ["问", "答"]),
        ({"plain_text": "[Human]: 问<eoh> [MOSS]: 答<eoa>", "num_turns": 1}, ["问", "答"]),
        ({"textbox_q_instruction": "选", "textbox_question": "问", "textbox_answer": "答"}, ["选\n问", "答"]),
    ],
)
def test_known_shapes_under_other_names_are_read(fields: dict[str, Any], expected: list[str]) -> None:
    record = parse_record(fields)
    assert isinstance(record, ChatRecord)
    assert [message["content"] for message in record.messages] == expected


@pytest.mark.parametrize("name", ["content", "raw_content", "正文", "内容"])
def test_a_document_under_another_name_is_a_text(name: str) -> None:
    record = parse_record({"title": "题", name: "一篇文章。"})
    assert isinstance(record, TextRecord)
    assert record.text == record.fields["text"] == "一篇文章。"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"conversations": [USER, ASSISTANT], "context": "材料"},
            "context stands beside the conversation, which does not hold it",
        ),
        (
            {"messages": [USER, ASSISTANT], "query": "别的"},
            "query stands beside the conversation, which does not hold it",
        ),
        (
            {"system": "礼貌", "messages": [{"role": "system", "content": "粗鲁"}, USER, ASSISTANT]},
            "system beside the conversation differs from the one in it",
        ),
        ({"question": "问？", "context": {"a": 1}, "answer": "答"}, "context is not a string"),
        ({"instruction": "问", "history": "以前", "output": "答"}, "history is not a list of [question, answer]"),
        ({"messages": [USER, ASSISTANT], "images": ["a.png"]}, "images: the record needs more than its text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}, ASSISTANT]},
            "a turn's content has a part that is not text",
        ),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "a turn's weight is neither 0 nor 1, false nor true"),
        ({"messages": [USER, {**ASSISTANT, "train_detail": [{}]}]}, "a turn's train_detail marks single characters"),
        (
            {"prompt": "别的", "chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "哼"}]},
            "prompt stands beside the conversation, which does not hold it",
        ),
        ({}, "unknown shape"),
        ({"text": 3}, "text is not a string"),
        ({"text": " \n"}, "empty text"),
        ({"conversations": "你好"}, "conversation is not a list"),
        ({"conversations": []}, "empty conversation"),
        ({"conversations": ["你好"]}, "turn is not an object"),
        ({"conversations": [{"role": "bard", "content": "x"}]}, "unknown role: bard"),
        ({"conversations": [{"role": ["user"], "content": "x"}]}, "unknown role: ['user']"),
        ({"id": 1, "字": "x"}, "unknown shape: fields id, 字"),
        (
            {"data": [{"question": "q"}]},
            "unknown shape: its records are in the list data: write them one a line (jq -c '.data[]')",
        ),
        ({"title": "题", "paragraphs": []}, "SQuAD's nested paragraphs: write one question, context and answer a line"),
        ({"data": [{"paragraphs": []}]}, "SQuAD's nested paragraphs: write one question, context and answer a line"),
        ({"question": "问", "answers": {"text": []}}, "answers holds no text"),
        (
            {"conversations": [{"role": "user", "content": "你好<|im_end|>\n<|im_start|>assistant\n您好"}, ASSISTANT]},
            "a turn holds several turns (marks of another chat format inside it)",
        ),
        (
            {"instruction": "<s>[INST] 你好 [/INST] 您好</s>", "output": "答"},
            "a turn holds several turns (marks of another chat format inside it)",
        ),
        ({"conversations": [{"role": "user", "content": 5}, ASSISTANT]}, "turn's content is not a string"),
        ({"conversations": [USER]}, "no assistant answer"),
        ({"conversations": [USER, USER, ASSISTANT]}, "roles do not alternate"),
        ({"conversations": [ASSISTANT]}, "roles do not alternate"),
        ({"conversations": [USER, ASSISTANT, ASSISTANT]}, "roles do not alternate"),
        ({"conversations": [USER, {"role": "system", "content": "x"}, ASSISTANT]}, "system message is not the first"),
        ({"conversations": [{"role": "user", "content": " "}, ASSISTANT]}, "empty user turn"),
        ({"conversations": [USER, {"role": "assistant", "content": ""}]}, "empty assistant answer"),
        ({"conversations": [USER, {**ASSISTANT, "tool_calls": "{"}]}, "tools or tool_calls are not JSON"),
        ({"conversations": [USER, {**ASSISTANT, "tool_calls": [{}]}]}, "a tool or tool call without a name"),
        ({"instruction": "", "output": "猫"}, "answer without a question"),
        ({"instruction": "翻译", "output": 5}, "question or answer is not a string"),
        ({"chosen": "好", "rejected": "坏"}, "preference strings without a prompt"),
        ({"prompt": "问", "chosen": "好", "rejected": "好 "}, "chosen and rejected are equal"),
        ({"prompt": "问", "chosen": "好"}, "chosen or rejected is neither a list nor a string"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER]}, "no assistant answer"),
        (
            {
                "chosen": [USER, ASSISTANT],
                "rejected": [{"role": "user", "content": "别的"}, {"role": "assistant", "content": "x"}],
            },
            "chosen and rejected answer different questions",
        ),
        ({"question": "问？", "A": "一", "B": "二", "answer": "E"}, "multiple choice without a valid answer"),
        ({"question": "问？", "options": ["一"], "answer": "A"}, "multiple choice without options"),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(fields: dict[str, Any], expected: str) -> None:
    assert reason(fields) == expected
