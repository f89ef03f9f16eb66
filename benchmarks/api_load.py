"""The API server under load: 32 clients for minutes, beside one client and the engine alone.

    python benchmarks/api_load.py --weight out/pretrain_192.pth --seconds 300

Each client sends greedy requests one after the other and reads the streams. Checked: no error, each
answer equals the lone one, the memory of the server stays flat, a request for one token returns
while 31 long ones run, and no answer runs a second after all clients were cut off.
"""

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: let Python find the other packages of the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.proc import memory
from configs.paths import ROOT
from inference.engine import Engine, end_ids
from inference.loading import open_model
from inference.request import Request
from inference.sampling import Sampling
from model.device import leave_a_core

CLIENTS = 32
STARTS = ("从前", "今天", "中国", "他说", "学校里", "春天", "为什么", "老人和")
TOPICS = ("有一个", "的天气", "的历史", "我们要", "很多人", "的花", "会下雨", "孩子")
PROMPTS = tuple(start + topic for start in STARTS for topic in TOPICS)


ENDS = {"done": b"[DONE]", "told": b'"error"', "cut": b""}
"""How a stream may end -> what stands in it then."""


class Client:
    """Sends requests over one connection, as plainly as can be: the clients share our cores."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def stream(self, body: dict[str, Any]) -> tuple[str, int, float, list[float]]:
        """One streamed completion. Returns: text, tokens, seconds, and when each chunk came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        began, raw, times = time.perf_counter(), b"", []
        content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + content)
        while part := await reader.read(65_536):
            raw += part
            times.append(time.perf_counter() - began)
        writer.close()
        seconds = time.perf_counter() - began
        status, _, rest = raw.partition(b"\r\n\r\n")
        if b" 200 " not in status.splitlines()[0]:
            raise RuntimeError(raw.decode("utf-8", "replace")[:500])
        events = [json.loads(line) for line in re.findall(rb"^data: (\{.*\})", rest, re.MULTILINE)]
        if b"data: [DONE]" not in rest or any("error" in event for event in events):
            raise RuntimeError(rest.decode("utf-8", "replace")[-500:])
        text = "".join(choice["text"] for event in events for choice in event["choices"])
        return text, events[-1]["usage"]["completion_tokens"], seconds, times


def body_of(prompt: str, max_tokens: int) -> dict[str, Any]:
    """A greedy request."""
    return {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}


async def many(port: int, clients: int, seconds: float, max_tokens: int, check: Callable[[str, str], None]) -> float:
    """Tokens a second of so many clients that each ask again and again."""
    end, tokens, began = time.perf_counter() + seconds, 0, time.perf_counter()

    async def one(number: int) -> None:
        nonlocal tokens
        place = number
        while time.perf_counter() < end:
            prompt = PROMPTS[place % len(PROMPTS)]
            text, count, _, _ = await Client(port).stream(body_of(prompt, max_tokens))
            check(prompt, text)
            tokens += count
            place += clients + 1

    await asyncio.gather(*(one(number) for number in range(clients)))
    return tokens / (time.perf_counter() - began)


def engine_speed(engine: Engine, clients: int, seconds: float, max_tokens: int) -> float:
    """Tokens a second of the engine alone, with so many requests at a time."""
    tokenizer, tokens, place = engine.tokenizer, 0, 0
    began = time.perf_counter()
    running: list[Request] = []
    while time.perf_counter() - began < seconds or running:
        while len(running) < clients and time.perf_counter() - began < seconds:
            prompt = [tokenizer.get_bos_token_id(), *tokenizer.encode(PROMPTS[place % len(PROMPTS)])]
            running += engine.add(prompt, Sampling(max_new_tokens=max_tokens))
            place += 1
        engine.step()
        for request in [request for request in running if request.finished]:
            tokens += len(request.ids)
            running.remove(request)
    return tokens / (time.perf_counter() - began)


