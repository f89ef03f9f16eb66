"""One check of `on_gpu.py`: a command in a process of its own, and what must be true of it.

A check that fails, crashes or runs past its time limit leaves a line with its traceback. Nothing
here imports torch: a GPU whose context broke in one check is whole again in the next.
"""

import json
import os
import re
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from configs.paths import ROOT

DUMP_SECONDS = 3.0
"""Seconds that a process which is out of time has for writing where it stands."""
ERROR_CHARACTERS, TRACEBACK_LINES, NOTES = 300, 60, 5
NOTICE = re.compile(r"torch\.compile failed|FlexAttention cannot be used|step skipped|^warning:")
"""Lines in which our programs report a problem that did not stop them."""
OK, FAILED, TIMED_OUT, NOT_RUN = "ok", "failed", "timed out", "not run"

Row = dict[str, Any]
"""A check's result: check, status, seconds, figures; where it is not ok, error and traceback."""


class CheckFailed(Exception):
    """A command came to its end, but what it found is wrong."""

    def __init__(self, what: str, figures: Row | None = None) -> None:
        super().__init__(what)
        self.figures = figures or {}


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left when it ended."""

    out: str
    err: str = ""

    def json(self) -> dict[str, Any]:
        """The JSON object that a probe prints last. Raises: ValueError, IndexError."""
        found: dict[str, Any] = json.loads(self.out.strip().splitlines()[-1])
        return found


def no_figures(ended: Ended) -> Row:
    """Of a command whose exit code says all."""
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One command, and what must be true of it."""

    name: str
    command: Sequence[str]
    limit: float
    """Seconds."""
    read: Callable[[Ended], Row] = no_figures
    """Its figures. Raises: CheckFailed where one is wrong."""
    code: int = 0
    """The exit code that it must end with."""
    stdin: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


class Running:
    """A check's process, in a group of its own, so that all it has started ends with it."""

    def __init__(self, check: Check, limit: float, folder: Path, environment: Mapping[str, str]) -> None:
        self.check, self.limit, self.folder = check, limit, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.files = {name: folder / f"std{name}.txt" for name in ("in", "out", "err")}
        self.files["in"].write_text(check.stdin, encoding="utf-8")
        with self._open("in") as given, self._open("out") as out, self._open("err") as err:
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                check.command,
                stdin=given,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                preexec_fn=os.setpgrp,
                env={**environment, **check.environment},
            )

    def _open(self, name: str) -> IO[bytes]:
        return self.files[name].open("rb" if name == "in" else "wb")

    def row(self) -> Row | None:
        """The result, once there is one."""
        code = self.process.poll()
        seconds = time.monotonic() - self.started
        if code is None and seconds < self.limit:
            return None
        head = {"check": self.check.name, "seconds": round(seconds, 1)}
        if code is None:
            self.end(dump=True)
            error = f"ran past its limit of {self.limit:.0f} s"
            return {**head, "status": TIMED_OUT, **self._notes(), "error": error, "traceback": self._traceback()}
        self.end()  # what it left running would hold memory of the card
        return {**head, **self._verdict(code)}

    def end(self, *, dump: bool = False) -> None:
        """Kill all that it started.

        With `dump` it first writes where its threads stand, as faulthandler is on.
        """
        if dump:
            self.process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):  # deep in a driver, where no signal is taken
                self.process.wait(DUMP_SECONDS)
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def text(self, name: str) -> str:
        """What it wrote to out or err; of a progress bar only the last state."""
        written = self.files[name].read_text(encoding="utf-8", errors="replace")
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in written.split("\n"))

    def _verdict(self, code: int) -> Row:
        figures, problem, trace = Row(), "", ""
        if code != self.check.code:
            problem = f"exit code {code}: {self._last_words()}"
        try:
            figures = self.check.read(Ended(self.text("out"), self.text("err")))
        except CheckFailed as error:
            problem, figures = str(error), error.figures
        except Exception as error:  # what a check left can be anything
            if not problem:
                problem = f"its results can't be read ({type(error).__name__}: {error})"
                trace = traceback.format_exc()
        if not problem:
            return {"status": OK, **figures, **self._notes()}
        shown = problem[:ERROR_CHARACTERS]
        return {"status": FAILED, **figures, **self._notes(), "error": shown, "traceback": trace or self._traceback()}

    def _notes(self) -> Row:
        noted = [line.strip()[:ERROR_CHARACTERS] for line in self.text("err").splitlines() if NOTICE.search(line)]
        return {"notes": noted[:NOTES]} if noted else {}

    def _last_words(self) -> str:
        lines = [line.strip() for name in ("out", "err") for line in self.text(name).splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"

    def _traceback(self) -> str:
        """From the last traceback on, where there is one; else the last lines of both streams."""
        err = self.text("err")
        start = max(err.rfind("Traceback (most recent call last)"), err.rfind("Fatal Python error"))
        text = err[start:] if start >= 0 else f"{self.text('out')}\n{err}"
        return "\n".join(text.strip().splitlines()[-TRACEBACK_LINES:])
