"""How fast our engine generates, beside transformers and llama.cpp; and whether it says the same.

    python benchmarks/generation_speed.py --avx2 --batches 1 8 32 --json FILE
    python benchmarks/generation_speed.py --requests --avx2
    python benchmarks/generation_speed.py --parity --weight out/rlhf_192.pth --text FILE.jsonl

Needs transformers, xllamacpp, gguf, safetensors and tokenizers (benchmarks/verify_readers.sh makes
such an environment); `--arms` leaves some out. Times are CPU seconds of all threads of an arm's own
process. Arms take turns, and the best of the rounds counts. The floor is every matrix of a step
through `F.linear` in float32, for the same rows. A step is a new token for every row; prompts were
read before.

`--avx2` lets PyTorch, oneDNN, MKL and FBGEMM use no more than AVX2. llama.cpp can't be told so: it
uses what its wheel was built for, which the table shows.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

import torch

from benchmarks import proc
from benchmarks.generation import arms, many, parity
from benchmarks.generation.arms import ARMS, FLOOR, FOLDER, GGUF_KINDS, TRANSFORMERS, WEIGHTS, Job
from benchmarks.quantized_weights import shape_of
from benchmarks.report import add_json_flag
from benchmarks.verify_readers import lively
from configs.artifacts import write_json
from configs.cli import Parser, add_switch, run
from configs.hardware import cpu_instructions, cpu_name
from configs.paths import ROOT, TOKENIZER_DIR
from configs.schema import UserError
from dataset.tokenizer import RustBPETokenizer
from inference.loading import open_model
from model.manifest import WeightsManifest
from model.quantize import NONE
from model.weights import save_weights
from scripts import convert_model

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
}
"""What makes the libraries below PyTorch use no more than AVX2."""
BARS = {
    ("ours float32", 1): 1.3, ("ours float32", 8): 1.5,
    ("ours fp16", 1): 1.15, ("ours fp16", 8): 0.95,
    ("ours int8", 1): 1.0, ("ours int8", 8): 0.65,
}  # fmt: skip
"""(arm, rows) -> the step over the floor, at most, on AVX2 at 512 x 8."""
RIVAL, AHEAD_FROM = "llama.cpp q8_0", 8
"""Ours in int8 is to be faster, from so many rows on."""
REQUEST_BARS = {"float32 over itself": 4.0, "int8 over float32": 6.0, "int8 over itself": 4.5}

Steps = Mapping[tuple[str, int], float]
"""(arm, rows) -> CPU seconds of a step."""


# --- the model in every format --------------------------------------------------------------------


def write_model(folder: Path, weight: Path | None, shape: str, chosen: Sequence[str]) -> None:
    """The weights, and what the other programs read. Raises: UserError."""
    if weight is None:
        tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
        config = replace(shape_of(shape), vocab_size=tokenizer.get_vocab_size()).resolve()
        manifest = WeightsManifest(stage="sft", tokenizer_sha256=tokenizer.sha256)
        save_weights(folder / WEIGHTS, lively(config), manifest)
    else:
        opened = open_model(weight, device=arms.CPU)
        save_weights(folder / WEIGHTS, opened.model, opened.manifest)
        opened.tokenizer.save(folder / "tokenizer")
    with contextlib.redirect_stdout(sys.stderr):
        common = ["--input", str(folder / WEIGHTS)]
        if (folder / "tokenizer").exists():
            common += ["--tokenizer_dir", str(folder / "tokenizer")]
        if TRANSFORMERS in chosen:
            convert_model.main([*common, "--to", "hf", "--output", str(folder / FOLDER)])
        for kind in GGUF_KINDS:
            if f"llama.cpp {kind}" in chosen:
                output = str(folder / f"{kind}.gguf")
                convert_model.main([*common, "--to", "gguf", "--quantize", kind, "--output", output])


# --- arms -----------------------------------------------------------------------------------------


class Worker:
    """The process of an arm."""

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        """Raises: UserError where the arm does not start."""
        self.job = job
        threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generation.arms", arms.as_json(job)],
            cwd=ROOT,
            env={**os.environ, **threads, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version: str = self._answer()["version"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.job.arm}: its process ended with exit {self.process.wait()}; see above.")
        found: dict[str, Any] = json.loads(line)
        return found

    def step_seconds(self, rows: int) -> float:
        """CPU seconds of a step for so many rows."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{rows}\n")
        self.process.stdin.flush()
        seconds: float = self._answer()["step"]
        return seconds

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def take_turns(workers: Sequence[Worker], batches: Sequence[int], rounds: int) -> Steps:
    """The best of the rounds. In a round every arm has its turn at every number of rows."""
    best: dict[tuple[str, int], float] = {}
    for number in range(1, rounds + 1):
        for rows in batches:
            for worker in workers:
                key, seconds = (worker.job.arm, rows), worker.step_seconds(rows)
                best[key] = min(seconds, best.get(key, seconds))
            told = ", ".join(f"{worker.job.arm} {1000 * best[worker.job.arm, rows]:.2f}" for worker in workers)
            print(f"round {number} of {rounds}, {rows} rows, ms: {told}", file=sys.stderr, flush=True)
    return best


