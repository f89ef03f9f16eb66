"""Records of every odd shape: read, or refused by a reason; and what was read once is read again as
the same."""

import copy
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.chat import render_conversation
from dataset.records.keys import heldout_key
from dataset.records.lines import decode_item
from dataset.records.record import BadRecord, ChatRecord, PreferenceRecord, Record, TextRecord
from dataset.records.shapes import parse_record
from dataset.tokenizer import RustBPETokenizer

ASKED, ANSWERED = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}
WORSE = {"role": "assistant", "content": "坏"}
SHAPES: list[dict[str, Any]] = [
    {"text": "今天天气好"},
    {"conversations": [ASKED, ANSWERED], "split": "test", "group": "g", "category": "math", "kind": "k"},
    {"messages": [{"role": "system", "content": "s", "tools": [{"name": "f"}]}, ASKED,
                  {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
                  {"role": "tool", "content": "1"}, {**ANSWERED, "reasoning_content": "想"}]},
    {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答", "loss": False},
                       {"from": "human", "value": "再问"}, {"from": "gpt", "value": "再答", "weight": 1}],
     "system": "s", "tools": '[{"name": "f"}]'},
    {"instruction": "译", "input": "a", "output": "b", "history": [["q", "a"]], "system": "s"},
    {"question": "q", "context": "c", "answers": {"text": ["t"], "answer_start": [1]}},
    {"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"},
    {"question": "q", "options": {"A": "x", "B": "y"}, "answer": "A"},
    {"prompt": "p", "chosen": "c", "rejected": "r"},
    {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, WORSE]},
    {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": WORSE, "system": "s"},
    {"input": {"messages": [ASKED], "tools": []}, "preferred_output": [ANSWERED], "non_preferred_output": [WORSE]},
    {"messages": [ASKED, ANSWERED], "rejected_response": "坏"},
    {"conversation": [{"system": "s", "input": "i", "output": "o"}, {"input": "i2", "output": "o2"}]},
    {"chat": {"turn_1": {"Human": "<|Human|>: a<eoh>", "MOSS": "<|MOSS|>: b<eom>"}}, "meta_instruction": "m"},
    {"plain_text": "[Human]: a <eoh> [MOSS]: b <eoa>"},
    {"query": "q", "response": "r", "label": True, "history": '[["a", "b"]]'},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWERED], "train": True},
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**70, -0.0, 1e308, float("nan"), "", " ", "0", "false", "[", "[]", "[1]", "[[]]", "{}",
    '{"name": 1}', [], [[]], [None], {}, [{}], [1, 2], ["a", "b"], [["a", "b"]], [["a", 1]], {"text": "x"}, {"text": []},
    [ASKED], [ANSWERED], {"name": "f"}, {"function": None}, [[[[[]]]]], "\x00", "<|user_start|>", "<s>x</s>", "\ud800",
    "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>", "Human: a\nAssistant: b", "A", "１", "½", {"": ""},
]  # fmt: skip
FIELDS = sorted(
    {name for shape in SHAPES for name in shape} | {"role", "content", "from", "value", "context", "images"}
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a nested value, but for the whole."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def spoil(record: dict[str, Any], chance: random.Random) -> None:
    """Change one part of a record: put something odd there, take it away, wrap it, add a field
    beside."""
    *way, last = chance.choice(list(places(record)) or [("text",)])
    node: Any = record
    for key in way:
        node = node[key]
    match chance.randrange(5):
        case 0:
            node[last] = copy.deepcopy(chance.choice(ODD))
        case 1 if record:
            del node[last]
        case 2:
            node[last] = [node[last]] if record else []
        case _:
            beside = record if chance.random() < 0.7 or not isinstance(node, dict) else node
            beside[chance.choice(FIELDS)] = copy.deepcopy(chance.choice([*ODD, *chance.choice(SHAPES).values()]))


@st.composite
def spoilt_records(draw: st.DrawFn) -> dict[str, Any]:
    """A record of a shape that is read, after one to three changes."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    record = copy.deepcopy(chance.choice(SHAPES))
    for _ in range(draw(st.integers(1, 3))):
        spoil(record, chance)
    return record


def learnt(record: Record) -> Any:
    match record:
        case TextRecord():
            return record.text
        case ChatRecord():
            return record.messages
        case PreferenceRecord():
            return record.chosen, record.rejected


@settings(max_examples=4000, deadline=None, derandomize=True, database=None)
@given(spoilt_records())
def test_an_odd_record_is_refused_by_a_reason_or_means_the_same_once_it_is_written_and_read_again(
    tokenizer: RustBPETokenizer, fields: dict[str, Any]
) -> None:
    try:
        record = parse_record(decode_item(json.dumps(fields).encode(), {"{{name}}": "小明"}))
    except BadRecord as reason:
        assert 0 < len(str(reason)) < 200
        return
    assert heldout_key(record)
    for messages in [record.messages] if isinstance(record, ChatRecord) else []:
        ids, mask = render_conversation(tokenizer, messages)
        assert len(ids) == len(mask) and any(mask)
    written = json.dumps(record.fields, ensure_ascii=False).encode()
    assert learnt(parse_record(decode_item(written, {}))) == learnt(record)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "<s>题</s>", "chosen": "好", "rejected": "坏"},
        {"query": "<s>题</s>", "response": "答", "history": [["<s>早</s>", "先"]]},
        {"conversation": [{"human": "问", "assistant": "答"}], "system_message": "<s>你是助手</s>"},
        {"instruction": "译", "output": "b", "history": [{"system": "s", "input": "i", "output": "o"}]},
        {
            "input": {"messages": [ASKED]},
            "preferred_output": [ANSWERED],
            "non_preferred_output": [WORSE],
            "system": "s",
        },
    ],
)
def test_what_the_mix_has_written_is_read_again_by_the_export(fields: dict[str, Any]) -> None:
    record = parse_record(fields)
    assert learnt(parse_record(record.fields)) == learnt(record)


def test_what_stands_beside_an_openai_pair_takes_its_place_or_is_refused() -> None:
    pair = {"input": {"messages": [ASKED]}, "preferred_output": [ANSWERED], "non_preferred_output": [WORSE]}
    record = parse_record({**pair, "system": "你是助手"})
    assert isinstance(record, PreferenceRecord)
    assert record.chosen == [{"role": "system", "content": "你是助手"}, ASKED, ANSWERED]
    for name in ("question", "context", "images", "conversations"):
        with pytest.raises(BadRecord, match=name):
            parse_record({**pair, name: "别的"})


def test_a_completion_without_an_answer_is_refused_and_not_cut_down_to_the_history() -> None:
    with pytest.raises(BadRecord, match="no assistant answer"):
        parse_record({"prompt": "译", "completion": [ASKED], "history": [["q", "a"]]})
