"""Parts and their checks: what fails, hangs or crashes stops nothing else."""

import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.checks import FAILED, NOT_RUN, OK, TIMED_OUT, Check, CheckFailed, Ended, Row
from benchmarks.gpu.session import Part, Session, run_part
from benchmarks.on_gpu import run_parts
from tests.benchmarks.gpu.conftest import MACHINE, part, program, written

HANG = "import time\ndef asleep():\n    time.sleep(60)\nasleep()"


def test_a_part_that_fails_one_that_hangs_and_one_that_crashes_do_not_stop_the_next(session: Session) -> None:
    def broken(session: Session) -> None:
        session.run([program("before", "pass")])
        raise RuntimeError("no such thing")

    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    parts = [
        Part("broken", "raises", 60.0, broken, lambda rows: ""),
        part("hanging", program("asleep", HANG, limit=2.5)),
        part("crashing", program("segfault", crash), program("error", "raise ValueError('what it was')")),
        part("sound", program("well", "print('done')")),
    ]
    assert run_parts(parts, session) == 3
    found = written(session)["parts"]
    assert [found[name]["status"] for name in ("broken", "hanging", "crashing", "sound")] == [FAILED] * 3 + ["done"]
    assert "RuntimeError: no such thing" in found["broken"]["traceback"]
    assert found["broken"]["checks"][0]["status"] == OK
    asleep = found["hanging"]["checks"][0]
    assert asleep["status"] == TIMED_OUT and "in asleep" in asleep["traceback"]
    segfault, error = found["crashing"]["checks"]
    assert segfault["status"] == FAILED and f"exit code -{signal.SIGSEGV:d}" in segfault["error"]
    assert "Fatal Python error: Segmentation fault" in segfault["traceback"]
    assert error["error"] == "exit code 1: ValueError: what it was"
    assert error["traceback"].startswith("Traceback (most recent call last)")
    assert found["sound"]["checks"][0]["status"] == OK


def test_each_result_is_in_the_file_before_the_next_check_starts(session: Session) -> None:
    look = f"import json; print(json.dumps(json.load(open({str(session.out / 'results.json')!r}))))"
    second = program("second", look, read=lambda ended: {"seen": ended.json()["parts"]["kept"]})
    run_part(part("kept", program("first", "pass"), second), session)
    seen = written(session)["parts"]["kept"]["checks"][1]["seen"]
    assert seen["status"] == "running"
    assert [row["check"] for row in seen["checks"]] == ["first"]


def test_checks_run_side_by_side_and_come_back_in_their_order(session: Session) -> None:
    names = ["slow", "quick"]
    meet = """
import sys, time
from pathlib import Path
mine, other = Path(sys.argv[1]), Path(sys.argv[2])
mine.touch()
while not other.exists():
    time.sleep(0.01)
"""
    session.work.mkdir()
    files = [str(session.work / name) for name in names]
    checks = [
        Check(name=name, command=[sys.executable, "-c", meet, *order], limit=30)
        for name, order in zip(names, (files, files[::-1]), strict=True)
    ]
    session.part = "both"
    session.results.begin("both", 60.0)
    assert [(row["check"], row["status"]) for row in session.run(checks, at_once=2)] == [(name, OK) for name in names]


def test_a_check_has_what_is_left_of_its_part_s_time_and_one_that_comes_later_is_not_run(session: Session) -> None:
    started = time.monotonic()
    found = run_part(part("short", program("asleep", HANG), program("late", "pass"), limit=1.0), session)
    assert time.monotonic() - started < 20
    assert [row["status"] for row in found["checks"]] == [TIMED_OUT, NOT_RUN]
    assert found["checks"][1]["error"] == "the part's time was over"
    assert "timed out: asleep; not run: late" in found["result"]


@pytest.mark.parametrize("hangs", [True, False], ids=["hanging", "ended"])
def test_what_a_check_has_started_ends_with_it(session: Session, tmp_path: Path, hangs: bool) -> None:
    alive = tmp_path / "alive"
    child = f"import pathlib, time\nwhile True:\n    pathlib.Path({str(alive)!r}).touch()\n    time.sleep(0.01)"
    text = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}]){'.wait()' if hangs else ''}"
    run_part(part("family", program("parent", text, limit=2.0)), session)
    alive.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not alive.exists()


def test_a_figure_that_is_wrong_fails_its_check_and_is_kept(session: Session) -> None:
    def read(ended: Ended) -> Row:
        raise CheckFailed("too slow", {"tokens_per_s": 3, "loss": math.nan, "losses": [math.inf]})

    found = run_part(
        part("speed", program("steps", "pass", read=read), program("other", "pass", read=unreadable)), session
    )
    row = written(session)["parts"]["speed"]["checks"][0]
    assert (row["status"], row["error"], row["tokens_per_s"]) == (FAILED, "too slow", 3)
    assert (row["loss"], row["losses"]) == ("nan", ["inf"])
    assert "its results can't be read (KeyError: 'figure')" in found["checks"][1]["error"]


def unreadable(ended: Ended) -> Row:
    raise KeyError("figure")


def test_what_a_program_did_in_another_way_than_asked_is_noted(session: Session) -> None:
    say = "import sys; print('torch.compile failed (no compiler): training goes on', file=sys.stderr)"
    row = run_part(part("noted", program("steps", say)), session)["checks"][0]
    assert row["notes"] == ["torch.compile failed (no compiler): training goes on"]


def test_settings_of_the_user_s_own_runs_reach_no_check(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT_DIR", "/home/user/out")
    look = program("look", "import os; assert 'OUT_DIR' not in os.environ and os.environ['DATA_DIR'] == 'here'")
    given = Check(name="look", command=look.command, limit=30, environment={"DATA_DIR": "here"})
    assert run_part(part("alone", given), session)["checks"][0]["status"] == OK


def test_several_checks_run_at_once_only_where_card_and_cores_have_room(session: Session, monkeypatch: Any) -> None:
    session.device = "cuda"
    for memory, cores, at_once in ((85.0, 16, 4), (42.0, 16, 2), (8.0, 16, 1), (85.0, 2, 1)):
        monkeypatch.setattr("benchmarks.gpu.session.num_cores", lambda cores=cores: cores)
        session.machine = {**MACHINE, "memory_gb": memory}
        assert session.at_once == at_once
