"""Too much asked, clients that leave or never read, a failing engine, a closing server; the log."""

import http.client
import json
import socket
import threading
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch

from inference.page import page_html
from tests.inference.serving.live_server import HELLO, LiveServer, app_module, error_of, served, slowly, wait_until

# --- errors of ours ------------------------------


def test_scores_that_are_not_finite_end_one_request_with_500(server: LiveServer) -> None:
    models = [served("broken")]
    with torch.no_grad():
        # Embedding and output are one matrix, so the logits of this token are NaN for each prompt.
        models[0].model.model.embed_tokens.weight[300] = float("nan")  # type: ignore[index]
    with LiveServer(models) as broken:
        assert error_of(broken.chat()) == (500, "model_error", None)
        with broken.stream() as lines:
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert events[-1]["error"]["code"] == "model_error"
        assert broken.client.get("/health").json() == {"status": "ok"}
        assert broken.metric("minillm_requests_running") == 0


def test_an_engine_that_fails_ends_its_requests_and_a_new_one_serves(
    server: LiveServer, capfd: pytest.CaptureFixture[str]
) -> None:
    thread = server.api.models.find("tiny").thread
    assert thread is not None
    with mock.patch.object(thread._engine, "step", side_effect=RuntimeError("a mistake")):
        assert error_of(server.chat()) == (500, "engine_error", None)
    assert "a mistake" in capfd.readouterr().err
    assert server.chat().status_code == 200


def test_a_job_that_can_not_be_begun_ends_with_500_and_others_go_on(
    server: LiveServer, capfd: pytest.CaptureFixture[str]
) -> None:
    thread = server.api.models.find("tiny").thread
    assert thread is not None
    with mock.patch.object(thread, "_prompt_scores", side_effect=MemoryError("a long prompt")):
        assert error_of(server.complete(echo=True, logprobs=1)) == (500, "engine_error", None)
    assert "a long prompt" in capfd.readouterr().err
    assert server.complete(echo=True, logprobs=1).status_code == 200


# --- limits ---------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_413_with_and_without_its_length() -> None:
    with LiveServer([served()], max_body_bytes=2000) as small:
        long = [{"role": "user", "content": "x" * 2000}]
        assert error_of(small.chat(long)) == (413, "request_too_large", None)
        huge = small.client.post("/v1/chat/completions", content=b"x" * 2**23)  # more than sockets hold
        assert error_of(huge) == (413, "request_too_large", None)
        parts = (b"x" * 1000 for _ in range(1000))
        response = small.client.post("/v1/chat/completions", content=parts)
        assert error_of(response) == (413, "request_too_large", None)
        assert small.chat().status_code == 200


def test_a_client_that_asks_before_it_sends_a_large_body_is_refused_at_once() -> None:
    with (
        LiveServer([served()], max_body_bytes=2000) as small,
        socket.create_connection(("127.0.0.1", small.port)) as careful,
    ):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
        careful.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert careful.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_end_is_cut_off(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "THROWN_AWAY_BYTES", 10_000)
    with socket.create_connection(("127.0.0.1", server.port)) as endless:
        endless.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(OSError):
            while True:
                endless.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
    assert server.chat().status_code == 200


def test_a_body_that_never_ends_is_408(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_beyond_the_queue_a_request_is_429_with_retry_after(server: LiveServer) -> None:
    may_step = threading.Event()
    with server.stepping(may_step.wait), ExitStack() as streams:
        firsts = [next(streams.enter_context(server.stream(max_tokens=400, n=4))) for _ in range(3)]
        refused = server.chat()
        assert error_of(refused) == (429, "queue_full", None)
        assert int(refused.headers["retry-after"]) >= 1
        assert all('"role":"assistant"' in line for line in firsts)
        may_step.set()
    wait_until(lambda: server.metric("minillm_requests_running") == 0)
    assert server.chat().status_code == 200


def test_running_and_waiting_answers_are_counted(server: LiveServer) -> None:
    with ExitStack() as both:
        both.enter_context(server.stepping(slowly))
        for n in (4, 3):
            next(both.enter_context(server.stream(max_tokens=400, n=n)))
        wait_until(lambda: server.metric("minillm_requests_running") == 4)
        wait_until(lambda: server.metric("minillm_requests_waiting") == 3)
    wait_until(lambda: server.metric("minillm_requests_running") == 0)
    assert server.metric("minillm_requests_waiting") == 0


# --- who leaves -----------------------------------------------------------------------------------


def test_a_client_that_leaves_a_stream_frees_its_slot(server: LiveServer) -> None:
    with server.stepping(slowly), server.stream(max_tokens=500) as lines:
        next(lines)
        wait_until(lambda: server.metric("minillm_requests_running") == 1)
    wait_until(lambda: server.metric("minillm_requests_running") == 0)


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_frees_its_slot(server: LiveServer) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 500})
    with server.stepping(slowly):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/v1/chat/completions", body)
        wait_until(lambda: server.metric("minillm_requests_running") == 1)
        connection.close()
        wait_until(lambda: server.metric("minillm_requests_running") == 0)


