"""Both arms of the training benchmarks: their flags, their commands, and the clock beside them.

Ours is `trainer/train_pretrain.py`, called as a user calls it; the baseline is `baseline.py`. Each run is a process of
its own with an empty cache of compiled code, one at a time, in the same environment.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.baseline import qwen3_settings
from benchmarks.corpus import IDS, OFFSETS, WINDOW_TOKENS, Corpus, CutDocuments, prepare
from benchmarks.products import Step, mean_keys
from configs.artifacts import read_json, require_writable, write_json
from configs.cli import Parser, add_switch, split_words
from configs.flags import TrainRun, parse_run
from configs.hardware import cpu_instructions, cpu_name
from configs.paths import ROOT, TOKENIZER_DIR, display
from configs.schema import ModelConfig, UserError, preset
from configs.stage_table import weight_file
from dataset.tensors import open_tensors
from dataset.tokenizer import RustBPETokenizer
from model.device import choose_device
from model.weights import read_checkpoint
from trainer.choices import fill_in
from trainer.resume import saved_states
from trainer.runtime import PARENT_VARIABLE, Runtime

ARMS = ("minillm", "baseline")
ENDLESS = 10**6
"""Epochs that no budget reaches."""
MIN_ROW_TOKENS = 512
"""Rows of ours where the profile's are shorter than the windows scored: places beyond its rows a model never learns."""
POLL_SECONDS = 0.05
STOP_SECONDS = 300.0
"""Within which a program that was asked to stop must end."""
WARMUP_LINES = 3
"""Lines of the metrics before the clock of a speed starts."""
BASELINE_BATCHES = {"cpu": (4, 16), "cuda": (32, 128)}
BASELINE_RATES = (5e-4, 1e-3, 2e-3, 4e-3)

Line = dict[str, float]


# --- flags ------------------------------------------------------------------------------------------------------------


def add_flags(parser: Parser, *, minutes: float, minutes_help: str) -> None:
    """The flags of both benchmarks."""
    parser.add_argument(
        "--model", default="minillm-26m", metavar="NAME", help="preset, or width x depth: 256x4 模型结构 (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=minutes, metavar="M", help=f"{minutes_help} (%(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, a plot beside it 结果文件")
    parser.add_argument("--from_json", type=Path, metavar="FILE", help="only print and draw these figures 由结果作图")
    data = parser.add_argument_group("text 文本")
    data.add_argument("--work_dir", type=Path, metavar="DIR", help="prepared text, and runs for a while 工作目录")
    data.add_argument("--text", type=Path, metavar="FILE", help="JSONL of records with `text` to prepare it from 文本")
    data.add_argument(
        "--max_tokens", type=int, metavar="N", help="with --text: prepare so many tokens; 0: all 词元上限 (0)"
    )
    data.add_argument(
        "--heldout_docs", type=int, metavar="N", help="with --text: documents to score at most 留出文档数 (300)"
    )
    add_switch(data, "--prepare", default=False, help="prepare the text and stop 只准备数据")
    arms = parser.add_argument_group("arms 对比项")
    arms.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="which to run 要运行的项 (both)")
    arms.add_argument("--profile", metavar="NAME", help="of ours 我们的配置 (default on a GPU, else cpu)")
    arms.add_argument(
        "--pretrain_args",
        default="",
        metavar="TEXT",
        help='more flags of ours: --pretrain_args="--batch_size 4" 更多参数',
    )
    arms.add_argument(
        "--learning_rates",
        type=float,
        nargs="+",
        default=BASELINE_RATES,
        metavar="LR",
        help="of the baseline 基线学习率",
    )
    arms.add_argument(
        "--batch_sizes", type=int, nargs="+", metavar="N", help="of the baseline 基线批大小 (4 16; on a GPU 32 128)"
    )
    arms.add_argument(
        "--baseline_dtype",
        choices=("float32", "bfloat16"),
        help="arithmetic of the baseline 基线精度 (float32; on a GPU bfloat16 autocast)",
    )
    arms.add_argument("--device", default="auto", help="auto, cpu, cuda 设备 (%(default)s)")
    arms.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of both arms; 0: PyTorch's choice 线程数 (%(default)s)"
    )
    arms.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="a run each 随机种子 (0)")


