"""Thought, answer and calls are told apart, however the text is cut into pieces."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.chat import ChatFormat
from inference.parts import Part, Splitter, marks_of, parse_call, split

MARKS = marks_of(ChatFormat())
CALL = '{"name": "天气", "arguments": {"城市": "北京"}}'
TEXT = f"<|think_start|>想<一>想<|think_end|>好。<|tool_call_start|>{CALL}<|tool_call_end|>完<|"


def parts_of(pieces: list[str], *, begins_with_thought: bool = False) -> list[Part]:
    """The parts of a text that comes in pieces, neighbours of one kind joined."""
    splitter = Splitter(MARKS, begins_with_thought=begins_with_thought)
    found = [
        part for number, piece in enumerate(pieces) for part in splitter.add(piece, last=number == len(pieces) - 1)
    ]
    joined: list[Part] = []
    for part in found:
        if joined and joined[-1].kind == part.kind != "call":
            joined[-1] = Part(part.kind, joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(cuts=st.sets(st.integers(1, len(TEXT) - 1)))
def test_parts_do_not_depend_on_how_the_text_is_cut(cuts: set[int]) -> None:
    places = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[start:end] for start, end in pairwise(places)]
    assert parts_of(pieces) == [("thought", "想<一>想"), ("answer", "好。"), ("call", CALL), ("answer", "完<|")]


def test_a_text_may_begin_within_a_thought() -> None:
    assert parts_of(["想", "<|think_end|>好"], begins_with_thought=True) == [("thought", "想"), ("answer", "好")]
    assert parts_of(["想"], begins_with_thought=True) == [("thought", "想")]


def test_only_what_may_become_a_mark_is_held_back() -> None:
    splitter = Splitter(MARKS)
    assert list(splitter.add("a < b")) == [("answer", "a < b")]
    assert list(splitter.add("c<|thi")) == [("answer", "c")]
    assert list(splitter.add("ng|>")) == [("answer", "<|thing|>")]


def test_a_call_that_is_no_call_is_shown_as_text() -> None:
    assert parts_of(["<|tool_call_start|>你好<|tool_call_end|>"]) == [("answer", "你好")]
    assert parts_of(["<|tool_call_start|>你"]) == [("answer", "你")]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [(CALL, {"城市": "北京"}), ('{"name": "now"}', {}), ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1})],
)
def test_a_call_has_its_arguments_as_json_text(text: str, arguments: dict[str, str]) -> None:
    call = parse_call(text)
    assert call is not None and json.loads(call["arguments"]) == arguments


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 5}', "[" * 100_000])
def test_other_texts_are_no_calls(text: str) -> None:
    assert parse_call(text) is None


def test_the_answer_of_a_text_begins_behind_the_thought() -> None:
    begin, end = ChatFormat().thought
    assert split("七。", ChatFormat()) == ("", "七。")
    assert split(f"{begin}三加四{end}七。", ChatFormat()) == ("三加四", "七。")
    assert split(f"{begin}三加四", ChatFormat()) == ("三加四", "")
    assert split(f"三加四{end}七。", ChatFormat(), begins_with_thought=True) == ("三加四", "七。")
    assert split("三加四", ChatFormat(), begins_with_thought=True) == ("三加四", "")