def table(steps: Steps) -> Iterator[str]:
    """Rows of Markdown: milliseconds of a step, over the floor, and tokens a second."""
    batches = list(dict.fromkeys(rows for _, rows in steps))
    heads = " | ".join(f"{rows} rows: step, ms (of floor) | tokens a second" for rows in batches)
    yield f"| arm | {heads} |"
    yield f"|---|{'---|---|' * len(batches)}"
    for arm in dict.fromkeys(arm for arm, _ in steps):
        cells = []
        for rows in batches:
            seconds = steps[arm, rows]
            share = f" ({seconds / steps[FLOOR, rows]:.2f})" if (FLOOR, rows) in steps else ""
            cells += [f"{1000 * seconds:.2f}{share}", "" if arm == FLOOR else f"{rows / seconds:,.0f}"]
        yield f"| {arm} | {' | '.join(cells)} |"


def verdicts(steps: Steps) -> Iterator[str]:
    """The bars, met or not."""
    for (arm, rows), bar in BARS.items():
        if (arm, rows) in steps and (FLOOR, rows) in steps:
            reached = steps[arm, rows] / steps[FLOOR, rows]
            yield f"{arm}, {rows} rows: {reached:.2f} of the floor (at most {bar}): {told(reached <= bar)}"
    for (arm, rows), seconds in steps.items():
        if arm == RIVAL and ("ours int8", rows) in steps:
            times = seconds / steps["ours int8", rows]
            wanted = "" if rows < AHEAD_FROM else f" (above 1): {told(times > 1)}"
            yield f"ours int8, {rows} rows: {times:.2f} times the speed of {RIVAL}{wanted}"


def told(met: bool) -> str:
    """In words."""
    return "met" if met else "NOT met"


def compare_arms(args: Any, folder: Path) -> Iterator[str]:
    """Start all arms, let them take turns, keep the figures."""
    jobs = [
        Job(
            arm=arm,
            folder=str(folder),
            threads=args.threads,
            most_rows=max(args.batches),
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
        )
        for arm in ARMS
        if arm in args.arms
    ]
    with contextlib.ExitStack() as stack:
        workers = []
        for job in jobs:
            workers.append(Worker(job, AVX2 if args.avx2 else {}))
            stack.callback(workers[-1].close)
        steps = take_turns(workers, args.batches, args.rounds)
        versions = {worker.job.arm: worker.version for worker in workers}
    if args.json:
        figures = [{"arm": arm, "rows": rows, "step_s": seconds} for (arm, rows), seconds in steps.items()]
        write_json(args.json, {"machine": machine(args), "versions": versions, "steps": figures})
    yield from (f"{arm}: {version}" for arm, version in versions.items() if not arm.startswith(("ours", FLOOR)))
    yield from table(steps)
    yield from verdicts(steps)


# --- the whole ------------------------------------------------------------------------------------


def machine(args: Any) -> str:
    """What measured."""
    limit = ", PyTorch limited to AVX2" if args.avx2 else ""
    return f"{cpu_name()} ({' '.join(cpu_instructions())}){limit}, {args.threads} threads, PyTorch {torch.__version__}"


