"""A plain HTTP client for the conformance rows, and the two servers that are compared."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from configs.paths import ROOT

KEY = "sk-conformance"
HELLO = [{"role": "user", "content": "你好"}]
LLAMA_CPP = """
import sys, time, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.model_alias, settings.hostnames = sys.argv[1], {sys.argv[2]}, ["127.0.0.1"]
settings.api_keys, settings.port, settings.endpoint_metrics = [sys.argv[3]], int(sys.argv[4]), True
settings.n_parallel, settings.n_ctx, settings.ui = 4, 2048, False
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""
"""Program: llama.cpp's server over HTTP, as the wheel xllamacpp has it. Arguments: file, name, key,
port."""


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; empty if there is none."""
        try:
            error = self.json["error"]
        except (ValueError, KeyError, TypeError):
            return {}
        return error if isinstance(error, dict) else {}

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, without `[DONE]`."""
        return [json.loads(line) for line in re.findall(r"^data: (\{.*\})", self.text, re.MULTILINE)]

    @property
    def choice(self) -> dict[str, Any]:
        """The first choice."""
        choice: dict[str, Any] = self.json["choices"][0]
        return choice


class Server:
    """A server that is asked."""

    def __init__(self, name: str, port: int, model: str) -> None:
        self.name, self.port, self.model = name, port, model

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, key: str | None = KEY
    ) -> Reply:
        """One request. Args: body: an object that becomes JSON, or bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = (
            {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}) | (headers or {})
        )
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(method, path, raw, sent)
            answer = connection.getresponse()
            pairs = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, pairs, answer.read().decode("utf-8", "replace"))

    def chat(self, messages: Any = HELLO, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        """A chat, greedy unless something else is asked for."""
        body = {"model": self.model, "messages": messages, "max_tokens": 6, "temperature": 0, **fields}
        return self.ask("POST", "/v1/chat/completions", body, headers)

    def complete(self, prompt: Any = "你好", **fields: Any) -> Reply:
        """A completion."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": 6, "temperature": 0, **fields}
        return self.ask("POST", "/v1/completions", body)

    def text(self, **fields: Any) -> str:
        """The text of a chat's answer."""
        text: str = self.chat(**fields).choice["message"]["content"]
        return text

    def metric(self, *names: str) -> float:
        """The first of these numbers that `/metrics` has."""
        text = self.ask("GET", "/metrics").text
        for name in names:
            if found := re.search(rf"^{name}(?:\{{[^}}]*\}})? ([\d.e+-]+)$", text, re.MULTILINE):
                return float(found[1])
        raise LookupError(f"no metric {names}")

    def wait_ready(self) -> None:
        """Wait until it answers."""
        for _ in range(600):
            with contextlib.suppress(OSError):
                if self.ask("GET", "/health").status == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} does not answer")


@contextlib.contextmanager
def ours(weight: Path, tokenizer_dir: Path | None, *words: str) -> Iterator[Server]:
    """Our server as a process."""
    command = [sys.executable, str(ROOT / "scripts" / "serve_openai_api.py"), "--weight", str(weight), "--port", "0"]
    command += ["--max_batch_size", "4", "--max_queue", "4", "--api_key", KEY, "--device", "cpu", *words]
    if tokenizer_dir:
        command += ["--tokenizer_dir", str(tokenizer_dir)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.match(r"http://[\d.]+:(\d+)/v1 ", line):
                    server = Server("ours", int(found[1]), weight.stem)
                    server.wait_ready()
                    yield server
                    break
            else:
                raise RuntimeError("our server did not start")
        finally:
            process.terminate()


@contextlib.contextmanager
def llama_cpp(gguf: Path, port: int) -> Iterator[Server]:
    """llama.cpp's server as a process."""
    command = [sys.executable, "-c", LLAMA_CPP, str(gguf), gguf.stem, KEY, str(port)]
    with (
        Path(os.devnull).open("w") as nothing,
        subprocess.Popen(command, stderr=nothing, stdout=nothing) as process,
    ):
        try:
            server = Server("llama.cpp", port, gguf.stem)
            server.wait_ready()
            yield server
        finally:
            process.kill()
