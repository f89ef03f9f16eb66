"""What the CPU can do, read without torch."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Instructions with which a CPU multiplies bfloat16 matrices; without them it takes a hundred times as long."""
NOTED_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction set flags as Linux names them; on other systems an empty set, which means: assume nothing."""
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


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_instructions() -> list[str]:
    """Those of the flags that decide how fast training is."""
    return [flag for flag in NOTED_FLAGS if flag in cpu_flags()]