def many_requests(args: Any, folder: Path) -> Iterator[str]:
    """The lines of --requests."""
    path = folder / WEIGHTS
    opened = {kind: open_model(path, device=arms.CPU, quantize=kind) for kind in (NONE, "int8")}
    tokenizer = opened[NONE].tokenizer
    asks = many.mixed(tokenizer.get_vocab_size())
    tokens = sum(ask.new_tokens for ask in asks)
    best: dict[tuple[str, bool], float] = {}
    for number in range(1, args.rounds + 1):
        print(f"round {number} of {args.rounds}", file=sys.stderr, flush=True)
        for kind, one in opened.items():
            for at_once in (True, False):
                seconds = many.seconds_of(one.model, tokenizer, asks, at_once=at_once)
                best[kind, at_once] = min(seconds, best.get((kind, at_once), seconds))
    for (kind, at_once), seconds in best.items():
        name, how = "float32" if kind == NONE else kind, "at once" if at_once else "one by one"
        yield f"{name}, {len(asks)} requests {how}: {tokens / seconds:,.0f} tokens a second"
    ratios = (
        best[NONE, False] / best[NONE, True],
        best[NONE, False] / best["int8", True],
        best["int8", False] / best["int8", True],
    )
    for (name, bar), reached in zip(REQUEST_BARS.items(), ratios, strict=True):
        yield f"{name}: {reached:.2f} times (at least {bar:g}): {told(reached >= bar)}"
    short, long = many.short_is_first(opened[NONE].model, tokenizer)
    yield f"one token asked for last: done in step {short}, the first of 31 long ones in {long}: {told(short < long)}"
    sizes = [size / 1e6 for size in many.memory_over_time(opened[NONE].model, tokenizer, args.tiny_requests)]
    yield f"MB held after each tenth of {args.tiny_requests:,} requests: {', '.join(f'{size:.1f}' for size in sizes)}"


def same_answers(args: Any, folder: Path) -> Iterator[str]:
    """The line of --parity."""
    opened = open_model(
        folder / WEIGHTS,
        device=arms.CPU,
        tokenizer_dir=folder / "tokenizer" if (folder / "tokenizer").exists() else None,
    )
    prompts = parity.prompts_of(parity.text_ids(opened.tokenizer, args.text), args.prompts)
    found = parity.compare(opened, folder / FOLDER, prompts, max(args.batches))
    unexcused = found.answers - found.equal - found.near_ties
    yield f"{found} (at most 1 in 1,000): {told(1000 * unexcused <= found.answers)}"


def check_flags(args: Any) -> None:
    """Raises: UserError for a flag that means nothing here."""
    if args.requests and args.parity:
        raise UserError("--parity: not beside --requests. Run one after the other.", "请分两次运行")
    if args.text and not args.parity:
        raise UserError("--text: means nothing without --parity. Leave it out.", "该参数只用于 --parity")
    if args.json and (args.requests or args.parity):
        raise UserError("--json: only the table of steps is written. Leave it out.", "只有步时表可存为 JSON")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. --requests and --parity measure something else."""
    parser = Parser(description=__doc__)
    parser.add_argument("--weight", type=Path, metavar="PATH", help="trained weights 训练好的权重")
    parser.add_argument("--shape", default="512x8", metavar="NxN", help="else random ones 随机权重的形状 (%(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="what is compared 比较哪些程序")
    for name, default, text in (
        ("prompt_tokens", 256, "of each row 提示长度"),
        ("new_tokens", 256, "of each row 新词元数"),
        ("rounds", 3, "the best of them counts 轮数"),
        ("threads", 1, "of each arm 线程数"),
        ("tiny_requests", many.TINY_REQUESTS, "of --requests: for memory 内存测试的请求数"),
        ("prompts", 1000, "of --parity 提示数"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (%(default)s)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], metavar="N", help="rows 批大小")
    parser.add_argument("--text", type=Path, metavar="FILE", help="of --parity: documents to cut prompts from 文本")
    add_switch(parser, "--avx2", help="let PyTorch use no more than AVX2 只用 AVX2 指令", default=False)
    add_switch(parser, "--requests", help="measure 32 requests of mixed length at once 多请求", default=False)
    add_switch(parser, "--parity", help="compare greedy answers with transformers 与 transformers 比较", default=False)
    add_json_flag(parser)
    args = parser.parse_args(argv)
    proc.require("/proc/self/status", "reads memory")
    check_flags(args)
    if args.avx2 and (args.requests or args.parity) and not os.environ.items() >= AVX2.items():
        # These run in this process, and PyTorch reads the variables when it is loaded.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **AVX2})
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure, needed = compare_arms, args.arms
        if args.requests:
            measure, needed = many_requests, []
        elif args.parity:
            measure, needed = same_answers, [TRANSFORMERS]
        write_model(folder, args.weight, args.shape, needed)
        print(machine(args), flush=True)
        for line in measure(args, folder):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    run(main)
