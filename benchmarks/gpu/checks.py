"""What `on_gpu.py` runs: checks in processes of their own, each with a time limit.

A check that fails, crashes or hangs leaves a line with its traceback, and the next one starts. Each
result is kept as it comes. Nothing here imports torch: a GPU whose context broke in one check is
whole again in the next.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from configs.artifacts import write_json
from configs.hardware import num_cores
from configs.paths import ROOT

POLL_SECONDS = 0.05
DUMP_SECONDS = 3.0
"""What a process that is out of time gets for writing where it stands."""
ERROR_CHARACTERS, TRACEBACK_LINES, NOTES = 300, 60, 5
NOTICE = re.compile(r"torch\.compile failed|FlexAttention cannot be used|step skipped|^warning:")
"""Lines of our programs that tell of something which did not stop them."""
PARENT_VARIABLE = "MINILLM_PARENT_PID"
"""As in trainer/runtime.py, which imports torch: a trainer whose starter is gone ends."""
OWN_VARIABLES = (
    "DATA_DIR", "OUT_DIR", "TF_DIR", "PRETRAIN_ARGS", "SFT_ARGS", "DPO_ARGS", "ENABLE_RUSTBPE", "NUM_GPUS", "RANK",
    "WORLD_SIZE",
)  # fmt: skip
"""Settings of the user's own runs, which must not reach a check."""
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
    """What a command left."""

    out: str
    err: str = ""

    def json(self) -> dict[str, Any]:
        """The JSON object that a probe prints last. Raises: ValueError or IndexError without
        one."""
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


# --- the results file -----------------------------------------------------------------------------


class Results:
    """`results.json`, written anew, whole or not at all, at each change."""

    def __init__(self, path: Path, head: Row) -> None:
        self.path = path
        self.content: Row = {**head, "parts": {}}
        self.write()

    def begin(self, part: str, limit: float) -> None:
        """A part starts."""
        self.content["parts"][part] = {"status": "running", "limit_seconds": limit, "checks": []}
        self.write()

    def note(self, part: str, row: Row) -> None:
        """A check has ended."""
        self.content["parts"][part]["checks"].append(row)
        self.write()

    def end(self, part: str, **facts: Any) -> Row:
        """A part has ended. Returns: all that is known of it."""
        found: Row = self.content["parts"][part]
        found |= facts
        self.write()
        return found

    def write(self) -> None:
        write_json(self.path, plain(self.content))