# --- what is compared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What both arms share."""

    args: Namespace
    device: torch.device
    corpus: Corpus
    tokenizer: RustBPETokenizer
    run: TrainRun
    """Ours, as its flags resolve."""
    shape: ModelConfig
    words: tuple[str, ...]
    """Flags of ours, without folders and seed."""

    @property
    def baseline_dtype(self) -> str:
        """The baseline's arithmetic."""
        return self.args.baseline_dtype or ("float32" if self.device.type == "cpu" else "bfloat16")

    @property
    def batch_sizes(self) -> list[int]:
        """The baseline's batch sizes to choose from."""
        return list(self.args.batch_sizes or BASELINE_BATCHES[self.device.type])

    @property
    def documents(self) -> CutDocuments:
        """The baseline's rows."""
        return CutDocuments(self.corpus.folder, self.tokenizer.end_of_text_id)

    def our_step(self) -> Step:
        """A micro-batch of ours."""
        facts = self.corpus.tensor_facts()
        document_ids = open_tensors(self.corpus.tensors)["document_ids"][:256].numpy()
        places = facts["rows"] * facts["max_length"]
        settings = fill_in(
            self.run.train, "pretrain", self.shape, facts, Runtime(self.device, torch.float32), fresh=True
        )
        tokens = settings.batch_size * facts["max_length"]
        return Step(self.shape, tokens, facts["num_targets"] / places, mean_keys(document_ids))

    def baseline_step(self, batch_size: int) -> Step:
        """A step of the baseline; its padding is computed too."""
        share = self.documents.targets_per_row / WINDOW_TOKENS
        return Step(self.shape, batch_size * WINDOW_TOKENS, share, (WINDOW_TOKENS + 1) / 2)

    def step_words(self, run_tokens: float) -> list[str]:
        """Flags that say what our trainer would choose for a run of so many tokens: the size of a step, and compiling.

        Our runs have no end of their own, from which the trainer could tell.
        """
        facts = self.corpus.tensor_facts()
        rows = max(1, round(run_tokens / facts["max_length"]))
        asked = replace(self.run.train, epochs=1, max_steps=0)
        runtime = Runtime(self.device, torch.float32)
        found = fill_in(asked, "pretrain", self.shape, facts | {"rows": rows}, runtime, fresh=True)
        words = ["--use_compile", str(int(bool(found.use_compile)))]
        if not (asked.batch_size and asked.accumulation_steps):
            words += ["--tokens_per_step", str(found.batch_size * found.accumulation_steps * facts["max_length"])]
        return words

    def our_command(self, folder: Path, seed: int, *words: str) -> list[str]:
        """A call of our trainer."""
        where = ["--data_path", str(self.corpus.tensors), "--out_dir", str(folder), "--tf_dir", str(folder)]
        return [
            sys.executable, str(ROOT / "trainer" / "train_pretrain.py"), *where, *self.words, "--seed", str(seed),
            "--from_resume", "0", "--epochs", str(ENDLESS), *words,
        ]  # fmt: skip

    def our_weights(self, folder: Path) -> Path:
        """Where our trainer leaves its weights."""
        return folder / weight_file("pretrain", self.shape)

    def baseline_command(self, folder: Path, seed: int, rate: float, batch_size: int, *words: str) -> list[str]:
        """A call of the baseline; its weights go to `weights.pt`."""
        return [
            sys.executable, str(ROOT / "benchmarks" / "baseline.py"), "--corpus", str(self.corpus.folder),
            "--model", self.args.model, "--learning_rate", str(rate), "--batch_size", str(batch_size),
            "--device", str(self.device), "--dtype", self.baseline_dtype, "--seed", str(seed),
            "--metrics", str(folder / "metrics.jsonl"), "--out", str(folder / "weights.pt"), *words,
        ]  # fmt: skip

    def plain_command(self, rate: float, batch_size: int, seconds: float) -> list[str]:
        """A call of the plain loop."""
        given = {
            "config": qwen3_settings(self.shape),
            "ids": str(self.corpus.folder / IDS),
            "offsets": str(self.corpus.folder / OFFSETS),
            "pad_id": self.tokenizer.end_of_text_id,
            "window": WINDOW_TOKENS,
            "batch_size": batch_size,
            "learning_rate": rate,
            "device": str(self.device),
            "dtype": self.baseline_dtype,
            "seconds": seconds,
        }
        return [sys.executable, str(ROOT / "benchmarks" / "plain_loop.py"), json.dumps(given)]

    def facts(self) -> dict[str, Any]:
        """What every object of the JSON says of the machine and the text."""
        return {
            "model": self.args.model,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name(),
            "instructions": cpu_instructions() if self.device.type == "cpu" else [],
            "threads": self.args.threads or torch.get_num_threads(),
            "torch": str(torch.__version__),
            "corpus": {key: self.corpus.facts[key] for key in ("text", "text_sha256", "documents", "tokens")},
            "seeds": self.args.seeds,
        }


