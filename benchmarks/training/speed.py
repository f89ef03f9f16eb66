"""How fast an arm trains, by the lines of metrics that it writes while it runs."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.training.arms import Bench
from benchmarks.training.processes import POLL_SECONDS, started
from configs.schema import UserError
from model.weights import read_checkpoint
from trainer.resume import saved_states

STOP_SECONDS = 300.0
"""Seconds within which a program that was asked to stop must end."""
WARMUP_LINES = 3
"""Lines of the metrics before the clock of a speed starts."""

Line = dict[str, float]


def find_metrics(folder: Path) -> Path:
    """The metrics of a run; the file may not exist yet.

    It is the baseline's, or ours, whose name holds a fingerprint.
    """
    return next(iter((folder / "metrics").glob("pretrain_*.jsonl")), folder / "metrics.jsonl")


def read_lines(path: Path) -> list[Line]:
    """The lines that say how far training is. Those of a validation are left out."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if "seconds" in line and "loss" in line]


@dataclass(frozen=True, slots=True)
class Speed:
    """A stretch of training without its start."""

    startup_seconds: float
    """From the start of the process to the first step, compilation included: all that its steps
    don't explain."""
    seconds: float
    steps: int
    targets: float
    """Real tokens: labels other than -100."""
    peak_rss_mb: float
    dtype: str

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second."""
        return self.targets / self.seconds

    @property
    def step_seconds(self) -> float:
        """Seconds of one step."""
        return self.seconds / self.steps


def stretch(lines: Sequence[Line], seconds: float) -> tuple[Line, Line] | None:
    """The lines between which the speed is measured; None while there are not enough.

    The first one ends the warm-up, the other comes at least `seconds` later.
    """
    if len(lines) <= WARMUP_LINES:
        return None
    first = lines[WARMUP_LINES - 1]
    return next(((first, line) for line in lines if line["seconds"] >= first["seconds"] + seconds), None)


def measure_speed(bench: Bench, make_command: Callable[[Path], Sequence[str]], *, seconds: float, dtype: str) -> Speed:
    """Train for so many seconds after the warm-up, then ask the program to stop.

    `dtype` is what the arm computes in, where it leaves no state that says so. Raises: UserError
    when it fails.
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
                    # The line may be older than this look at it, but by no more than the lines that
                    # came with it.
                    age = lines[-1]["seconds"] - lines[WARMUP_LINES - 1]["seconds"]
                    first_seen = time.perf_counter() - program.started - age
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
    # The warm-up's steps are taken to be as long as those measured; what is left is the start.
    return Speed(
        startup_seconds=max(0.0, first_seen - first["step"] * taken / steps),
        seconds=taken,
        steps=steps,
        targets=last["targets"] - first["targets"],
        peak_rss_mb=program.peak_rss_mb,
        dtype=dtype,
    )
