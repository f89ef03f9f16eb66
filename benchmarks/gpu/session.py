"""Runs the parts of `on_gpu.py` and their checks, and keeps each result as it comes.

Checks may run side by side. One that fails does not stop the next check, and a part that fails does
not stop the next part.
"""

import math
import os
import shutil
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.checks import ERROR_CHARACTERS, FAILED, NOT_RUN, OK, TIMED_OUT, Check, Row, Running
from benchmarks.gpu.results import Results
from configs.hardware import num_cores

Rows = Mapping[str, Row]
"""The rows of a part, by check."""

POLL_SECONDS = 0.05
PARENT_VARIABLE = "MINILLM_PARENT_PID"
"""As in trainer/runtime.py, which imports torch. A trainer ends when its starter is gone."""
OWN_VARIABLES = {"DATA_DIR", "OUT_DIR", "TF_DIR", "PRETRAIN_ARGS", "SFT_ARGS", "DPO_ARGS", "ENABLE_RUSTBPE"}
OWN_VARIABLES |= {"NUM_GPUS", "RANK", "WORLD_SIZE"}
"""Settings of the user's own runs, which must not reach a check."""


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
        """Run checks, some side by side, keeping each result as it comes.

        Returns: the rows, in the order of the checks.
        """
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
        """The environment variables of a check that runs beside so many others."""
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
    result: Callable[[Rows], str]
    """Words for the table in docs/results.md: what its rows, by check, mean."""
    details: Callable[[Rows], list[str]] = lambda rows: []
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
