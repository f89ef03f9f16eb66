"""Starts a training run as a separate process in an empty folder, and measures how long it runs."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.training.arms import Bench
from configs.schema import UserError
from trainer.runtime import PARENT_VARIABLE

POLL_SECONDS = 0.05


class Program:
    """A started command, whose end is noticed to POLL_SECONDS."""

    def __init__(self, command: Sequence[str], folder: Path, threads: int, *, own_waiting: bool = False) -> None:
        self.log = folder / "log.txt"
        environment = os.environ | {
            PARENT_VARIABLE: str(os.getpid()),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
            "TRITON_CACHE_DIR": str(folder / "compiled" / "triton"),
            **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        }
        if own_waiting:
            environment.pop("OMP_WAIT_POLICY", None)
        self.command = command
        self.peak_rss_mb = 0.0
        """Of the process, in 10^6 bytes, once it has ended."""
        self.seconds = 0.0
        """From its start to its end."""
        with self.log.open("wb") as log:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def has_ended(self) -> bool:
        """Look, without waiting."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.seconds = time.perf_counter() - self.started
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.peak_rss_mb = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        return self.process.returncode is not None

    def wait(self, limit: float = float("inf")) -> None:
        """Wait for the end; kill after `limit` seconds."""
        give_up = time.perf_counter() + limit
        while not self.has_ended():
            if time.perf_counter() > give_up:
                self.process.kill()
                give_up = float("inf")
            time.sleep(POLL_SECONDS)

    def check(self, *allowed: int) -> None:
        """Raises: UserError with its last words when it ended in another way."""
        if self.process.returncode not in (0, *allowed):
            words = [
                line for line in self.log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()
            ]
            name = Path(self.command[1]).name
            raise UserError(f"{name} ended with exit code {self.process.returncode}: {' | '.join(words[-4:])}")


@contextmanager
def started(
    bench: Bench, make_command: Callable[[Path], Sequence[str]], *, own_waiting: bool = False
) -> Iterator[tuple[Program, Path]]:
    """Start a command in a folder of its own.

    Afterwards the process is ended if it still runs, and the folder is removed. With `own_waiting`,
    OpenMP's threads wait as they do where nobody has set how; else as `configs` sets it.
    """
    with tempfile.TemporaryDirectory(prefix="run_", dir=bench.args.work_dir.absolute()) as name:
        folder = Path(name)
        program = Program(make_command(folder), folder, bench.args.threads, own_waiting=own_waiting)
        try:
            yield program, folder
        finally:
            if not program.has_ended():
                program.process.kill()
                program.wait()
