"""Measures the peak memory and the speed of the mix and of the token export.

    python benchmarks/mix_memory.py --sizes 1 2 5 --work_dir /path/with/space

`--sizes` are in GB. For each size the program writes a file of raw text and a file of chats. Each
record is about 1 KB long and has its own serial number, so no two records are equal. Then the
program runs the real scripts on these files and prints a table. A run needs about four times its
size as free disk space. At the end of a run its files are deleted.
"""

import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import proc
from configs.cli import Parser, run
from configs.paths import ROOT, SAMPLE_DIR
from configs.schema import UserError
from dataset.samples.files import write_samples

RECORD_CHARS = 330
"""Characters of a record: about 1 KB of UTF-8."""
CORPUS_SHARE = 0.6
"""Share of the bytes that is raw text; the rest is chats."""
SAMPLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Measured:
    """One process tree, from start to end."""

    seconds: float
    peak_process: int
    """Bytes: largest resident set of a single process."""
    peak_tree: int
    """Bytes: largest sum over all processes, shared pages counted once."""


def pieces() -> list[str]:
    """Sentences of the bundled prose, to build records from."""
    path = write_samples(SAMPLE_DIR, ("corpus",))["corpus"]
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 2000)]
    return [sentence + "。" for text in texts for sentence in text.split("。") if len(sentence) > 4]


def records(sentences: Sequence[str], first_serial: int) -> Iterator[tuple[int, str]]:
    """Serial numbers and texts of about RECORD_CHARS characters, without end."""
    rng = random.Random(first_serial)
    for serial in itertools.count(first_serial):
        text = ""
        while len(text) < RECORD_CHARS:
            text += sentences[int(rng.random() * len(sentences))]
        yield serial, text


def write_sources(folder: Path, num_bytes: int, sentences: Sequence[str]) -> None:
    """`pretrain_big.jsonl` and `sft_big.jsonl`, together `num_bytes` long."""
    for name, share, first in (("pretrain_big.jsonl", CORPUS_SHARE, 0), ("sft_big.jsonl", 1 - CORPUS_SHARE, 10**9)):
        size = 0
        with (folder / name).open("wb") as file:
            for serial, text in records(sentences, first):
                if name.startswith("sft"):
                    turns = [(f"请讲第{serial}个故事。", "user"), (text, "assistant")]
                    record: dict[str, object] = {"conversations": [{"role": r, "content": c} for c, r in turns]}
                else:
                    record = {"text": f"第{serial}篇。{text}"}
                size += file.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
                if size >= num_bytes * share:
                    break


def measure(command: Sequence[str]) -> Measured:
    """Run a command to its end. Raises: UserError when it fails."""
    with tempfile.TemporaryFile("w+") as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        peak_process = peak_tree = 0
        while process.poll() is None:
            usage = [memory_of(pid) for pid in proc.tree(process.pid)]
            peak_process = max([peak_process, *(high for high, _ in usage)])
            peak_tree = max(peak_tree, sum(share for _, share in usage))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - start
        if process.returncode:
            stderr.seek(0)
            raise UserError(f"{' '.join(command)}: exit {process.returncode}: {stderr.read().strip().splitlines()[-1]}")
    return Measured(seconds, peak_process, peak_tree)


def memory_of(pid: int) -> tuple[int, int]:
    """Bytes: the highest resident set so far, and the present share of memory."""
    try:
        return proc.memory("status", "VmHWM", pid), proc.memory("smaps_rollup", "Pss", pid)
    except OSError:
        return 0, 0  # it ended meanwhile


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each size, and print a row of the table for each step."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1.0, 2.0, 5.0], metavar="GB", help="sizes of the sources 数据大小"
    )
    parser.add_argument("--work_dir", type=Path, metavar="DIR", help="where the files go for a while 临时目录")
    parser.add_argument(
        "--steps",
        nargs="+",
        choices=("mix", "pretrain", "sft"),
        default=["mix", "pretrain"],
        help="what to measure 测量对象",
    )
    arguments = parser.parse_args(argv)
    proc.require("/proc/self/smaps_rollup", "reads a process's memory")
    sentences = pieces()
    print("| step | input GB | seconds | MB/s | peak RSS of a process, MB | peak of the tree, MB |")
    print("|---|---|---|---|---|---|", flush=True)
    for size in arguments.sizes:
        if arguments.work_dir:
            arguments.work_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="minillm-bench-", dir=arguments.work_dir))
        try:
            for line in measure_size(folder, size, sentences, arguments.steps):
                print(line, flush=True)
        finally:
            shutil.rmtree(folder)
    return 0


def measure_size(folder: Path, gigabytes: float, sentences: Sequence[str], steps: Sequence[str]) -> Iterator[str]:
    """Rows of the table for sources of one size."""
    sources, mixed = folder / "sources", folder / "mixed"
    sources.mkdir()
    write_sources(sources, int(gigabytes * 1e9), sentences)
    scripts = ROOT / "scripts"
    mix = ["--source_dir", str(sources), "--output_dir", str(mixed), "--preference", "0"]
    mix += ["--general", str(10**9), "--max_rounds", "1"]  # each record once
    for step in ("mix", *(step for step in steps if step != "mix")):
        if step == "mix":
            command = [sys.executable, str(scripts / "build_chinese_mix.py"), *mix]
            num_bytes = sum(path.stat().st_size for path in sources.iterdir())
        else:
            data = mixed / f"{step}_chinese.jsonl"
            command = [sys.executable, str(scripts / "export_embeddings.py"), step, "--input", str(data)]
            command += ["--output", str(folder / f"{step}_tokens")]
            num_bytes = data.stat().st_size
        result = measure(command)
        if step in steps:
            speed = num_bytes / 1e6 / result.seconds
            peaks = f"{result.peak_process / 1e6:.0f} | {result.peak_tree / 1e6:.0f}"
            yield f"| {step} | {num_bytes / 1e9:.2f} | {result.seconds:.0f} | {speed:.1f} | {peaks} |"


if __name__ == "__main__":
    run(main)
