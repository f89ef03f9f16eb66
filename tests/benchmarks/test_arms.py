"""How a run is clocked, and how results are kept."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks.arms import (
    MIN_ROW_TOKENS,
    WARMUP_LINES,
    Bench,
    add_flags,
    keep,
    measure_speed,
    our_words,
    read_lines,
    started,
    stretch,
    verdict,
)
from configs.cli import Parser
from configs.flags import parse_run
from configs.schema import UserError

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


def flags(*words: str) -> Namespace:
    parser = Parser()
    add_flags(parser, minutes=1.0, minutes_help="")
    return parser.parse_args(words)


def bench_in(folder: Path) -> Bench:
    return cast(Bench, SimpleNamespace(args=flags("--work_dir", str(folder))))


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


def test_a_program_does_not_outlive_an_error_beside_it(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        started(bench_in(tmp_path), lambda folder: [sys.executable, "-c", "import time; time.sleep(600)"]) as running,
    ):
        raise RuntimeError
    assert running[0].process.returncode == -9
    assert not running[1].exists()


def test_each_run_compiles_afresh(tmp_path: Path) -> None:
    shown = "import os; print(os.environ['TORCHINDUCTOR_CACHE_DIR'], os.environ.get('OMP_WAIT_POLICY'))"
    seen = []
    for own_waiting in (False, True):
        command = [sys.executable, "-c", shown]
        with started(bench_in(tmp_path), lambda folder, c=command: c, own_waiting=own_waiting) as (program, folder):
            program.wait()
            cache, policy = program.log.read_text().split()
            assert Path(cache).parent == folder and not Path(cache).exists()
            seen.append((cache, policy))
    assert seen[0][0] != seen[1][0]
    assert [policy for _, policy in seen] == ["passive", "None"]


def test_our_rows_are_at_least_as_long_as_the_windows_scored() -> None:
    cpu = torch.device("cpu")
    for extra, length in (("", MIN_ROW_TOKENS), ("--max_seq_len 1024 --batch_size 2", 1024)):
        run = parse_run("pretrain", "", our_words(flags("--model", "64x2", "--pretrain_args", extra), cpu))
        assert (run.train.max_seq_len, run.model.hidden_size, run.profile) == (length, 64, "cpu")
    assert parse_run("pretrain", "", our_words(flags(), torch.device("cuda"))).train.max_seq_len == 2048


def test_an_arm_measured_before_stays_beside_one_of_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"

    def result(arm: str, **fields: Any) -> dict[str, Any]:
        return {"arm": arm, "model": "64x2", "device": "cpu", "corpus": {"tokens": 3}, **fields}

    keep(path, [result("baseline", speed=1)])
    assert [r["arm"] for r in keep(path, [result("minillm", speed=2)])] == ["minillm", "baseline"]
    assert [r["speed"] for r in keep(path, [result("baseline", speed=3)])] == [2, 3]
    assert keep(path, [result("minillm", model="128x2")]) == [result("minillm", model="128x2")]
    assert json.loads(path.read_text()) == [result("minillm", model="128x2")]
    assert keep(None, [result("minillm")]) == [result("minillm")]


def test_a_verdict_says_met_from_the_target_on() -> None:
    assert verdict("speed", 2.5, 2.5) == "- speed: 2.50x (target 2.5x): met"
    assert verdict("share", 89.9, 90.0, "%").endswith("NOT met")
