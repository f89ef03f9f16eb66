"""What the API refuses, and what it says then: wrong fields, wrong bodies, wrong names, no key."""

from typing import Any

import pytest

from tests.inference.serving.live_server import HELLO, KEY, LiveServer, error_of, served

# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "4"}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": 1}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop_token_ids": [6400]}, "stop_token_ids"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"6400": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": 5, "01": 6, "-2": 1}}, "logit_bias"),
        ({"logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options"),
        ({"stream_options": []}, "stream_options"),
        ({"model": 5}, "model"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs"),
        ({"tools": {"name": "x"}}, "tools"),
        ({"tools": ["x"]}, "messages"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
    ids=str,
)
def test_an_impossible_value_is_400_with_the_name_of_its_field(
    server: LiveServer, fields: dict[str, Any], param: str
) -> None:
    status, code, found = error_of(server.chat(**fields))
    assert (status, found) == (400, param) and code in ("invalid_value", "unsupported")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "你好",
        ["你好"],
        [{"content": "你好"}],
        [{"role": "robot", "content": "你好"}],
        [{"role": ["user"], "content": "你好"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": ["你好"]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "tool", "content": "5"}],
        [*HELLO, {"role": "assistant", "content": "好"}],
        [{"role": "system", "content": 5}, *HELLO],
        [{"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}, *HELLO],
    ],
    ids=str,
)
def test_malformed_messages_are_400(server: LiveServer, messages: Any) -> None:
    status, _, param = error_of(server.chat(messages))
    assert (status, param) == (400, "messages")
    assert server.client.post("/v1/chat/completions", json={}).status_code == 400


@pytest.mark.parametrize("prompt", [None, "", [], [[]], [1, "x"], [6400], [-1], [1.5], [True], {"a": 1}, 5], ids=str)
def test_a_malformed_prompt_is_400_and_an_empty_text_is_a_prompt(server: LiveServer, prompt: Any) -> None:
    if prompt == "":
        assert server.complete(prompt).status_code == 200  # it is the beginning of a document
        return
    assert error_of(server.complete(prompt))[::2] == (400, "prompt")


@pytest.mark.parametrize(
    "fields",
    [{"suffix": "x"}, {"best_of": 2}, {"logprobs": True}, {"logprobs": 21}, {"echo": "yes"}],
    ids=str,
)
def test_what_a_completion_can_not_do_is_400(server: LiveServer, fields: dict[str, Any]) -> None:
    assert error_of(server.complete(**fields))[::2] == (400, next(iter(fields)))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"[]",
        b'"x"',
        b"{",
        b'{"n": NaN}',
        b'{"n": Infinity}',
        b"\xff\xfe",
        b'{"a": ' + b"[" * 100_000,
        b"1" * 5000,
    ],
    ids=lambda raw: str(raw[:8]),
)
def test_a_body_that_is_no_json_object_is_400(server: LiveServer, raw: bytes) -> None:
    assert error_of(server.client.post("/v1/chat/completions", content=raw)) == (400, "invalid_json", None)


def test_an_unknown_path_is_404_and_a_wrong_method_405(server: LiveServer) -> None:
    assert error_of(server.client.get("/v1/nothing"))[:2] == (404, "not_found")
    assert error_of(server.client.get("/v1/chat/completions"))[:2] == (405, "method_not_allowed")


def test_half_a_surrogate_pair_is_read_and_shown_as_a_mark(server: LiveServer) -> None:
    raw = rb'{"messages": [{"role": "user", "content": "\ud83d"}], "max_tokens": 1, "stop": ["\ud83d"]}'
    assert server.client.post("/v1/chat/completions", content=raw).status_code == 200
    raw = rb'{"prompt": "\ud83d", "echo": true, "max_tokens": 1}'
    assert server.client.post("/v1/completions", content=raw).status_code == 200
    assert server.client.post("/v1/completions", content=rb'{"prompt": "x", "model": "\ud83d"}').status_code == 404


# --- who may ask ----------------------------------------------------------------------------------


def test_with_a_key_only_those_who_send_it_are_answered() -> None:
    with LiveServer([served()], api_key=KEY) as locked:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": "Bearer"}):
            assert error_of(locked.chat(headers=headers)) == (401, "invalid_api_key", None)
        assert locked.client.get("/v1/models").status_code == locked.client.get("/metrics").status_code == 401
        assert locked.client.get("/models").status_code == locked.client.get("/openapi.json").status_code == 401
        assert locked.chat(headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert locked.client.get("/health").status_code == locked.client.get("/").status_code == 200


def test_only_names_of_this_machine_may_be_asked_for(server: LiveServer) -> None:
    with LiveServer([served()], allowed_hosts=["llm.example.com"]) as named:
        for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:5", "llm.example.com", "llm.example.com:443"):
            assert named.client.get("/health", headers={"Host": host}).status_code == 200
        for host in ("evil.com", "localhost.evil.com", "", "127.0.0.1.nip.io"):
            refused = named.client.get("/v1/models", headers={"Host": host})
            assert error_of(refused)[:2] == (403, "host_not_allowed")
    assert server.client.get("/health", headers={"Host": "llm.example.com"}).status_code == 403
    with LiveServer([served()], checks_host=False) as public:
        assert public.client.get("/health", headers={"Host": "llm.example.com"}).status_code == 200


def preflight(server: LiveServer, origin: str) -> Any:
    """What a browser asks before a page of another origin may send a request."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "authorization,content-type"
    return server.client.options("/v1/chat/completions", headers=headers)


def test_pages_of_other_origins_may_ask_only_if_they_are_named(server: LiveServer) -> None:
    page = "https://chat.example.com"
    assert "access-control-allow-origin" not in preflight(server, page).headers
    assert "access-control-allow-origin" not in server.chat(headers={"Origin": page}).headers
    with LiveServer([served()], cors_origins=[page], api_key=KEY) as named:
        allowed = preflight(named, page)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == page
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        assert named.chat(headers={"Origin": page}).headers["access-control-allow-origin"] == page  # 401, but readable
        assert "access-control-allow-origin" not in preflight(named, "https://evil.com").headers
    with LiveServer([served()], cors_origins=["*"]) as everybody:
        response = everybody.chat(headers={"Origin": page})
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
