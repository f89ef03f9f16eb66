"""A session without a GPU, and checks that are small Python programs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.checks import Check, Row
from benchmarks.gpu.results import Results
from benchmarks.gpu.session import Part, Session

MACHINE: Row = {
    "torch": "2.11.0", "cuda": "13.0", "python": "3.12.3", "cpu": "a CPU", "cpu_flags": ["avx2"], "cores": 2,
    "card": "", "memory_gb": 0.0, "driver": "",
}  # fmt: skip
HEAD: Row = {
    "format": 1, "date": "2026-11-27 12:00:00", "command": "bash benchmarks/on_gpu.sh", "commit": "abc", "device": "cpu",
    "tiny": True, "machine": MACHINE, "data": {},
}  # fmt: skip


@pytest.fixture
def session(tmp_path: Path) -> Session:
    out = tmp_path / "report"
    out.mkdir()
    results = Results(out / "results.json", HEAD)
    return Session(
        device="cpu",
        tiny=True,
        data=tmp_path / "data",
        work=tmp_path / "work",
        out=out,
        machine=MACHINE,
        results=results,
    )


def program(name: str, text: str, limit: float = 30.0, **more: Any) -> Check:
    return Check(name=name, command=[sys.executable, "-c", text], limit=limit, **more)


def part(name: str, *checks: Check, limit: float = 60.0, at_once: int = 1) -> Part:
    def run(session: Session) -> None:
        session.run(checks, at_once)

    return Part(name, f"the part {name}", limit, run, lambda rows: f"{len(rows)} rows")


def written(session: Session) -> Row:
    """The results file as it stands."""
    content: Row = json.loads((session.out / "results.json").read_text(encoding="utf-8"))
    return content