def metric(port: int, name: str) -> float:
    """A number of `/metrics`."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


async def one_amid_long_ones(port: int, max_tokens: int, ends: Iterable[int]) -> tuple[float, float]:
    """Seconds of a request for one token amid 31 long ones, and of the first of these to end.

    Args: ends: tokens that would end an answer. The long ones may not say them.
    """
    began = time.perf_counter()
    never = {"logit_bias": {str(end): -100 for end in ends}}
    long_ones = [
        asyncio.create_task(Client(port).stream(body_of(PROMPTS[n], max_tokens) | never)) for n in range(CLIENTS - 1)
    ]
    await asyncio.sleep(0.05)
    short_began = time.perf_counter()
    await Client(port).stream(body_of("短", 1))
    short = time.perf_counter() - short_began
    running = sum(not task.done() for task in long_ones)
    if running < CLIENTS - 1:
        raise RuntimeError(f"{CLIENTS - 1 - running} long answers ended before the one for a single token")
    await asyncio.wait(long_ones, return_when=asyncio.FIRST_COMPLETED)
    first = time.perf_counter() - began
    await asyncio.gather(*long_ones)
    return short, first


async def cut_off(port: int, max_tokens: int) -> float:
    """Seconds from the moment when all clients are cut off until no answer runs."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]
    for number, (_, writer) in enumerate(connections):
        content = json.dumps({**body_of(PROMPTS[number], max_tokens), "stream": number % 2 == 0}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
    while await asyncio.to_thread(metric, port, "minillm_requests_running") < CLIENTS:
        await asyncio.sleep(0.005)
    for _, writer in connections:
        writer.transport.abort()
    began = time.perf_counter()
    while await asyncio.to_thread(metric, port, "minillm_requests_running"):
        await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def terminated(server: "subprocess.Popen[str]", port: int, max_tokens: int) -> str:
    """What becomes of 32 streams when the server gets SIGTERM."""
    ends = {"done": 0, "told": 0, "cut": 0}

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        content = json.dumps({**body_of(PROMPTS[number], max_tokens), "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        raw = await reader.read()
        ends[next(name for name, mark in ENDS.items() if mark in raw)] += 1
        writer.close()

    streams = [asyncio.create_task(one(number)) for number in range(CLIENTS)]
    while await asyncio.to_thread(metric, port, "minillm_requests_running") < CLIENTS:
        await asyncio.sleep(0.005)
    server.send_signal(signal.SIGTERM)
    await asyncio.gather(*streams)
    return ", ".join(f"{count} {name}" for name, count in ends.items())


def start(arguments: argparse.Namespace, quantize: str) -> tuple["subprocess.Popen[str]", int]:
    """The server as a process, and its port."""
    command = [sys.executable, str(ROOT / "scripts" / "serve_openai_api.py"), "--weight", str(arguments.weight)]
    command += ["--quantize", quantize, "--port", "0", "--device", "cpu"]
    if arguments.tokenizer_dir:
        command += ["--tokenizer_dir", str(arguments.tokenizer_dir)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.match(r"http://[\d.]+:(\d+)/v1 ", line):
            return server, int(found[1])
    raise RuntimeError("the server did not start")


def measure(arguments: argparse.Namespace, quantize: str) -> dict[str, float]:
    """All figures of one kind of weights."""
    leave_a_core()  # as the server does
    opened = open_model(
        arguments.weight, device=torch.device("cpu"), tokenizer_dir=arguments.tokenizer_dir, quantize=quantize
    )
    engine = Engine(opened.model, opened.tokenizer)
    lone: dict[str, str] = {}
    for prompt in PROMPTS:
        ids = [opened.tokenizer.get_bos_token_id(), *opened.tokenizer.encode(prompt)]
        lone[prompt] = engine.answers([ids], Sampling(max_new_tokens=arguments.max_tokens))[0].text
    different: set[str] = set()
    count = 0

    def check(prompt: str, text: str) -> None:
        nonlocal count
        count += 1
        if text != lone[prompt]:
            different.add(prompt)

    figures: dict[str, float] = {}
    server, port = start(arguments, quantize)
    try:
        short = min(arguments.seconds, 20)
        asyncio.run(many(port, CLIENTS, 3, arguments.max_tokens, check))  # packed matrices are made, the cache grows
        for clients in (1, CLIENTS):
            # Alternating, because other programs on this machine come and go.
            pairs = [
                (
                    asyncio.run(many(port, clients, short / 4, arguments.max_tokens, check)),
                    engine_speed(engine, clients, short / 4, arguments.max_tokens),
                )
                for _ in range(4)
            ]
            figures[f"served_{clients}"] = max(served for served, _ in pairs)
            figures[f"engine_{clients}"] = max(alone for _, alone in pairs)
        figures["rss_before_mb"] = memory("status", "VmRSS", server.pid) / 2**20
        figures["long_run"] = asyncio.run(many(port, CLIENTS, arguments.seconds, arguments.max_tokens, check))
        figures["rss_after_mb"] = memory("status", "VmRSS", server.pid) / 2**20
        figures["one_token_seconds"], figures["first_long_seconds"] = asyncio.run(
            one_amid_long_ones(port, arguments.max_tokens, end_ids(opened.tokenizer))
        )
        figures["cut_off_seconds"] = asyncio.run(cut_off(port, arguments.max_tokens))
        print(
            f"{quantize}: SIGTERM amid 32 streams:",
            asyncio.run(terminated(server, port, arguments.max_tokens)),
            flush=True,
        )
    finally:
        server.send_signal(signal.SIGTERM)
        figures["exit_code"] = server.wait(60)
    return {**figures, "answers": count, "prompts_that_differ": len(different)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures as JSON, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weight", type=Path, required=True)
    parser.add_argument("--tokenizer_dir", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the long run with 32 clients")
    parser.add_argument("--max_tokens", type=int, default=200)
    parser.add_argument("--quantize", nargs="+", default=["none", "int8"])
    arguments = parser.parse_args(argv)
    results = {kind: measure(arguments, kind) for kind in arguments.quantize}
    for kind, figures in results.items():
        print(json.dumps({"quantize": kind, **{name: round(value, 3) for name, value in figures.items()}}))
        for clients in (1, CLIENTS):
            print(
                f"  {clients} clients: {figures[f'served_{clients}'] / figures[f'engine_{clients}']:.2f} of the engine alone"
            )
        print(f"  32 clients: {figures[f'served_{CLIENTS}'] / figures['served_1']:.2f} times one client")
    if {"none", "int8"} <= results.keys():
        ratio = results["int8"][f"served_{CLIENTS}"] / results["none"]["served_1"]
        print(f"int8 with 32 clients: {ratio:.2f} times float32 with one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