def test_a_client_that_leaves_the_queue_is_forgotten(server: LiveServer) -> None:
    with server.stepping(slowly), server.stream(max_tokens=500, n=4) as running:
        next(running)
        with server.stream(max_tokens=500) as waiting:
            next(waiting)
            wait_until(lambda: server.metric("minillm_requests_waiting") == 1)
        wait_until(lambda: server.metric("minillm_requests_waiting") == 0)
    wait_until(lambda: server.metric("minillm_requests_running") == 0)


def test_a_client_that_never_reads_is_given_up_in_the_end(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "SEND_SECONDS", 0.2)
    body = json.dumps({"prompt": "你好", "max_tokens": 400, "stream": True, "logprobs": 20, "n": 4}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.sendall(head.encode() + body)
        wait_until(lambda: server.metric("minillm_requests_running") == 4)
        assert server.chat(model="other").status_code == 200
        wait_until(lambda: server.metric("minillm_requests_running") == 0)
        assert server.chat().status_code == 200


def test_idle_and_slow_connections_do_not_keep_others_from_being_served(server: LiveServer) -> None:
    with ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            if number % 4 == 1:  # it sends a byte from time to time, and will never be done
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le")
            if number % 4 == 2:
                head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"
                connection.sendall(head + b'{"prompt"')
            if number % 4 == 3:
                connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert server.chat().status_code == 200
        assert len(server.streamed(max_tokens=20)) > 2
    assert server.chat().status_code == 200


def test_a_server_that_closes_takes_no_request_and_ends_streams_with_an_event() -> None:
    with LiveServer([served()]) as closing, closing.stepping(slowly), closing.stream(max_tokens=500) as lines:
        next(lines)
        closing.api.begin_closing()
        assert error_of(closing.chat())[:2] == (503, "server_shutting_down")
        assert closing.client.get("/health").status_code == 503
        loop = closing.api.models.find(None).thread._loop  # type: ignore[union-attr]
        loop.call_soon_threadsafe(closing.api.end_all)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert events[-1]["error"]["code"] == "server_shutting_down"


# --- the rest -------------------------------------------------------------------------------------


def test_health_metrics_and_page_are_served(server: LiveServer) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    before = server.metric("minillm_generated_tokens_total")
    first = server.metric("minillm_time_to_first_token_seconds_count")
    server.chat(max_tokens=7)
    assert server.metric("minillm_generated_tokens_total") == before + 7
    assert server.metric("minillm_time_to_first_token_seconds_count") == first + 1
    text = server.client.get("/metrics").text
    assert "# TYPE minillm_time_to_first_token_seconds histogram" in text
    assert 'minillm_time_to_first_token_seconds_bucket{le="+Inf"}' in text
    page = server.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8" and page.text == page_html()
    assert page.headers["x-frame-options"] == "DENY"


def test_the_schema_names_the_fields_and_asks_no_other_host(server: LiveServer) -> None:
    schema = server.client.get("/openapi.json").json()
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "temperature", "top_k", "stop", "logit_bias"} <= set(body["properties"])
    assert body["required"] == ["messages"]
    assert server.client.get("/docs").status_code == server.client.get("/redoc").status_code == 404


def new_lines(capfd: pytest.CaptureFixture[str], count: int) -> list[dict[str, Any]]:
    """The log's lines about requests: the last so many. They come after the answers."""
    shown = ""

    def have() -> bool:
        nonlocal shown
        shown += capfd.readouterr().out
        return shown.count("\n") >= count

    wait_until(have)
    return [json.loads(line) for line in shown.splitlines() if line.startswith("{")][-count:]


def test_each_request_is_one_line_in_the_log_without_its_text(
    server: LiveServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.client.get("/v1/models")
    new_lines(capfd, 1)
    server.chat(max_tokens=3)
    server.chat(temperature=-1)
    server.client.get("/health")
    lines = new_lines(capfd, 2)
    assert [line["status"] for line in lines] == [200, 400]
    first = lines[0]
    assert first["model"] == "tiny" and first["completion_tokens"] == 3 and first["prompt_tokens"] == 6
    assert first["finish_reason"] == ["length"] and 0 < first["first_token_seconds"] <= first["seconds"]
    assert "prompt" not in first and "text" not in first


def test_the_log_has_the_text_if_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    with LiveServer([served()], log_text=True) as open_log:
        answer = open_log.chat().json()["choices"][0]["message"]["content"]
        (line,) = new_lines(capfd, 1)
        assert "你好" in line["prompt"][0] and line["text"] == [answer]