def our_words(args: Namespace, device: torch.device) -> tuple[str, ...]:
    """Flags of our trainer: the profile and the model, what differs from them, and last what the user adds."""
    words = ["--profile", args.profile or ("default" if device.type == "cuda" else "cpu"), "--preset", args.model]
    words += ["--tokenizer_dir", str(TOKENIZER_DIR)]
    if args.device != "auto":
        words += ["--device", args.device]
    if device.type == "cpu":
        words += ["--log_interval", "1"]  # a step takes seconds there
    if parse_run("pretrain", "", words).train.max_seq_len < WINDOW_TOKENS:
        words += ["--max_seq_len", str(MIN_ROW_TOKENS)]
    return (*words, *split_words("--pretrain_args", args.pretrain_args))


def start_bench(args: Namespace) -> Bench | None:
    """Prepare the text; None when that is all that was asked for. Raises: UserError."""
    if args.work_dir is None:
        raise UserError("--work_dir is missing: give a folder for the prepared text and for the runs.")
    least_of = {"minutes": 0.01, "calibrate_minutes": 0.01, "heldout_docs": 1, "max_tokens": 0, "threads": 0}
    for name, least in least_of.items():
        if (value := getattr(args, name, None)) is not None and value < least:
            raise UserError(f"--{name} {value}: must be {least} or more.")
    preset(args.model)  # a misspelt name ends here
    device = choose_device(args.device)
    if device.type not in BASELINE_BATCHES:
        raise UserError(f"--device {args.device}: the benchmark knows {' and '.join(BASELINE_BATCHES)} alone.")
    if args.threads:
        torch.set_num_threads(args.threads)
    words = our_words(args, device)
    run = parse_run("pretrain", "", words)
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    folder = args.work_dir.absolute()
    require_writable(folder)
    corpus = prepare(
        folder / "corpus", args.text, tokenizer,
        row_tokens=run.train.max_seq_len, max_tokens=args.max_tokens, num_heldout=args.heldout_docs,
    )  # fmt: skip
    if args.prepare:
        size = sum(path.stat().st_size for path in corpus.folder.rglob("*") if path.is_file())
        print(f"{display(corpus.folder)}: {corpus.facts['tokens']:,} tokens in {corpus.facts['documents']:,} documents, "
              f"{corpus.facts['heldout_documents']} held out; {size / 1e6:.0f} MB")  # fmt: skip
        return None
    shape = replace(run.model, vocab_size=tokenizer.get_vocab_size()).resolve()
    if "baseline" in args.arms:
        qwen3_settings(shape)
    return Bench(args, device, corpus, tokenizer, run, shape, words)


# --- processes --------------------------------------------------------------------------------------------------------


class Program:
    """A started command, whose end is noticed to POLL_SECONDS."""

    def __init__(self, command: Sequence[str], folder: Path, threads: int, *, own_waiting: bool = False) -> None:
        self.log = folder / "log.txt"
        environment = os.environ | {
            PARENT_VARIABLE: str(os.getpid()),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
            "TRITON_CACHE_DIR": str(folder / "compiled" / "triton"),
            **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        }
        if own_waiting:
            environment.pop("OMP_WAIT_POLICY", None)
        self.command = command
        self.peak_rss_mb = 0.0
        """Of the process, in 10^6 bytes, once it has ended."""
        self.seconds = 0.0
        """From its start to its end."""
        with self.log.open("wb") as log:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def has_ended(self) -> bool:
        """Look, without waiting."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.seconds = time.perf_counter() - self.started
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.peak_rss_mb = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        return self.process.returncode is not None

    def wait(self, limit: float = float("inf")) -> None:
        """Wait for the end; kill after `limit` seconds."""
        give_up = time.perf_counter() + limit
        while not self.has_ended():
            if time.perf_counter() > give_up:
                self.process.kill()
                give_up = float("inf")
            time.sleep(POLL_SECONDS)

    def check(self, *allowed: int) -> None:
        """Raises: UserError with its last words when it ended in another way."""
        if self.process.returncode not in (0, *allowed):
            words = [
                line for line in self.log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()
            ]
            name = Path(self.command[1]).name
            raise UserError(f"{name} ended with exit code {self.process.returncode}: {' | '.join(words[-4:])}")


@contextmanager
def started(
    bench: Bench, make_command: Callable[[Path], Sequence[str]], *, own_waiting: bool = False
) -> Iterator[tuple[Program, Path]]:
    """Start a command in a folder of its own, which is removed afterwards, as is the process if it still runs.

    With `own_waiting`, OpenMP's threads wait as they do where nobody has set how; else as `configs` sets it.
    """
    with tempfile.TemporaryDirectory(prefix="run_", dir=bench.args.work_dir.absolute()) as name:
        folder = Path(name)
        program = Program(make_command(folder), folder, bench.args.threads, own_waiting=own_waiting)
        try:
            yield program, folder
        finally:
            if not program.has_ended():
                program.process.kill()
                program.wait()


# --- what a run says of itself ----------------------------------------------------------------------------------------


def find_metrics(folder: Path) -> Path:
    """The metrics of a run: the baseline's file, or ours, whose name holds a fingerprint; it may not exist yet."""
    return next(iter((folder / "metrics").glob("pretrain_*.jsonl")), folder / "metrics.jsonl")


