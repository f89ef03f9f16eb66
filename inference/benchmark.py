"""How fast a model generates here, beside what its matrix products alone would take.

Times on a CPU are CPU seconds of this process: with N threads they count N times. So they change
little when other programs run. On other devices they are seconds of the clock.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from configs.artifacts import write_json
from configs.cli import add_switch
from configs.hardware import cpu_instructions, cpu_name
from configs.schema import UserError, at_least
from inference.engine import Engine
from inference.request import Request
from inference.sampling import Sampling, scores_not_finite
from model.model_minillm import MiniLLM
from model.quantize import matrix_names

FIELDS = {
    "batch_size": "answers at once 同时生成的回答数",
    "quantize": "how the weights are kept: none is float32 权重的存法",
    "cpu": "its name, its instructions, threads 处理器、指令集、线程数",
    "ttft_ms": "until each answer has its first token: reading the prompts 读完提示、每个回答出第一个词元",
    "step_ms": "one more token for each answer, the median of all steps 每一步，取中位数",
    "decode_tokens_per_s": "tokens of all answers together in a second of such steps 每秒词元数，所有回答合计",
    "linear_floor_ms": "the float32 matrix products of such a step alone, with F.linear 只算矩阵乘法",
    "step_over_floor": "step_ms / linear_floor_ms",
    "peak_rss_mb": "most memory that this process has held, in 10^6 bytes 内存峰值",
}
"""Name -> what it is."""
EXPLANATION = "\n".join(
    [
        "what --benchmark measures; times on a CPU are CPU time of all threads "
        "测速的内容（CPU 上的时间是各线程的 CPU 时间之和）:",
        *(f"  {name:20} {text}" for name, text in FIELDS.items()),
    ]
)
"""The end of --help."""
FLOOR_ROUNDS = 60


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is generated. Raises: UserError for a value out of range."""

    prompt_tokens: int = 256
    new_tokens: int = 256
    batch_size: int = 1

    def __post_init__(self) -> None:
        at_least(self, 1, "prompt_tokens", "batch_size")
        at_least(self, 2, "new_tokens")


_HELP = {
    "prompt_tokens": "tokens of each prompt 每个提示的词元数",
    "new_tokens": "tokens of each answer 每个回答的词元数",
    "batch_size": FIELDS["batch_size"],
}


def add_benchmark_flags(parser: Any) -> None:
    """Add --benchmark, a flag for each field of `Load`, and --json."""
    add_switch(parser, "--benchmark", help="measure the speed instead of talking; see below 测速，见下", default=False)
    for name, default in asdict(Load()).items():
        help = f"of --benchmark: {_HELP[name]} ({default})"
        parser.add_argument(f"--{name}", type=int, metavar="N", help=help)
    parser.add_argument("--json", type=Path, metavar="FILE", help="of --benchmark: also write a JSON file 另存为 JSON")


def load_of(arguments: argparse.Namespace, *, not_with: Sequence[str]) -> Load | None:
    """What --benchmark is to generate; None without it.

    Args: not_with: flags that mean nothing beside it.
    Raises: UserError for such a flag, or for one of --benchmark's without it.
    """
    given = {name: value for name in _HELP if (value := getattr(arguments, name)) is not None}
    if arguments.benchmark:
        for name in not_with:
            if getattr(arguments, name):
                raise UserError(f"--{name}: means nothing beside --benchmark. Leave it out.", "测速时不用该参数")
        return Load(**given)
    for name in (*given, *(["json"] if arguments.json else [])):
        raise UserError(f"--{name}: means nothing without --benchmark. Leave it out.", "该参数只用于 --benchmark")
    return None


def show(values: dict[str, Any], path: Path | None) -> None:
    """Print what was measured, and write it as JSON if there is a path. Raises: UserError."""
    if path:
        write_json(path, values)
    for name, value in values.items():
        print(f"{name:20} {value}")


