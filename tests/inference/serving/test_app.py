"""The API as clients see it, over a real socket: models, answers, streams, log-probabilities."""

import math
import threading
import time
from typing import Any

import pytest

from tests.inference.serving.live_server import HELLO, LiveServer, app_module, error_of, events_of, said

# --- models ---------------------------------------------------------------------------------------


def test_models_are_listed_by_their_names_with_and_without_v1(server: LiveServer) -> None:
    for path in ("/v1/models", "/models"):
        listed = server.client.get(path).json()
        assert listed["object"] == "list"
        assert [(one["id"], one["object"]) for one in listed["data"]] == [("tiny", "model"), ("other", "model")]
    assert server.client.get("/v1/models/other").json()["id"] == "other"


def test_each_model_answers_under_its_name_and_the_first_without_one(server: LiveServer) -> None:
    first, second = (server.text_of(model=name) for name in ("tiny", "other"))
    assert first != second
    assert server.text_of() == server.text_of(model=None) == first


def test_an_unknown_model_is_404(server: LiveServer) -> None:
    assert error_of(server.chat(model="gpt-4o")) == (404, "model_not_found", "model")
    assert error_of(server.client.get("/v1/models/gpt-4o")) == (404, "model_not_found", "model")


# --- whole answers --------------------------------------------------------------------------------


def test_a_chat_is_answered_in_openais_shape(server: LiveServer) -> None:
    for path in ("/v1/chat/completions", "/chat/completions"):
        answer = server.client.post(path, json={"messages": HELLO, "max_tokens": 4}).json()
        assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
        assert answer["model"] == "tiny" and abs(answer["created"] - time.time()) < 100
        (choice,) = answer["choices"]
        assert choice["index"] == 0 and choice["finish_reason"] == "length" and choice["logprobs"] is None
        assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
        assert answer["usage"] == {
            "prompt_tokens": 6,
            "completion_tokens": 4,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


def test_a_text_is_continued_in_openais_shape(server: LiveServer) -> None:
    for path in ("/v1/completions", "/completions"):
        answer = server.client.post(path, json={"prompt": "你好", "max_tokens": 4}).json()
        assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
        (choice,) = answer["choices"]
        assert choice["text"] and choice["finish_reason"] == "length" and choice["logprobs"] is None


def test_max_tokens_is_obeyed_under_each_of_its_names(server: LiveServer) -> None:
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        usage = server.client.post("/v1/chat/completions", json={"messages": HELLO, name: 3}).json()["usage"]
        assert usage["completion_tokens"] == 3


def test_max_tokens_0_gives_none(server: LiveServer) -> None:
    answer = server.chat(max_tokens=0).json()
    assert (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) == ("", "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert server.complete(max_tokens=0, echo=True).json()["choices"][0]["text"] == "你好"
    events = server.streamed(max_tokens=0)
    assert [choice["finish_reason"] for event in events for choice in event["choices"]] == [None, "length"]


def test_without_max_tokens_the_rest_of_the_context_is_filled(server: LiveServer) -> None:
    for limit in (None, 100_000):
        usage = server.complete("你好" * 200, max_tokens=limit).json()["usage"]
        assert usage["total_tokens"] == 512


def test_a_prompt_beyond_the_context_is_refused(server: LiveServer) -> None:
    message = [{"role": "user", "content": "你好啊" * 600}]
    assert error_of(server.chat(message)) == (400, "context_length_exceeded", "messages")
    assert error_of(server.complete("你好啊" * 600)) == (400, "context_length_exceeded", "prompt")


def test_stop_ends_the_answer_before_the_text(server: LiveServer) -> None:
    free = server.text_of(max_tokens=12)
    stop = free[4:6]
    for given in (stop, [stop], ["无关", stop]):
        answer = server.chat(max_tokens=12, stop=given).json()["choices"][0]
        assert answer["message"]["content"] == free[: free.index(stop)] and answer["finish_reason"] == "stop"


def test_n_gives_so_many_answers_of_different_seeds(server: LiveServer) -> None:
    fields: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 8}
    answer = server.chat(**fields).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] == 24
    events = server.streamed(**fields)
    assert [said(events, index) for index in range(3)] == texts
    assert server.text_of(temperature=1.0, seed=6, max_tokens=8) == texts[1]


def test_several_prompts_are_answered_in_order(server: LiveServer) -> None:
    alone = [server.complete(text).json()["choices"][0]["text"] for text in ("你好", "北京")]
    both = server.complete(["你好", "北京"], n=2).json()["choices"]
    assert [choice["text"] for choice in both] == [alone[0], alone[0], alone[1], alone[1]]


