"""What the CPU can do and how much of the machine is ours, read without torch.

A container may use less than the machine has: its control group (cgroup, version 1 or 2) limits the
CPU time and the memory of all its processes together, and the kernel ends one that asks for more.
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
"""Instructions that multiply bfloat16 matrices; without them it takes a hundred times as long."""
NOTED_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction set flags as Linux names them; on other systems none, so nothing is assumed."""
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
    """Whether bfloat16 matrix products are real on this CPU."""
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
    """Those of the flags that decide how fast training is."""
    return [flag for flag in NOTED_FLAGS if flag in cpu_flags()]


def num_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those it may run on, or fewer by a container's quota.

    A quota of 1.5 cores counts as 2, one of 1.4 as 1: more threads would mostly wait.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(cores, _cpu_quota(root)) + 0.5))


@dataclass(frozen=True)
class Memory:
    """Bytes, within the limit of a container."""

    total: int
    free: int


def memory(root: Path = Path("/")) -> Memory | None:
    """What this process may take in all and now; None where nobody says."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE))
    if "MemTotal" in found and "MemAvailable" in found:
        total, free = int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    else:
        try:  # macOS: no figure of what is free, so half of what there is
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
        free = total // 2
    for limit, used in _memory_limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Memory(total, free)


# --- the limits of a container --------------------------------------------------------------------


def _cpu_quota(root: Path) -> float:
    """Cores' worth of time that our control groups grant; infinite where none sets a limit."""
    cores = [math.inf]
    for group in _groups(root, ""):
        quota, _, period = _text(group / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.strip("0").isdigit():  # else the word `max`
            cores.append(int(quota) / int(period))
    for group in _groups(root, "cpu"):
        granted, microseconds = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if granted is not None and microseconds:  # else -1
            cores.append(granted / microseconds)
    return min(cores)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Of each control group above us that has a limit: the limit, and what it uses but for files
    kept from the disk, which the kernel drops first."""
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
    """Folders of our control groups, the innermost first; all their limits count.

    In a container the kernel may name the path that the host knows, while the container sees its
    own group as the root of the tree: folders that are not there are left out. Args: controller:
    such as `cpu`; empty: those of version 2.
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
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The one number in a file; None where there is no file, or no such number in it."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None
