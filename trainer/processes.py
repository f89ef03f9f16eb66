"""More processes for a run on a CPU: each core works on rows of its own, out of its own cache.

Threads that share one micro-batch hand each other's halves of every tensor around: at 192 x 4, two processes of one
thread train 1.4 times as fast as one process of two threads (docs/lab_log.md). The processes started here are helpers.
They run the same program on other rows, as under torchrun, and end with the process that started them.
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
"""Set for a helper: `PORT RANK WORLD_SIZE THREADS`."""
START_SECONDS = 120.0
"""How long a helper may take to load its libraries."""
LAST_LINES = 5
"""Of a helper's messages, what is shown where it failed."""


class Group:
    """This process's place among those of one run on a CPU, and the helpers that it started, if any."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.helpers: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def join(self, timeout: timedelta) -> None:
        """Make the process group."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        dist.init_process_group("gloo", store=self.store, rank=self.rank, world_size=self.world_size, timeout=timeout)

    def failure(self) -> str | None:
        """What a helper that failed has said last; None while none has."""
        for helper, messages in self.helpers:
            try:
                code = helper.wait(timeout=1.0)  # the broken connection is seen a moment before the end
            except subprocess.TimeoutExpired:
                continue
            if code:
                messages.seek(0)
                said = messages.read().decode("utf-8", errors="replace").splitlines()
                return "\n".join([*said[-LAST_LINES:], f"(exit code {code})"])
        return None


def num_processes(run: TrainRun, device: torch.device) -> int:
    """How many processes this run takes: those of the settings, as far as there are cores and its steps can be divided."""
    if device.type != "cpu" or "WORLD_SIZE" in os.environ:  # torchrun has made its own
        return 1
    wanted = min(run.train.cpu_processes, num_cores())
    # Where it is given, a step keeps its rows: each process takes some of its parts.
    parts = run.train.accumulation_steps
    return max(n for n in range(1, wanted + 1) if parts % n == 0)


def start_group(run: TrainRun, device: torch.device) -> Group | None:
    """The group that this process joins as a helper, or leads; None where it works alone.

    Raises: UserError where a helper can't be started.
    """
    if HELPER_VARIABLE in os.environ:
        return _join_as_helper()
    world_size = num_processes(run, device)
    if world_size == 1:
        return None
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
        # Its standard input is a pipe of ours: it reads the end of it when we are gone. In a session of its own no Ctrl-C
        # reaches it, so that all stop after one and the same step, when we say so.
        helper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages, env=environment,
            start_new_session=True,
        )  # fmt: skip
        group.helpers.append((helper, messages))
    _await_helpers(group)
    return group


def _await_helpers(group: Group) -> None:
    """Wait until all have loaded their libraries: whoever fails before would let the others wait for hours."""
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
    port, rank, world_size, threads = map(int, os.environ[HELPER_VARIABLE].split())
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_leader, daemon=True).start()
    store = dist.TCPStore("127.0.0.1", port, world_size, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
    store.set(f"helper {rank}", "here")
    return Group(store, rank, world_size)


def _end_with_leader() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
