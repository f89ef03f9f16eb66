"""The server as a program: what it serves, where it listens, how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from configs.paths import ROOT, TOKENIZER_DIR
from configs.schema import UserError
from inference.api import ServerSettings, is_loopback, listen
from tests.inference.test_adapters import adapter_beside
from tests.tiny_run import TinyRun

SERVE = ROOT / "scripts" / "serve_openai_api.py"


@contextlib.contextmanager
def running(
    *words: object, all_shown: bool = False, **environment: str
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The program with these flags, and its address once it listens; or all that it says."""
    pytest.importorskip("fastapi", reason='needs: pip install "fastapi>=0.115" "uvicorn>=0.30"')
    command = [sys.executable, str(SERVE), "--port", "0", "--device", "cpu", "--tokenizer_dir", str(TOKENIZER_DIR)]
    with subprocess.Popen(
        [*command, *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    ) as server:
        try:
            shown = _start_of(server)
            yield server, shown if all_shown else shown.splitlines()[-1].split("/v1")[0]
        finally:
            server.kill()


def _start_of(server: "subprocess.Popen[str]") -> str:
    """What it says up to the line with the address of the API."""
    assert server.stderr is not None
    shown = ""
    for line in server.stderr:
        shown += line
        if re.match(r"http://\S+/v1 ", line):
            return shown.rstrip()
    raise AssertionError(shown)


def asked(address: str, path: str, key: str = "", **body: Any) -> Any:
    """The answer to a GET, or to a POST if there is a body."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(address + path, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_the_program_serves_each_weight_and_each_adapter_where_it_fits(tiny: TinyRun) -> None:
    adapter_beside(tiny.path("sft"), "lora_medical")
    weights = ["--weight", tiny.path("sft"), "--weight", tiny.path("pretrain"), "--lora_name", "lora_medical"]
    with running(*weights, MINILLM_API_KEY="sk-1") as (server, address):
        names = [model["id"] for model in asked(address, "/v1/models", "sk-1")["data"]]
        sft, pretrain = tiny.path("sft").stem, tiny.path("pretrain").stem
        assert names[:3] == [sft, pretrain, f"{sft}+lora_medical"]
        texts = {
            name: asked(address, "/v1/completions", "sk-1", model=name, prompt="你", max_tokens=8)["choices"][0]["text"]
            for name in names
        }
        assert len(set(texts.values())) == len(names)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            asked(address, "/v1/models")
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130


@pytest.mark.parametrize(("drain", "end"), [("30", "[DONE]"), ("0", '"code":"server_shutting_down"')])
def test_on_sigterm_a_stream_ends_or_is_told(tiny: TinyRun, drain: str, end: str) -> None:
    words = ["--weight", tiny.path("pretrain"), "--rope_scaling_factor", "64", "--drain_seconds", drain]
    with running(*words) as (server, address):
        body = {"prompt": "你", "max_tokens": 1500, "stream": True}
        request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as stream:
            assert stream.readline().startswith(b"data: ")
            server.send_signal(signal.SIGTERM)
            last = [line for line in stream.read().decode().splitlines() if line][-1]
        assert end in last
        assert server.wait(30) == 143
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address}/health", timeout=5)


def test_an_address_that_is_taken_is_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1:{port}: can't listen there \(Address already in use\)"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"no\.such\.host\.invalid:80: can't listen there"):
        listen("no.such.host.invalid", 80)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 65_536),
        ("port", -1),
        ("max_batch_size", 0),
        ("max_queue", -1),
        ("max_body_bytes", 0),
        ("drain_seconds", -1.0),
        ("drain_seconds", float("nan")),
        ("api_key", "密钥"),
        ("api_key", " x"),
        ("api_key", "a\nb"),
    ],
)
def test_an_impossible_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{field}"):
        ServerSettings(**{field: value})


def test_loopback_is_told_from_addresses_that_others_reach() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.com", "")))


def test_without_a_key_other_machines_can_ask_and_the_program_says_so(tiny: TinyRun) -> None:
    with running("--weight", tiny.path("sft"), "--host", "0.0.0.0", all_shown=True) as (_, shown):
        assert "warning: 0.0.0.0: other machines can use this server, and it asks for no key" in shown
        address = shown.splitlines()[-1].split("/v1")[0]
        assert address.startswith("http://127.0.0.1:") and asked(address, "/health") == {"status": "ok"}


def test_the_programs_help_names_each_flag_in_both_languages() -> None:
    shown = subprocess.run([sys.executable, str(SERVE), "--help"], capture_output=True, text=True, check=True).stdout
    for flag in (
        "api_key",
        "max_batch_size",
        "max_queue",
        "max_body_bytes",
        "allowed_hosts",
        "cors_origins",
        "drain_seconds",
    ):
        assert f"--{flag}" in shown
    assert "监听地址" in shown
