"""Requests as six clients send them, rebuilt, and what each of them reads in the answer."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.inference.serving.live_server import KEY, LiveServer, served

BEARER = {"Authorization": f"Bearer {KEY}"}
NEXTCHAT_PAGE = "https://chat.example.org"


@pytest.fixture(scope="module")
def site() -> Iterator[LiveServer]:
    """A server with a key, that a page of another origin may ask."""
    with LiveServer([served("full_sft_512")], api_key=KEY, cors_origins=[NEXTCHAT_PAGE]) as running:
        yield running


def sent(server: LiveServer, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Any:
    """The answer to a client's request."""
    return server.client.post(path, json=body, headers={**BEARER, **headers})


def chunks(text: str) -> list[dict[str, Any]]:
    """A stream as a strict client reads it: lines of data or comments, blank lines, the end."""
    found: list[dict[str, Any]] = []
    ended = False
    for line in text.split("\n"):
        assert not (line and ended)
        if line.startswith("data: "):
            content = line.removeprefix("data: ")
            ended = content == "[DONE]"
            if not ended:
                found.append(json.loads(content))
        else:
            assert line == "" or line.startswith(":")
    assert ended
    return found


def test_open_webui_lists_models_chats_and_asks_for_a_title_in_the_background(site: LiveServer) -> None:
    models = site.client.get("/v1/models", headers=BEARER).json()
    assert {"id", "object", "owned_by"} <= models["data"][0].keys()
    body = {
        "stream": True,
        "model": "full_sft_512",
        "messages": [{"role": "user", "content": "你好"}],
        "stream_options": {"include_usage": True},
        "max_tokens": 20,
        "features": {},
    }
    found = chunks(sent(site, body).text)
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found[-1]["usage"]["prompt_tokens"] > 0 and found[-1]["usage"]["completion_tokens"] == 20
    title = {
        "model": "full_sft_512",
        "messages": [
            {
                "role": "user",
                "content": "### Task:\nGive a title as JSON.\n<chat_history>\nUSER: 你好\n</chat_history>",
            }
        ],
        "stream": False,
        "max_completion_tokens": 10,
        "metadata": {"task": "title_generation", "chat_id": "1"},
    }
    answer = sent(site, title).json()
    assert isinstance(answer["choices"][0]["message"]["content"], str)
    stopped = {**body, "stop": None, "seed": None, "temperature": None, "logit_bias": None}
    assert sent(site, stopped).status_code == 200


