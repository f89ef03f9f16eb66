"""More processes for a run on a CPU: each core works on rows of its own, in its own cache.

Threads that share a micro-batch read parts of a tensor that another core has just written, and
those come slowly from its cache. So two processes with one thread each are faster than one process
with two threads (docs/lab_log.md).

The process that the user started is the leader. The processes that it starts are helpers. They run
the same program on other rows, as under torchrun, and they end with the leader.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from typing import IO, Any

import torch
import torch.distributed as dist

from configs.hardware import num_cores
from configs.paths import ROOT
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from configs.train_run import TrainRun

HELPER_VARIABLE = "MINILLM_HELPER"
"""Environment variable of a helper: `PORT RANK WORLD_SIZE THREADS`."""
START_SECONDS = 120.0
"""How many seconds a helper may take to load its libraries."""
LAST_LINES = 5
"""How many of a failed helper's last lines are shown."""


class Group:
    """This process's place among those of one run on a CPU, and the helpers if it is the leader."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        """Args: store: torch's TCPStore, through which the processes find each other."""
        self.store, self.rank, self.world_size = store, rank, world_size
        self.helpers: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def join(self, timeout: timedelta) -> None:
        """Make torch's process group, through this computer's own (loopback) network interface."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        dist.init_process_group("gloo", store=self.store, rank=self.rank, world_size=self.world_size, timeout=timeout)

    def failure(self) -> str | None:
        """The last lines of a helper that failed; None where none has failed."""
        for helper, messages in self.helpers:
            try:
                code = helper.wait(timeout=1.0)  # its connection breaks a moment before it has ended
            except subprocess.TimeoutExpired:
                continue
            if code:
                messages.seek(0)
                said = messages.read().decode("utf-8", errors="replace").splitlines()
                return "\n".join([*said[-LAST_LINES:], f"(exit code {code})"])
        return None


def num_processes(run: TrainRun, device: torch.device) -> int:
    """How many processes this run takes, its leader included.

    `cpu_processes` of the settings, or fewer: there must be a core for each, and the micro-batches
    of a step must be divisible by their number.
    """
    if device.type != "cpu" or "WORLD_SIZE" in os.environ:  # torchrun has started its own processes
        return 1
    wanted = min(run.train.cpu_processes, num_cores())
    # A step that is given keeps its rows, so each process must get equally many micro-batches. One
    # that is left open (0) can be divided by any number.
    parts = run.train.accumulation_steps
    return max(n for n in range(1, wanted + 1) if parts % n == 0)


def start_group(run: TrainRun, device: torch.device) -> Group | None:
    """Join the group as a helper, or start helpers and lead them.

    Returns: None where this process works alone.
    Raises: UserError where a helper can't be started.
    """
    if HELPER_VARIABLE in os.environ:
        return _join_as_helper()
    world_size = num_processes(run, device)
    if world_size == 1:
        return None
    # The processes share the threads that one process would have had.
    threads = max(1, torch.get_num_threads() // world_size)
    torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    group = Group(store, 0, world_size)
    command = [sys.executable, str(ROOT / "trainer" / STAGE_TABLE[run.stage].trainer), *run.words]
    for rank in range(1, world_size):
        environment = os.environ | {
            HELPER_VARIABLE: f"{store.port} {rank} {world_size} {threads}",
            "OMP_NUM_THREADS": str(threads),
        }
        messages = tempfile.TemporaryFile()  # noqa: SIM115
        # A helper's standard input is a pipe from us. When we are gone it reads the end of it, and
        # ends too. It has a session of its own, so Ctrl-C reaches only us. We tell the helpers to
        # stop, and all of us stop after the same step.
        helper = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env=environment,
            start_new_session=True,
        )
        group.helpers.append((helper, messages))
    _await_helpers(group)
    return group


def _await_helpers(group: Group) -> None:
    """Wait until all helpers have loaded their libraries.

    If one failed later, while the process group is made, the others would wait for it for hours.
    Raises: UserError where one ended, or took longer than START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while not group.store.check([f"helper {rank}" for rank in range(1, group.world_size)]):
        if any(helper.poll() is not None for helper, _ in group.helpers) or time.monotonic() > deadline:
            raise UserError(
                f"a helper process did not start: {group.failure() or 'no message'}\n"
                "Rerun; or train in one process with --cpu_processes 1.",
                "辅助进程没能启动：请重新运行，或加 --cpu_processes 1",
            )
        time.sleep(0.05)


def _join_as_helper() -> Group:
    """Connect to the leader, and end when it ends."""
    port, rank, world_size, threads = map(int, os.environ[HELPER_VARIABLE].split())
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_leader, daemon=True).start()
    store = dist.TCPStore("127.0.0.1", port, world_size, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
    store.set(f"helper {rank}", "here")
    return Group(store, rank, world_size)


def _end_with_leader() -> None:
    """Wait until standard input is closed, which means that the leader process has ended. Then end
    this process too."""
    sys.stdin.buffer.read()
    os._exit(1)