def read_lines(path: Path) -> list[Line]:
    """The lines that say how far training is; a validation's are left out."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if "seconds" in line and "loss" in line]


@dataclass(frozen=True, slots=True)
class Speed:
    """A stretch of training without its start."""

    startup_seconds: float
    """From the start of the process to the first step, compilation included: all that its steps don't explain."""
    seconds: float
    steps: int
    targets: float
    """Real tokens: labels other than -100."""
    peak_rss_mb: float
    dtype: str

    @property
    def tokens_per_second(self) -> float:
        """Real tokens."""
        return self.targets / self.seconds

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return self.seconds / self.steps


def stretch(lines: Sequence[Line], seconds: float) -> tuple[Line, Line] | None:
    """The lines between which the speed is measured: after the warm-up, and at least `seconds` later; None: not yet."""
    if len(lines) <= WARMUP_LINES:
        return None
    first = lines[WARMUP_LINES - 1]
    return next(((first, line) for line in lines if line["seconds"] >= first["seconds"] + seconds), None)


def measure_speed(bench: Bench, make_command: Callable[[Path], Sequence[str]], *, seconds: float, dtype: str) -> Speed:
    """Train for so many seconds after the warm-up, then ask the program to stop.

    `dtype` is what the arm computes in, where it leaves no state that says so. Raises: UserError when it fails.
    """
    with started(bench, make_command) as (program, folder):
        found, size, seen, first_seen = None, 0, 0, 0.0
        while found is None:
            if program.has_ended():
                program.check()
                raise UserError(f"{Path(program.command[1]).name} ended before --minutes were over. Ask for fewer.")
            path = find_metrics(folder)
            if path.exists() and path.stat().st_size > size:
                size = path.stat().st_size
                lines = read_lines(path)
                if seen < WARMUP_LINES <= len(lines):
                    # The line may be older than this look at it, but by no more than the lines that came with it.
                    first_seen = time.perf_counter() - program.started - (
                        lines[-1]["seconds"] - lines[WARMUP_LINES - 1]["seconds"]
                    )  # fmt: skip
                seen = len(lines)
                found = stretch(lines, seconds)
            time.sleep(POLL_SECONDS)
        program.process.send_signal(signal.SIGTERM)
        program.wait(STOP_SECONDS)
        program.check(143, -signal.SIGTERM)
        for state in saved_states(folder / "checkpoints" / "pretrain")[:1]:
            dtype = read_checkpoint(state, "Run the benchmark again.")["choices"]["dtype"]
    first, last = found
    taken, steps = last["seconds"] - first["seconds"], int(last["step"] - first["step"])
    return Speed(
        startup_seconds=max(0.0, first_seen - first["step"] * taken / steps),
        seconds=taken,
        steps=steps,
        targets=last["targets"] - first["targets"],
        peak_rss_mb=program.peak_rss_mb,
        dtype=dtype,
    )


# --- results ----------------------------------------------------------------------------------------------------------


def keep(path: Path | None, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write results, an object an arm, and beside them those of an earlier run for other arms of the same model.

    Returns: what the file holds now.
    """
    arms = {result["arm"]: result for result in results}
    if path is None:
        return list(arms.values())
    if path.exists():
        for old in read_json(path, "Give --json another file."):
            if all(old.get(key) == results[0].get(key) for key in ("model", "device", "corpus")):
                arms.setdefault(old["arm"], old)
    ordered = [arms[name] for name in ARMS if name in arms]
    write_json(path, ordered)
    return ordered


def verdict(name: str, reached: float, wanted: float, unit: str = "x") -> str:
    """A line that says whether a target is met."""
    met = "met" if reached >= wanted else "NOT met"
    return f"- {name}: {reached:.2f}{unit} (target {wanted:g}{unit}): {met}"