def measure(engine: Engine, load: Load, sampling: Sampling, *, quantize: str) -> dict[str, Any]:
    """A value for each of FIELDS, with random prompts. Args: quantize: how the weights are kept."""
    sampling = replace(sampling, max_new_tokens=load.new_tokens)
    run_once(engine, load, replace(sampling, max_new_tokens=2), seed=1)  # matrices are packed, memory is taken
    first, steps = run_once(engine, load, sampling, seed=2)
    peak = peak_memory()  # before the floor takes memory of its own
    # The floor stands between two runs, so that a machine that grows slower or faster meanwhile
    # hardly changes the ratio.
    floor = floor_seconds(engine, load.batch_size)
    again, more_steps = run_once(engine, load, sampling, seed=3)
    if not (steps and more_steps):
        raise UserError(
            f"new_tokens = {load.new_tokens}: the first answer ends before the last one begins. Give more.",
            "太少：第一个回答结束时，最后一个还没开始",
        )
    first, step = (first + again) / 2, statistics.median(steps + more_steps)
    values = (
        load.batch_size,
        quantize,
        f"{cpu_name()} ({' '.join(cpu_instructions())}), {torch.get_num_threads()} threads",
        round(1000 * first, 3),
        round(1000 * step, 4),
        round(load.batch_size / step, 1),
        round(1000 * floor, 4),
        round(step / floor, 3),
        peak and round(peak / 1e6, 1),
    )
    return dict(zip(FIELDS, values, strict=True))


def run_once(engine: Engine, load: Load, sampling: Sampling, *, seed: int) -> tuple[float, list[float]]:
    """Generate once.

    Returns: seconds until all answers have begun, and those of each step in which all of them got
    a token.
    Raises: UserError when the model's scores are NaN or infinite.
    """
    device, tokenizer = engine.decoder.device, engine.tokenizer
    draw = random.Random(seed)
    # Requests of our own, which no token ends: each answer has its full length.
    requests = [
        Request(tokenizer, draw.choices(range(tokenizer.get_vocab_size()), k=load.prompt_tokens), sampling, frozenset())
        for _ in range(load.batch_size)
    ]
    start = seconds(device)
    engine.scheduler.waiting.extend(requests)
    while not all(request.ids or request.finished for request in requests):
        engine.step()
    first = seconds(device) - start
    steps = []
    while not any(request.finished for request in requests):
        start = seconds(device)
        engine.step()
        steps.append(seconds(device) - start)
    for request in requests:
        engine.abort(request)
    if any(request.finish_reason == "error" for request in requests):
        raise scores_not_finite()
    return first, steps


def floor_seconds(engine: Engine, batch_size: int) -> float:
    """Seconds of the matrix products of a step, the median of many."""
    model = MiniLLM(engine.decoder.config).to(engine.decoder.device)
    products = floor_of(model, batch_size)
    products()
    rounds = []
    for _ in range(FLOOR_ROUNDS):
        start = seconds(model.device)
        products()
        rounds.append(seconds(model.device) - start)
    return statistics.median(rounds)


@torch.no_grad()
def floor_of(model: MiniLLM, batch_size: int) -> Callable[[], object]:
    """The matrix products of a step alone, in float32; of a mixture each row's experts.

    Args: model: with weights that are not rounded.
    """
    weights = [model.get_parameter(name).detach() for name in matrix_names(model)]
    used = model.config.num_experts_per_tok * batch_size
    pairs = [
        (weight.new_ones(used if weight.dim() == 3 else batch_size, weight.shape[-1]), weight) for weight in weights
    ]

    def products() -> None:
        for x, weight in pairs:
            if weight.dim() == 2:
                F.linear(x, weight)
                continue
            # The rows are dealt out evenly. With fewer rows than experts, some experts get none.
            parts = x.chunk(len(weight))
            for part, expert in zip(parts, weight[: len(parts)], strict=True):
                F.linear(part, expert)

    return products


def seconds(device: torch.device) -> float:
    """The clock: CPU time on a CPU; elsewhere the time of the day, when the device has finished."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