def test_nextchat_asks_from_a_page_without_max_tokens(site: LiveServer) -> None:
    preflight = site.client.options(
        "/v1/chat/completions",
        headers={
            "Origin": NEXTCHAT_PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-requested-with",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == NEXTCHAT_PAGE
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "x-requested-with"))
    body = {
        "messages": [
            {"role": "system", "content": "\nYou are a model.\nCurrent time: now\n"},
            {"role": "system", "content": "这是历史聊天总结作为前情提要：略"},
            {"role": "user", "content": "你好"},
        ],
        "stream": True,
        "model": "full_sft_512",
        "temperature": 0.5,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
    }
    answer = sent(site, body, Origin=NEXTCHAT_PAGE)
    assert answer.headers["access-control-allow-origin"] == NEXTCHAT_PAGE
    found = chunks(answer.text)
    assert all(chunk["choices"] for chunk in found)  # it reads choices[0] of each chunk
    assert found[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_dify_validates_by_a_ping_and_then_chats_and_completes(site: LiveServer) -> None:
    for stream in (False, True):
        ping = {
            "model": "full_sft_512",
            "messages": [{"role": "user", "content": "ping"}],
            "max_tokens": 5,
            "stream": stream,
        }
        answer = sent(site, ping)
        assert answer.status_code == 200
        if stream:
            assert chunks(answer.text)[-1]["choices"][0]["finish_reason"]
        else:
            assert answer.json()["object"] == "chat.completion"
    completion = sent(site, {"model": "full_sft_512", "prompt": "ping", "max_tokens": 5}, "/v1/completions").json()
    assert completion["object"] == "text_completion" and "text" in completion["choices"][0]
    body = {
        "model": "full_sft_512",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "你好"}]}],
        "temperature": 0.7,
        "top_p": 1,
        "max_tokens": 512,
        "stop": [],
        "user": "abc-123",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert chunks(sent(site, body).text)[-1]["usage"]["total_tokens"] > 0
    refused = site.client.post("/v1/chat/completions", json=body, headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"


def test_langchain_sends_many_fields_and_reads_usage_and_tool_calls(site: LiveServer) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    body = {
        "messages": [
            {"content": "你是助手", "role": "system"},
            {"content": "北京天气", "role": "user"},
            {
                "content": None,
                "role": "assistant",
                "tool_calls": [
                    {
                        "type": "function",
                        "id": "call_1",
                        "function": {"name": "get_weather", "arguments": '{"city": "北京"}'},
                    }
                ],
            },
            {"content": "晴", "role": "tool", "tool_call_id": "call_1"},
        ],
        "model": "full_sft_512",
        "n": 1,
        "stream": False,
        "temperature": 0.7,
        "tools": [tool],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_completion_tokens": 16,
    }
    answer = sent(site, body, **{"X-Stainless-Lang": "python", "X-Stainless-Retry-Count": "0"}).json()
    assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= answer["usage"].keys()
    assert answer["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")
    batch = {"model": "full_sft_512", "prompt": ["一", "二"], "n": 1, "temperature": 0.7, "max_tokens": 8, "top_p": 1}
    texts = sent(site, {**batch, "logprobs": None, "best_of": 1, "frequency_penalty": 0}, "/v1/completions").json()
    assert [choice["index"] for choice in texts["choices"]] == [0, 1]


def test_lobechat_streams_with_usage_and_checks_the_connection(site: LiveServer) -> None:
    check = {"messages": [{"content": "hello", "role": "user"}], "model": "full_sft_512", "stream": True}
    assert sent(site, check).status_code == 200
    body = {
        "model": "full_sft_512",
        "messages": [{"content": "你好", "role": "user"}],
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": None,
        "reasoning_effort": "medium",
    }
    found = chunks(sent(site, body).text)
    assert found[-1]["choices"] == [] and found[-1]["usage"]["total_tokens"] > 0
    assert [chunk["choices"][0]["finish_reason"] for chunk in found[:-1]][-1] in ("stop", "length")


def test_cherry_studio_checks_the_key_lists_models_and_sends_a_developer_message(site: LiveServer) -> None:
    assert site.client.get("/v1/models", headers={"Authorization": "Bearer sk-wrong"}).status_code == 401
    assert site.client.get("/v1/models", headers={**BEARER, "X-Api-Key": KEY}).json()["data"][0]["id"] == "full_sft_512"
    body = {
        "model": "full_sft_512",
        "messages": [{"role": "developer", "content": "简短"}, {"role": "user", "content": "hi"}],
        "stream": True,
        "max_completion_tokens": 16,
        "keep_alive": None,
        "enable_thinking": False,
        "chat_template_kwargs": {"enable_thinking": False},
        "stream_options": {"include_usage": True},
    }
    found = chunks(sent(site, body, **{"HTTP-Referer": "https://cherry-ai.com", "X-Title": "Cherry Studio"}).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found[:-1])
    assert found[-1]["usage"]["completion_tokens"] <= 16


def test_the_openai_client_reads_answers_streams_and_errors(site: LiveServer) -> None:
    openai = pytest.importorskip("openai", reason="needs: pip install openai")
    client = openai.OpenAI(base_url=f"{site.address}/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["full_sft_512"]
    messages = [{"role": "user", "content": "你好"}]
    asked: dict[str, Any] = {"model": "full_sft_512", "messages": messages, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, extra_body={"top_k": 5})
    text = whole.choices[0].message.content
    assert whole.usage.prompt_tokens_details.cached_tokens == 0 and len(whole.choices[0].logprobs.content) == 12
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    found = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices) == text
    assert found[-1].usage.completion_tokens == 12
    completion = client.completions.create(model="full_sft_512", prompt="你好", max_tokens=4, logprobs=1)
    assert len(completion.choices[0].logprobs.tokens) == 4
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**asked, "model": "x"})
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**{**asked, "temperature": -1})
    assert bad.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{site.address}/v1", api_key="x", max_retries=0).models.list()
