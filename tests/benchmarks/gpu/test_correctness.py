"""Losses that must agree, and memory that runs out."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.gpu.checks import FAILED, OK, CheckFailed, Ended
from benchmarks.gpu.correctness import compare, memory_checks
from benchmarks.gpu.session import Session
from tests.benchmarks.gpu.conftest import written


def test_compiled_steps_must_have_the_losses_of_eager_ones(session: Session) -> None:
    session.part = "steps"
    session.results.begin("steps", 60.0)
    eager = {"losses": [8.7, 8.1, 7.5]}
    compare(session, "near", eager, {"losses": [8.7, 8.11, 7.49]})
    compare(session, "far", eager, {"losses": [8.7, 8.2, 7.5]})
    compare(session, "broken", eager, {"losses": [8.7, math.nan, 7.5]})
    compare(session, "missing", eager, None)
    rows = written(session)["parts"]["steps"]["checks"]
    assert [(row["check"], row["status"]) for row in rows] == [("near", OK), ("far", FAILED), ("broken", FAILED)]


def test_with_less_memory_the_micro_batch_must_shrink_or_the_run_end_in_one_line(
    session: Session, tmp_path: Path
) -> None:
    session.part = "steps"
    session.results.begin("steps", 60.0)
    assert memory_checks(session, {"check": "pretrain eager", "status": OK}) == []  # a CPU: noted as not run
    assert {row["error"] for row in written(session)["parts"]["steps"]["checks"]} == {"needs a GPU"}
    halved, refused = memory_checks(session, {"peak_memory_gb": 10.0, "micro_batch": 16})
    assert "--memory_gb" in halved.command and "6.000" in halved.command
    for rows, is_well in ((8, True), (16, False)):
        text = json.dumps({"first_loss": 8.7, "last_loss": 7.1, "micro_batch": rows})
        if is_well:
            assert halved.read(Ended(text))["micro_batch"] == 8
        else:
            with pytest.raises(CheckFailed, match="not halved: 16 rows"):
                halved.read(Ended(text))
    assert refused.code == 1
    line = "error: batch_size = 16: a micro-batch of so many rows does not fit the GPU's memory. Pass a smaller one."
    assert refused.read(Ended("", f"pretrain: 16 rows\n{line}"))["said"] == line
    with pytest.raises(CheckFailed, match="not the one line"):
        refused.read(Ended("", "Traceback (most recent call last):\nOutOfMemoryError"))
