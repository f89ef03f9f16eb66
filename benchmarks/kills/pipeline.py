"""One call of `run.sh` that can be watched and killed, and the folders that its files are in."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import proc
from configs.paths import ROOT
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from trainer.resume import saved_states

POLL_SECONDS = 0.001
LIMIT_SECONDS = 3600.0
"""A run or a moment that takes longer has failed."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where one pipeline's files are."""

    base: Path

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def out(self) -> Path:
        return self.base / "out"

    @property
    def results(self) -> Path:
        return self.base / "tf_dir" / "eval_results.jsonl"

    def states(self, stage: str) -> Path:
        """Where the resume states of a stage are."""
        return self.out / "checkpoints" / stage

    def saved(self, stage: str) -> Path | None:
        """The newest resume state of a stage; None while there is none."""
        try:
            return next(iter(saved_states(self.states(stage))), None)
        except FileNotFoundError:
            return None  # replaced or removed while we looked

    def saved_at(self, stage: str) -> int:
        """When that was saved, in ns; 0 while there is none."""
        try:
            path = self.saved(stage)
            return path.stat().st_mtime_ns if path else 0
        except FileNotFoundError:
            return 0

    def num_results(self) -> int:
        """Whole lines in the results file."""
        return self.results.read_bytes().count(b"\n") if self.results.exists() else 0

    def status(self, stage: str) -> str:
        """What the stage's record says: running, done, or nothing."""
        path = self.out / "stages" / f"{stage}.json"
        return str(json.loads(path.read_text(encoding="utf-8"))["status"]) if path.exists() else ""

    def weights(self) -> dict[str, Path]:
        """Stage -> its weight file, as far as there are any."""
        found = {stage: self.out.glob(f"{spec.weights}_*.pth") for stage, spec in STAGE_TABLE.items()}
        newest = {stage: [path for path in paths if ".previous" not in path.name] for stage, paths in found.items()}
        return {stage: paths[0] for stage, paths in newest.items() if paths}


class Pipeline:
    """`run.sh` in a session of its own, its output in a file."""

    def __init__(self, folders: Folders, profile: Path, threads: int, log: Path) -> None:
        # Flags that the user set for runs of their own would change this one.
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_ARGS")}
        environment |= {
            "DATA_DIR": str(folders.data),
            "OUT_DIR": str(folders.out),
            "TF_DIR": str(folders.results.parent),
            "OMP_NUM_THREADS": str(threads),
        }
        self.log, self.started = log, time.perf_counter()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", str(ROOT / "scripts" / "run.sh"), "--profile", str(profile)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that all its processes can be found and killed
                cwd=ROOT,
            )

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def says(self, words: str) -> bool:
        return words in self.text()

    def has_stepped(self, stage: str) -> bool:
        """Whether a trainer has shown a step of this stage."""
        return re.search(rf"\b{stage} +\d+% \(\d+/\d+ steps\)", self.text()) is not None

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for a moment. Raises: UserError when the run ends before it."""
        deadline = time.perf_counter() + LIMIT_SECONDS
        while not is_so():
            if self.process.poll() is not None:
                raise UserError(f"{self.log}: ended ({self.process.returncode}) before {what}. Take more steps.")
            if time.perf_counter() > deadline:
                raise UserError(f"{self.log}: still no {what} after {LIMIT_SECONDS:.0f} s. See that file.")
            time.sleep(POLL_SECONDS)

    def end(self) -> int:
        """Wait for its end. Returns: the exit code."""
        return self.process.wait(LIMIT_SECONDS)

    def kill_all(self) -> None:
        """`kill -9` for every process of the session, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        while proc.session(self.process.pid):
            time.sleep(POLL_SECONDS)

    def kill_shell(self) -> list[int]:
        """`kill -9` for `run.sh` alone. Returns: the processes that it leaves behind."""
        left = [pid for pid in proc.session(self.process.pid) if pid != self.process.pid]
        self.process.kill()
        self.process.wait()
        return left