def test_token_ids_are_a_prompt_too(server: LiveServer) -> None:
    tokenizer = server.api.models.find(None).reader.tokenizer
    ids = [tokenizer.get_bos_token_id(), *tokenizer.encode("你好")]
    text = server.complete("你好").json()["choices"][0]["text"]
    assert server.complete(ids).json()["choices"][0]["text"] == text
    assert server.complete([ids]).json()["choices"][0]["text"] == text


def test_echo_puts_the_prompt_in_front(server: LiveServer) -> None:
    text = server.complete().json()["choices"][0]["text"]
    assert server.complete(echo=True).json()["choices"][0]["text"] == f"你好{text}"
    events = server.streamed("/v1/completions", prompt="你好", echo=True)
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == f"你好{text}"


def test_seed_decides_a_sample_and_without_one_samples_differ(server: LiveServer) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "max_tokens": 16}
    assert server.text_of(seed=7, **fields) == server.text_of(seed=7, **fields)
    assert server.text_of(seed=-1, **fields) == server.text_of(seed=-1, **fields)
    assert server.text_of(**fields) != server.text_of(**fields)


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 2},
        {"temperature": 1.0, "top_p": 0.1},
        {"temperature": 1.0, "min_p": 0.5},
        {"repetition_penalty": 100.0},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"no_repeat_ngram_size": 1},
        {"logit_bias": {"300": 100}},
        {"stop_token_ids": "second"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"tools": [{"type": "function", "function": {"name": "now"}}]},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_each_option_changes_the_answer(server: LiveServer, changed: dict[str, Any]) -> None:
    model = server.api.models.find(None)
    base: dict[str, Any] = {"seed": 3, "max_tokens": 40}
    if len(changed) == 2:  # compared with the sample that the option restricts
        base["temperature"] = 1.0
    if changed.get("stop_token_ids"):
        ids = model.reader.tokenizer.encode(server.text_of(**base))
        changed = {"stop_token_ids": ids[1:4]}
    assert server.text_of(**base) != server.text_of(**{**base, **changed})


def test_null_is_the_same_as_absent_and_unknown_fields_pass(server: LiveServer) -> None:
    names = [
        "model", "stream", "n", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
        "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "seed", "stop", "stop_token_ids", "logit_bias",
        "logprobs", "top_logprobs", "stream_options", "response_format", "tools", "tool_choice", "chat_template_kwargs",
        "max_completion_tokens", "user",
    ]  # fmt: skip
    body = {"messages": HELLO, "stop_token_ids": None, **dict.fromkeys(names)}
    free = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert free == server.text_of(max_tokens=None)
    assert server.text_of() == server.text_of(user="x", metadata={"a": 1}, store=True, service_tier="auto", made_up=[1])


def test_a_model_that_was_only_pretrained_continues_the_last_message(server: LiveServer) -> None:
    chat = server.text_of(model="other", messages=[{"role": "system", "content": "x"}, *HELLO])
    assert chat == server.complete(model="other").json()["choices"][0]["text"]


def test_an_earlier_turn_is_not_computed_again_and_usage_says_so(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "很久以前" * 40}]
    first = server.chat(messages).json()
    messages += [{"role": "assistant", "content": "好"}, {"role": "user", "content": "然后呢"}]
    second = server.chat(messages).json()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
    assert server.metric("minillm_prompt_tokens_cached_total") >= 64


# --- streams --------------------------------------------------------------------------------------


