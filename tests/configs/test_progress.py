"""Progress: a bar that fits into a terminal, and few plain lines in a log."""

import io
from pathlib import Path

import pytest

from configs import progress
from tests.terminal import Terminal

PROGRAM = """
import sys, time
from configs.progress import progress_bar
with progress_bar(300, desc="pretrain", unit="steps") as bar:
    for step in range(300):
        bar.set_postfix_str("loss 1.234, val 1.301, tok/s 12,345")
        bar.update(1)
        if step == 150:
            bar.say("a line between")
        time.sleep(0.005)
"""


def on_a_terminal(columns: int) -> str:
    """What PROGRAM prints on a terminal with so many columns."""
    terminal = Terminal(["-c", PROGRAM], columns=columns)
    assert terminal.end() == 0
    return terminal.shown


def test_at_80_columns_the_bar_shows_its_figures_and_the_time_left() -> None:
    drawn = [line for line in on_a_terminal(80).replace("\n", "\r").split("\r") if "%|" in line]
    assert drawn
    for line in drawn:
        assert len(line) <= 80
    last = drawn[-1]
    assert "300/300" in last
    assert "loss 1.234, val 1.301, tok/s 12,345" in last
    assert "<00:" in last
    assert last.count("█") >= 3


def test_a_line_between_does_not_break_the_bar() -> None:
    assert "\na line between\r\n" in on_a_terminal(80).replace("\r\na", "\na").replace("\ra", "\na")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_plain_line_for_each_fifth(clock: list[float]) -> None:
    log = io.StringIO()
    with progress.progress_bar(1000, desc="pretrain", unit="steps", file=log) as bar:
        for _ in range(1000):
            clock[0] += 1.0
            bar.set_postfix_str("loss 1.2")
            bar.update(1)
    lines = log.getvalue().splitlines()
    assert len(lines) == 5
    assert "\r" not in log.getvalue()
    assert lines[1] == "pretrain 40% (400/1,000 steps) 06:40, 10:00 left 剩余, loss 1.2"


def test_quick_work_and_bars_that_would_vanish_leave_no_line_in_a_log(clock: list[float]) -> None:
    log = io.StringIO()
    with progress.progress_bar(10, desc="quick", file=log) as bar:
        for _ in range(10):
            clock[0] += 0.1
            bar.update(1)
    for options in ({"leave": False}, {"disable": True}):
        with progress.progress_bar(10, desc="slow", file=log, **options) as bar:
            for _ in range(10):
                clock[0] += 60
                bar.update(1)
    assert log.getvalue() == ""


def test_a_resumed_run_counts_its_time_from_where_it_began(clock: list[float]) -> None:
    log = io.StringIO()
    bar = progress.progress_bar(100, desc="sft", unit="steps", initial=70, file=log)
    for _ in range(10):
        clock[0] += 6
        bar.update(1)
    assert log.getvalue().splitlines()[-1] == "sft 80% (80/100 steps) 01:00, 02:00 left 剩余"


def test_what_is_said_in_a_log_is_one_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        progress.progress_bar(10, file=log).say("step 3/10: validation_loss 1.5")
    assert (tmp_path / "log").read_text() == "step 3/10: validation_loss 1.5\n"
