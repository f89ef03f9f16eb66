"""A server of the app on a port of this machine, with small models, for tests that ask it."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from unittest import mock

import pytest

from configs.schema import ModelConfig
from inference.api import listen
from inference.request import Request
from inference.serving.models import Models, Served
from model.model_minillm import MiniLLM
from tests.tiny_run import lively, shipped_tokenizer

WHY = 'needs: pip install "fastapi>=0.115" "uvicorn>=0.30" "httpx>=0.27"'
for name in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(name, reason=WHY)

import httpx  # noqa: E402
import uvicorn  # noqa: E402

from inference.serving import app as app_module  # noqa: E402, F401  # for tests, which can't import it before the skip
from inference.serving.app import Access, Api, build_app  # noqa: E402

SHAPE = ModelConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    original_max_position_embeddings=512,
)
HELLO = [{"role": "user", "content": "你好"}]
KEY = "sk-test"


def small_model(seed: int = 1) -> MiniLLM:
    """A model with lively weights: it says nonsense, always the same, and hardly ever ends."""
    return lively(MiniLLM(SHAPE), seed)


def served(name: str = "tiny", *, seed: int = 1, **options: Any) -> Served:
    """A small model under a name."""
    return Served(name, small_model(seed), shipped_tokenizer(), **options)


class LiveServer:
    """The app, run by uvicorn in a thread."""

    def __init__(self, models: Sequence[Served], **access: Any) -> None:
        self.app = build_app(Models(models), Access(**access))
        self.api: Api = self.app.state.api
        self.listener = listen("127.0.0.1", 0)
        self.port: int = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", ws="none", lifespan="on"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.client = httpx.Client(base_url=self.address, timeout=60)

    def __enter__(self) -> "LiveServer":
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)

    # --- asking -----------------------------------------------------------------------------------

    def chat(
        self, messages: Sequence[Any] = HELLO, headers: dict[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        """Ask for a chat's answer."""
        body = {"messages": messages, "max_tokens": 4, **fields}
        return self.client.post("/v1/chat/completions", json=body, headers=headers)

    def text_of(self, **fields: Any) -> str:
        """A chat's answer alone."""
        text: str = self.chat(**fields).json()["choices"][0]["message"]["content"]
        return text

    def complete(self, prompt: Any = "你好", **fields: Any) -> httpx.Response:
        """Ask for the continuation of a text."""
        return self.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4, **fields})

    def streamed(self, path: str = "/v1/chat/completions", **fields: Any) -> list[dict[str, Any]]:
        """The events of a stream, `[DONE]` left out after a check that it is the last."""
        body = {"max_tokens": 4, "stream": True, **({"messages": HELLO} if "chat" in path else {}), **fields}
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return events_of(response.text)

    @contextmanager
    def stream(self, **fields: Any) -> Iterator[Iterator[str]]:
        """The lines of a chat's stream as they come."""
        body = {"messages": HELLO, "stream": True, **fields}
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            lines = response.iter_lines()  # a name of its own: the response closes when nobody holds it
            yield lines
            del lines

    @contextmanager
    def stepping(self, wait: Callable[[], object], name: str = "tiny") -> Iterator[None]:
        """While this lasts, the engine of a model waits before each step."""
        thread = self.api.models.find(name).thread
        assert thread is not None
        engine = thread._engine
        step = engine.step

        def waiting_step() -> list[Request]:
            wait()
            return step()

        with mock.patch.object(engine, "step", waiting_step):
            yield

    def metric(self, name: str) -> float:
        """A number of `/metrics`."""
        lines = self.client.get("/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream that ended well."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def said(events: Sequence[dict[str, Any]], index: int = 0, name: str = "content") -> str:
    """The text that the deltas of one answer add up to."""
    deltas = [choice["delta"] for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(delta.get(name) or "" for delta in deltas)


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and field of an error, after a check of its shape."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and " | " in error["message"]
    return response.status_code, error["code"], error["param"]


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something. Raises: AssertionError if it does not come true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def slowly() -> None:
    """For `stepping`: long answers take seconds, so that a test can look at them."""
    time.sleep(0.005)
