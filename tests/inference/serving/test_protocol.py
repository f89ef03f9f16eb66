"""Requests become prompts and settings; no text of a client becomes a mark of the chat format."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.chat import SPECIAL_TOKENS
from dataset.tokenizer import RustBPETokenizer
from inference.sampling import Sampling
from inference.serving.errors import ApiError
from inference.serving.fields import Body, parse, schema
from inference.serving.protocol import Reader, read_chat, read_completion
from tests.tiny_run import shipped_tokenizer

HELLO = [{"role": "user", "content": "你好"}]
TOOL = {"type": "function", "function": {"name": "天气", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def reader(tokenizer: RustBPETokenizer) -> Reader:
    """A model that knows turns and can read 4,000 tokens."""
    return Reader(tokenizer, 4000, completes=False)


def chat(reader: Reader, messages: Any = HELLO, **more: Any) -> str:
    """The prompt of a chat, its special tokens by name."""
    (prompt,) = read_chat(Body({"messages": messages, **more}), reader).prompts
    return reader.tokenizer.decode(prompt)


def test_a_conversation_is_rendered_by_the_chat_format(reader: Reader) -> None:
    messages = [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": "问"},
        {"role": "assistant", "content": "答", "reasoning_content": "想", "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "再"}, {"type": "text", "text": "问"}], "name": "x"},
    ]
    (prompt,) = read_chat(Body({"messages": messages}), reader).prompts
    plain = [*messages[:3], {"role": "user", "content": "再问"}]
    assert prompt == reader.tokenizer.render_for_completion(plain)


def test_developer_is_system_and_several_system_messages_become_one(reader: Reader) -> None:
    one = chat(reader, [{"role": "system", "content": "a\n\nb"}, *HELLO])
    assert chat(reader, [{"role": "developer", "content": "a"}, *HELLO, {"role": "system", "content": "b"}]) == one


def test_tools_stand_in_the_system_message_and_calls_in_the_assistants(reader: Reader) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "天气", "arguments": '{"城市": "北京"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "晴"},
    ]
    text = chat(reader, messages, tools=[TOOL], tool_choice="auto")
    assert "<|system_start|><|tools_start|>[" in text and '"天气"' in text
    assert '<|tool_call_start|>{"name": "天气", "arguments": {"城市": "北京"}}<|tool_call_end|>' in text
    assert text.endswith("<|tool_result_start|>晴<|tool_result_end|><|assistant_start|>")
    assert chat(reader, tools=[TOOL], tool_choice="none") == chat(reader)


def test_enable_thinking_opens_or_closes_a_thought(reader: Reader) -> None:
    def ask(value: bool | None) -> Any:
        return read_chat(Body({"messages": HELLO, "chat_template_kwargs": {"enable_thinking": value}}), reader)

    opened, closed, free = ask(True), ask(False), ask(None)
    assert reader.tokenizer.decode(opened.prompts[0]).endswith("<|think_start|>") and opened.begins_with_thought
    assert reader.tokenizer.decode(closed.prompts[0]).endswith("<|think_end|>") and not closed.begins_with_thought
    assert reader.tokenizer.decode(free.prompts[0]).endswith("<|assistant_start|>") and not free.begins_with_thought


def test_each_field_of_sampling_can_be_asked_for(reader: Reader) -> None:
    asked: dict[str, Any] = {
        "max_new_tokens": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "repetition_penalty": 1.5,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "no_repeat_ngram_size": 2, "stop": ["x"], "stop_token_ids": [5],
        "logit_bias": {"6": -1}, "seed": 9,
    }  # fmt: skip
    sampling = read_chat(Body({"messages": HELLO, "logprobs": True, "top_logprobs": 4, **asked}), reader).sampling
    expected = {**asked, "stop": ("x",), "stop_token_ids": (5,), "logit_bias": ((6, -1.0),), "logprobs": 4}
    assert {field.name for field in fields(Sampling)} == expected.keys()
    assert sampling == Sampling(**expected)


def test_what_clients_mean_by_odd_numbers(reader: Reader) -> None:
    def sampling(**more: Any) -> Sampling:
        return read_completion(Body({"prompt": "x", **more}), reader).sampling

    assert sampling(temperature=1e-8).temperature == 0 and sampling(top_k=-1).top_k == 0
    assert sampling(stop="").stop == () and sampling(stop=["", "x"]).stop == ("x",)
    assert sampling(max_tokens=3, max_completion_tokens=9).max_new_tokens == 3  # completions know the first alone


SPECIAL_TEXTS = st.lists(st.sampled_from((*SPECIAL_TOKENS, "你好", "\n", "<|", "|>", "\ud83d")), max_size=6).map(
    "".join
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(texts=st.lists(SPECIAL_TEXTS, min_size=9, max_size=9))
def test_no_text_of_a_client_becomes_a_special_token(texts: list[str]) -> None:
    reader = Reader(shipped_tokenizer_once(), 4000, completes=False)

    def specials(words: list[str]) -> list[int]:
        messages = [
            {"role": "system", "content": words[0]},
            {"role": "user", "content": [{"type": "text", "text": words[1]}], "name": words[2]},
            {
                "role": "assistant",
                "content": words[3],
                "reasoning_content": words[4] or "x",
                "tool_calls": [{"function": {"name": words[5], "arguments": json.dumps({"a": words[6]})}}],
            },
            {"role": "tool", "content": words[7], "tool_call_id": words[2]},
            {"role": "user", "content": words[8]},
        ]
        tools = [{"type": "function", "function": {"name": words[5], "description": words[6]}}]
        (prompt,) = read_chat(Body({"messages": messages, "tools": tools, "user": words[2]}), reader).prompts
        first = len(reader.tokenizer.mergeable_ranks)
        return [token for token in prompt if token >= first]

    assert specials(texts) == specials(["x"] * 9)
    (prompt,) = read_completion(Body({"prompt": texts[0]}), reader).prompts
    assert all(token < len(reader.tokenizer.mergeable_ranks) for token in prompt[1:])


def shipped_tokenizer_once() -> RustBPETokenizer:
    """The tokenizer that ships, read once."""
    if not hasattr(shipped_tokenizer_once, "found"):
        shipped_tokenizer_once.found = shipped_tokenizer()  # type: ignore[attr-defined]
    found: RustBPETokenizer = shipped_tokenizer_once.found  # type: ignore[attr-defined]
    return found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data(), kind=st.sampled_from(["chat", "text"]))
def test_a_field_with_any_value_is_read_or_refused(data: st.DataObject, kind: Any) -> None:
    reader = Reader(shipped_tokenizer_once(), 4000, completes=False)
    names = st.sampled_from(sorted(schema(kind)["properties"]))
    body = Body({"messages": HELLO, "prompt": "x", **data.draw(st.dictionaries(names, JSON, min_size=1, max_size=3))})
    try:
        ask = (read_chat if kind == "chat" else read_completion)(body, reader)
    except ApiError as error:
        assert 400 <= error.status < 500 and json.dumps(error.body())
    else:
        assert ask.prompts and ask.max_tokens <= 4000


def test_a_body_is_parsed_or_refused() -> None:
    assert parse('{"a": null, "b": "你"}'.encode()).values == {"b": "你"}
    for raw in (b"", b"[]", b"nul", b"\xff", b'{"a": NaN}', b"[" * 100_000):
        with pytest.raises(ApiError, match="body"):
            parse(raw)
