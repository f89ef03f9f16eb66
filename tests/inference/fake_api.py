"""A server that speaks as much of OpenAI's protocol as the web page needs, without a model."""

import json
import math
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from inference.page import page_html

MODELS = ["full_sft_192", "rlhf_192"]
OTHERS = (("，", 0.05), ("是", 0.02), ("了", 0.01), ("🙂", 0.001))


class FakeApi(ThreadingHTTPServer):
    """Serves the page and answers that depend on the question alone; keeps all request bodies.

    A question with "慢" is answered slowly, one with "想" after a thought. An answer to "断" breaks
    off, one to "HTML" holds markup. `key`: what a request must bring. `longest`: most messages.
    """

    daemon_threads = True

    def __init__(self, key: str = "", models: list[str] = MODELS) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key, self.models, self.longest = key, models, 100
        self.bodies: list[dict[str, Any]] = []
        self.left = 0  # clients that left before their answer was complete

    @property
    def address(self) -> str:
        """What a browser opens."""
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeApi

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer_json(200, {"data": [{"id": name} for name in self.server.models]})
        else:
            self.answer(200, "text/html; charset=utf-8", page_html().encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(body["messages"]) > self.server.longest:
            self.answer_json(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
            return
        if not self.is_allowed():
            self.answer_json(401, {"error": {"message": "no", "code": "invalid_api_key"}})
            return
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for event in events(body["model"], body["messages"][-1]["content"]):
                data = event if isinstance(event, str) else f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
                self.wfile.write(data.encode())
        except OSError:
            self.server.left += 1

    def is_allowed(self) -> bool:
        return not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}"

    def answer_json(self, status: int, content: object) -> None:
        status = status if self.is_allowed() or status != 200 else 401
        self.answer(status, "application/json", json.dumps(content).encode())

    def answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        """Tests print nothing."""


def answer_to(model: str, question: str) -> str:
    """The whole answer."""
    if "HTML" in question:
        return '<img src=x onerror="document.title=1"><b>粗</b>'
    return f"{model}：{question}。" + "一二三四五六七八九十" * (40 if "慢" in question else 1)


def events(model: str, question: str) -> Iterator[Any]:
    """The stream: the role, a comment, a thought, the answer a character at a time."""
    yield {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    yield ": keep-alive\n\n"
    if "想" in question:
        yield {"choices": [{"delta": {"reasoning_content": "先想一想"}, "finish_reason": None}]}
    for place, piece in enumerate(answer_to(model, question)):
        if "断" in question and place == 5:
            return
        time.sleep(0.05 if "慢" in question else 0)
        tokens = [token(bytes([byte]), place) for byte in piece.encode()] if piece > "\uffff" else [token(piece, place)]
        yield {"choices": [{"delta": {"content": piece}, "logprobs": {"content": tokens}, "finish_reason": None}]}
    yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    yield {"choices": [], "usage": {"completion_tokens": 1}}
    yield "data: [DONE]\n\n"


def token(piece: str | bytes, place: int) -> dict[str, Any]:
    """A token with its log-probability, and five likeliest that hold it."""
    data = piece.encode() if isinstance(piece, str) else piece
    chance = (0.95, 0.8, 0.6, 0.4, 0.2)[place % 5]
    own = {"token": data.decode(errors="replace"), "bytes": list(data), "logprob": math.log(chance)}
    top = [{"token": t, "bytes": list(t.encode()), "logprob": math.log(chance * share)} for t, share in OTHERS]
    return {**own, "top_logprobs": [own, *top]}
