"""What the CPU can do and how much of the machine is ours, read without torch.

A container may use less than the machine has. Its control group (cgroup, version 1 or 2) limits the
CPU time and the memory of all its processes together. The kernel ends a process that takes more
memory.
"""

import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Instructions that multiply bfloat16 matrices. Without them it takes a hundred times as long."""
NOTED_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""Instructions that decide how fast training is."""


@cache
def cpu_flags() -> frozenset[str]:
    """The CPU's instructions, with the names of Linux. Empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 matrix products."""
    return bool(cpu_flags() & BF16_FLAGS)


@cache
def cpu_name() -> str:
    """The CPU's own name, such as `AMD EPYC 9355`."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        shown = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if shown.returncode == 0:
            return shown.stdout.strip()
    return platform.processor() or platform.machine()


def cpu_instructions() -> list[str]:
    """The CPU's instructions among NOTED_FLAGS."""
    return [flag for flag in NOTED_FLAGS if flag in cpu_flags()]


def num_cores(root: Path = Path("/")) -> int:
    """The number of cores that this process may use.

    These are the cores that it may run on, or fewer if a container has a quota. A quota of 1.5
    cores counts as 2, one of 1.4 as 1: a second thread would mostly wait.
    Args: root: of the file system; tests give another one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(cores, _cpu_quota(root)) + 0.5))


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, within the limit of a container."""

    total: int
    free: int


def memory(root: Path = Path("/")) -> Memory | None:
    """The memory that this process may use; None if the system does not say. `root`: as above."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE))
    if "MemTotal" in found and "MemAvailable" in found:
        total, free = int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    else:
        try:  # macOS does not say how much is free, so we take half of the total
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
        free = total // 2
    for limit, used in _memory_limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Memory(total, free)


# --- the limits of a container --------------------------------------------------------------------


def _cpu_quota(root: Path) -> float:
    """How many cores' time our control groups allow; infinite if none has a limit."""
    cores = [math.inf]
    for group in _groups(root, ""):
        quota, _, period = _text(group / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.strip("0").isdigit():  # without a limit it is the word `max`
            cores.append(int(quota) / int(period))
    for group in _groups(root, "cpu"):
        granted, microseconds = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if granted is not None and microseconds:  # without a limit it is -1, which `_number` does not take
            cores.append(granted / microseconds)
    return min(cores)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit and the used memory of each of our control groups that has a limit, in bytes.

    Files that are cached in memory do not count as used, because the kernel drops them first.
    """
    for kind, limit, usage, cached in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for group in _groups(root, kind):
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                dropped = re.search(rf"^{cached} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
                yield most, used - (int(dropped[1]) if dropped else 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of our control groups, the innermost first. All their limits count.

    In a container the kernel may give the path of the host, while the container sees its own group
    as the root of the tree. So folders that do not exist are left out.
    Args: controller: such as `cpu`; "": the groups of version 2.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        tree = root / "sys/fs/cgroup" / controllers if controllers else root / "sys/fs/cgroup"
        if controllers and not tree.is_dir():
            tree = tree.with_name(controller)
        own = tree / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(tree) and folder.is_dir())


def _text(path: Path) -> str:
    """The text of a file; "" if it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no file, or its text is not a whole number."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None
