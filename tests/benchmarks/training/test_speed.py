"""How the speed of an arm is taken from the lines it writes."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.training.speed import WARMUP_LINES, measure_speed, read_lines, stretch
from configs.schema import UserError
from tests.benchmarks.training.test_arms import bench_in

LINES = [{"step": n, "loss": 1.0, "seconds": 10.0 + 2 * n, "tokens": 100.0 * n} for n in range(1, 9)]
TRAINER = """
import json, sys, time
with open(sys.argv[1], "w") as lines:
    for step in range(1, 10_000):
        time.sleep(0.01)
        line = {"step": step, "loss": 1.0, "targets": 100 * step, "seconds": 10.0 * step}
        print(json.dumps(line), file=lines, flush=True)
"""
"""Claims ten seconds a step."""


def test_a_speed_is_taken_after_the_warm_up_and_over_the_time_asked_for() -> None:
    assert stretch(LINES[:WARMUP_LINES], 0.0) is None
    assert stretch(LINES, 100.0) is None
    first, last = stretch(LINES, 3.9) or ({}, {})
    assert first["step"] == WARMUP_LINES and last["step"] == WARMUP_LINES + 2


def test_a_validation_and_a_line_half_written_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    words = [
        json.dumps(LINES[0]),
        json.dumps({"step": 1, "validation_loss": 2.0}),
        json.dumps(LINES[1]),
        '{"step": 3, ',
    ]
    path.write_text("\n".join(words), encoding="utf-8")
    assert read_lines(path) == LINES[:2]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_program_is_stopped_once_it_has_trained_long_enough(tmp_path: Path) -> None:
    speed = measure_speed(
        bench_in(tmp_path),
        lambda folder: [sys.executable, "-c", TRAINER, str(folder / "metrics.jsonl")],
        seconds=50.0,
        dtype="float32",
    )
    assert (speed.seconds, speed.steps, speed.targets, speed.dtype) == (50.0, 5, 500.0, "float32")
    assert speed.tokens_per_second == 10.0 and speed.step_seconds == 10.0
    assert speed.startup_seconds == 0.0  # its steps explain more than all the time there was
    assert speed.peak_rss_mb > 1
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exit code 3: out of luck"):
        measure_speed(
            bench_in(tmp_path),
            lambda folder: [sys.executable, "-c", "import sys; print('out of luck'); sys.exit(3)"],
            seconds=1.0,
            dtype="",
        )