def test_a_stream_has_the_role_first_then_text_then_the_end(server: LiveServer) -> None:
    whole = server.text_of(max_tokens=30)
    events = server.streamed(max_tokens=30)
    assert all(event["object"] == "chat.completion.chunk" and len(event["choices"]) == 1 for event in events)
    assert len({event["id"] for event in events}) == 1 and not any("usage" in event for event in events)
    choices = [event["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert choices[-1]["delta"] == {} and said(events) == whole


def test_a_stream_of_a_completion_adds_up_to_the_whole_text(server: LiveServer) -> None:
    whole = server.complete(max_tokens=30).json()["choices"][0]["text"]
    events = server.streamed("/v1/completions", prompt="你好", max_tokens=30)
    assert "".join(event["choices"][0]["text"] for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_usage_comes_only_if_asked_in_a_chunk_of_its_own(server: LiveServer) -> None:
    events = server.streamed(stream_options={"include_usage": True})
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 4
    assert all(event["usage"] is None and event["choices"] for event in events[:-1])
    for options in ({}, {"include_usage": False}, None):
        assert all(event["choices"] for event in server.streamed(stream_options=options))


def test_a_stream_that_waits_has_its_role_and_then_comments(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "KEEP_ALIVE_SECONDS", 0.05)
    may_step = threading.Event()
    with server.stepping(may_step.wait), server.stream(max_tokens=2) as lines:
        seen = [next(lines) for _ in range(6)]
        may_step.set()
        rest = list(lines)
    assert '"role":"assistant"' in seen[0]
    assert set(seen[1:]) == {"", ": keep-alive"}
    assert rest[-2:] == ["data: [DONE]", ""]


def test_answers_at_once_are_what_each_would_be_alone(server: LiveServer) -> None:
    texts = ["你好", "北京", "一加一", "为什么"]
    alone = [server.text_of(messages=[{"role": "user", "content": text}], max_tokens=40) for text in texts]
    found: dict[int, str] = {}

    def ask(place: int) -> None:
        events = server.streamed(messages=[{"role": "user", "content": texts[place]}], max_tokens=40)
        found[place] = said(events)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(4)] == alone


def test_events_of_reads_what_the_server_writes(server: LiveServer) -> None:
    text = server.client.post("/v1/chat/completions", json={"messages": HELLO, "stream": True, "max_tokens": 1}).text
    assert text.endswith("data: [DONE]\n\n") and events_of(text)


# --- log-probabilities ----------------------------------------------------------------------------


def test_logprobs_of_a_chat_have_tokens_bytes_and_the_likeliest(server: LiveServer) -> None:
    choice = server.chat(logprobs=True, top_logprobs=3, max_tokens=12).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 12
    for token in content:
        top = [one["logprob"] for one in token["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True) and top[0] == token["logprob"] <= 0  # greedy
        assert math.fsum(map(math.exp, top)) <= 1 + 1e-9
        assert {"token", "logprob", "bytes"} == set(token["top_logprobs"][0])
    text = bytes(byte for token in content for byte in token["bytes"]).decode("utf-8", "replace")
    assert text == choice["message"]["content"]


def test_logprobs_without_top_have_no_alternatives(server: LiveServer) -> None:
    choice = server.chat(logprobs=True).json()["choices"][0]
    assert [token["top_logprobs"] for token in choice["logprobs"]["content"]] == [[]] * 4


def test_streamed_logprobs_are_those_of_the_whole_answer(server: LiveServer) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "max_tokens": 20}
    whole = server.chat(**fields).json()["choices"][0]["logprobs"]["content"]
    found = [event["choices"][0]["logprobs"] for event in server.streamed(**fields)]
    assert [token for logprobs in found if logprobs for token in logprobs["content"]] == whole


def test_logprobs_of_a_completion_are_lists_side_by_side(server: LiveServer) -> None:
    choice = server.complete(logprobs=2, max_tokens=10).json()["choices"][0]
    lists = choice["logprobs"]
    assert [len(lists[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [10] * 4
    for name, logprob, top, offset in zip(*lists.values(), strict=True):
        assert top[name] == logprob and len(top) == 2
        assert choice["text"].startswith(name, offset) or "\\x" in name


def test_an_echoed_prompt_has_logprobs_as_if_the_model_had_written_it(server: LiveServer) -> None:
    written = server.complete(max_tokens=10, logprobs=2).json()["choices"][0]
    ids = server.api.models.find(None).reader.tokenizer.encode("你好")
    for tokens in (0, 3):
        echoed = server.complete(f"你好{written['text']}", echo=True, logprobs=2, max_tokens=tokens).json()["choices"][
            0
        ]
        lists = echoed["logprobs"]
        assert lists["text_offset"][0] == 0 and len({len(values) for values in lists.values()}) == 1
        if (
            lists["tokens"][len(ids) : len(ids) + 10] == written["logprobs"]["tokens"]
        ):  # the text is cut in the same way
            found = lists["token_logprobs"][len(ids) : len(ids) + 10]
            assert found == pytest.approx(written["logprobs"]["token_logprobs"], abs=1e-4)
        assert echoed["finish_reason"] == "length" and echoed["text"].startswith("你好")
    as_ids = server.complete([300, 301, 302], echo=True, logprobs=0, max_tokens=0).json()["choices"][0]["logprobs"]
    assert as_ids["token_logprobs"][0] is None and as_ids["top_logprobs"][1] == {} and len(as_ids["tokens"]) == 3
    events = server.streamed("/v1/completions", prompt="你好", echo=True, logprobs=1, max_tokens=2)
    found = [choice["logprobs"] for event in events for choice in event["choices"] if choice["logprobs"]]
    assert sum(len(one["tokens"]) for one in found) == len(ids) + 2