def plain(value: Any) -> Any:
    """A value that JSON can hold: infinities and NaN, which a diverged run brings, as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


# --- processes ------------------------------------------------------------------------------------


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
                check.command, stdin=given, stdout=out, stderr=err, cwd=ROOT, preexec_fn=os.setpgrp,
                env={**environment, **check.environment},
            )  # fmt: skip

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
        """Kill all of it; with `dump` it first writes where its threads stand (faulthandler is
        on)."""
        if dump:
            self.process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):  # deep in a driver, where no signal is taken
                self.process.wait(DUMP_SECONDS)
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def text(self, name: str) -> str:
        """What it wrote to out or err; of a progress bar the last state alone."""
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


# --- one run of the script ------------------------------------------------------------------------


@dataclass
class Session:
    """What the parts know of the machine, and how they run their checks."""

    device: str
    tiny: bool
    data: Path
    """Tensors and text, as benchmarks/gpu/data.py makes them."""
    work: Path
    """Where checks write; what was there before is gone."""
    out: Path
    machine: Row
    results: Results
    patience: float = 1.0
    """All time limits are this many times as long."""
    part: str = ""
    deadline: float = math.inf

    @property
    def at_once(self) -> int:
        """Checks side by side, where no time is measured: what memory and cores have room for."""
        if self.device == "cpu":
            return num_cores()
        return max(1, min(4, int(self.machine["memory_gb"] // 20), num_cores() // 4))

    def folder(self, name: str) -> Path:
        """The folder of a check of this part."""
        return self.work / self.part / name.replace(" ", "_").replace("/", "_")

    def run(self, checks: Sequence[Check], at_once: int = 1) -> list[Row]:
        """Run checks, some side by side, keeping each result as it comes. Returns: in their
        order."""
        waiting, running = deque(checks), list[Running]()
        rows: dict[str, Row] = {}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    check = waiting.popleft()
                    left = self.deadline - time.monotonic()
                    if left <= 0:
                        rows[check.name] = self.skip(check.name, "the part's time was over")
                        continue
                    limit = min(check.limit * self.patience, left)
                    running.append(Running(check, limit, self.folder(check.name), self.environment(at_once)))
                for started in list(running):
                    if (row := started.row()) is not None:
                        running.remove(started)
                        rows[started.check.name] = row
                        self._keep(started, row)
                time.sleep(POLL_SECONDS)
        finally:  # Ctrl-C, too
            for started in running:
                started.end()
        return [rows[check.name] for check in checks]

    def skip(self, name: str, why: str) -> Row:
        """Note a check that is not run."""
        return self.found({"check": name, "status": NOT_RUN, "seconds": 0.0, "error": why})

    def found(self, row: Row) -> Row:
        """Note a result, and say so."""
        self.results.note(self.part, row)
        print(f"  {row['check']}: {row['status']}, {row['seconds']:.1f} s {row.get('error', '')}".rstrip(), flush=True)
        return row

    def _keep(self, started: Running, row: Row) -> None:
        self.found(row)
        with (self.out / f"{self.part}.log").open("a", encoding="utf-8") as log:
            log.write(
                f"=== {row['check']}: {row['status']}, {row['seconds']:.1f} s\n$ {' '.join(started.check.command)}\n"
            )
            log.write(f"{started.text('out').strip()}\n--- stderr\n{started.text('err').strip()}\n\n")

    def environment(self, at_once: int = 1) -> dict[str, str]:
        """The variables of a check, beside so many others."""
        compiled = self.work / "compiled"
        given = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES} | {
            PARENT_VARIABLE: str(os.getpid()),
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "TORCHINDUCTOR_CACHE_DIR": str(compiled),
            "TRITON_CACHE_DIR": str(compiled / "triton"),
        }
        if self.device == "cpu" and at_once > 1:
            given["OMP_NUM_THREADS"] = str(max(1, num_cores() // at_once))
        return given


@dataclass(frozen=True, slots=True)
class Part:
    """Checks that belong together."""

    name: str
    about: str
    limit: float
    """Seconds; a check that starts late has what is left."""
    run: Callable[[Session], None]
    result: Callable[[Mapping[str, Row]], str]
    """What its rows, by check, mean: words for the table in docs/results.md."""
    details: Callable[[Mapping[str, Row]], list[str]] = lambda rows: []
    """More lines for the report."""


def run_part(part: Part, session: Session) -> Row:
    """Run a part to its end, whatever happens in it."""
    session.part = part.name
    limit = part.limit * session.patience
    session.deadline = time.monotonic() + limit
    shutil.rmtree(session.work / part.name, ignore_errors=True)
    (session.out / f"{part.name}.log").unlink(missing_ok=True)
    session.results.begin(part.name, limit)
    started, facts = time.monotonic(), Row()
    try:
        part.run(session)
    except Exception as error:  # the other parts are worth running all the same
        facts = {"error": f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS], "traceback": traceback.format_exc()}
    rows = session.results.content["parts"][part.name]["checks"]
    by_name = {row["check"]: row for row in rows}
    try:
        facts |= {"result": summary(rows, part.result(by_name)), "details": part.details(by_name)}
    except Exception as error:  # what a half-finished part left
        facts |= {"result": summary(rows, f"no summary ({type(error).__name__}: {error})"), "details": []}
    bad = "error" in facts or any(row["status"] in (FAILED, TIMED_OUT) for row in rows)
    seconds = round(time.monotonic() - started, 1)
    return session.results.end(part.name, status=FAILED if bad else "done", seconds=seconds, **facts)


def summary(rows: Sequence[Row], words: str) -> str:
    """How many checks are well, which are not, and what they found."""
    ran = [row for row in rows if row["status"] != NOT_RUN]
    parts = [f"{sum(row['status'] == OK for row in ran)} of {len(ran)} checks ok"]
    for status in (FAILED, TIMED_OUT, NOT_RUN):
        if names := [row["check"] for row in rows if row["status"] == status]:
            parts.append(f"{status}: {', '.join(names)}")
    return "; ".join([*parts, *([words] if words else [])])
