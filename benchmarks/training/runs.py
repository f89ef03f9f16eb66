"""One finished run with its held-out score, noted in a journal so that no call makes it again."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.training.arms import Bench
from benchmarks.training.corpus import WINDOW_TOKENS
from benchmarks.training.processes import started
from benchmarks.training.scoring import bits_per_byte
from benchmarks.training.speed import Speed, find_metrics, read_lines
from configs.artifacts import append_line, fingerprint, sha256_file
from configs.paths import ROOT, display

SCORING = ("benchmarks/training/scoring.py", "evaluation/likelihood.py")
SOURCES = {
    "baseline": ("benchmarks/training/baseline.py", "benchmarks/training/corpus.py", *SCORING),
    "minillm": ("configs/**/*.py", "configs/*.yaml", "dataset/**/*.py", "model/**/*.py", "trainer/**/*.py", *SCORING),
}
"""Files that an arm's result depends on, as well as on text, machine and flags."""


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run."""

    seconds: float
    """From the start of the process to its end."""
    tokens: int
    """Targets that it was trained on."""
    heldout_bpb: float
    bytes_scored: int
    steps: int
    peak_rss_mb: float


Noted = TypeVar("Noted", Run, Speed)


def once(bench: Bench, kind: type[Noted], run_key: dict[str, Any], make: Callable[[], Noted]) -> Noted:
    """The result noted under this key for this machine, text and code, or a new one.

    A new one is noted at once.
    """
    if bench.args.json is None:
        return make()
    journal = bench.args.json.with_suffix(".runs.jsonl")
    facts = {name: value for name, value in bench.facts().items() if name != "seeds"}
    files = sorted(path for pattern in SOURCES[run_key["arm"]] for path in ROOT.glob(pattern))
    code = fingerprint([sha256_file(path) for path in files])
    facts |= {"heldout": bench.corpus.facts["num_heldout"], "code": code}
    key = json.loads(json.dumps(facts | {"kind": kind.__name__} | run_key))  # as it is read back
    for text in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        if (line := json.loads(text))["key"] == key:
            print(f"noted in {display(journal)} at {line['time']}:", file=sys.stderr, flush=True)
            return kind(**line["result"])
    result = make()
    append_line(journal, {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "key": key, "result": asdict(result)})
    return result


def tell(what: str, run: Run) -> Run:
    """Say on stderr how a run ended."""
    print(
        f"{what}: {run.heldout_bpb:.4f} bits per byte after {run.seconds:.1f} s, {run.steps} steps, {run.tokens:,} tokens",
        file=sys.stderr,
        flush=True,
    )
    return run


def finished(
    bench: Bench,
    make_command: Callable[[Path], Sequence[str]],
    load: Callable[[Path], torch.nn.Module],
) -> Run:
    """Run a command to its end, then score the weights that it left in its folder.

    Args: load: reads those weights.
    """
    with started(bench, make_command) as (program, folder):
        program.wait()
        program.check()
        last = read_lines(find_metrics(folder))[-1]
        model = load(folder).eval()
    model.to(bench.device)

    def logits(ids: Tensor) -> Tensor:
        shown = model(ids)
        return shown if isinstance(shown, Tensor) else shown.logits

    texts = bench.corpus.heldout_texts()
    bpb, num_bytes = bits_per_byte(logits, bench.tokenizer, texts, length=WINDOW_TOKENS, device=bench.device)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return Run(
        seconds=round(program.seconds, 2),
        tokens=round(last["targets"]),
        heldout_bpb=round(bpb, 5),
        bytes_scored=num_bytes,
        steps=int(last["step"]),
        peak_rss_mb=round(program.peak_rss_mb, 1),
    )
