"""Look at this machine before a training: Python, torch, GPU, CPU, memory, disk, what is missing.
训练前检查环境。

    python scripts/doctor.py
    python scripts/doctor.py --hardware

Needs the standard library alone, so it also runs before anything is installed.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.hardware import NOTED_FLAGS, cpu_flags, cpu_has_bf16, cpu_name, memory, num_cores
from configs.paths import ROOT
from configs.schema import UserError

PROBE_SECONDS = 5.0
"""Longest wait for a package index, from looking up its name to the first byte of its answer."""


@dataclass(frozen=True)
class Gpus:
    """NVIDIA GPUs of this machine."""

    names: tuple[str, ...]
    usable: int
    """How many of them CUDA_VISIBLE_DEVICES leaves."""


@dataclass(frozen=True)
class Torch:
    """The installed torch, as far as it matters here."""

    version: str
    """Empty if torch is not installed."""
    cuda_build: str
    """CUDA version it was built for; empty for a CPU-only build."""
    problem: str
    """Why it can't compute on the first GPU, or not at all; empty if it can."""


def output_of(*command: str, timeout_seconds: float = 10.0) -> str:
    """What a command prints; empty if the command is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_seconds, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def find_gpus() -> Gpus:
    """The NVIDIA GPUs: from nvidia-smi, else from their device files."""
    tool = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    listed = re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", output_of(tool, "-L"), flags=re.MULTILINE)
    names = tuple(listed) or ("NVIDIA GPU",) * len(list(Path("/dev").glob("nvidia[0-9]*")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return Gpus(names, len(names))
    wanted = [item for item in chosen.split(",") if item.strip() and not item.strip().startswith("-")]
    return Gpus(names, min(len(names), len(wanted)))


def describe_gpus(gpus: Gpus) -> str:
    """The GPUs in words."""
    if not gpus.names:
        return "no NVIDIA GPU"
    kinds = ", ".join(f"{gpus.names.count(name)} x {name}" for name in dict.fromkeys(gpus.names))
    return kinds if gpus.usable == len(gpus.names) else f"{kinds}; CUDA_VISIBLE_DEVICES leaves {gpus.usable}"


def hardware_line(gpus: Gpus) -> str:
    """For `run.sh`: the profile that fits, the GPUs to use, the GPUs there are, and why."""
    return f"{'default' if gpus.usable else 'cpu'} {gpus.usable} {len(gpus.names)} {describe_gpus(gpus)}"


def inspect_torch(gpus: Gpus) -> Torch:
    """Import torch if it is installed, and try the first GPU."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Torch("", "", "")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch = importlib.import_module("torch")
        except (ImportError, OSError) as error:
            return Torch(version, "", f"can't be imported: {' '.join(str(error).split())}")
        cuda_build = torch.version.cuda or ""
        if not gpus.usable:
            return Torch(torch.__version__, cuda_build, "")
        if not cuda_build:
            return Torch(torch.__version__, "", "it is a build without CUDA")
        try:
            torch.ones(2, device="cuda").sum().item()
        except (RuntimeError, AssertionError) as error:
            said = " ".join(str(warning.message) for warning in caught) or str(error)  # the warning names the driver
            return Torch(torch.__version__, cuda_build, f"CUDA {cuda_build} fails: {' '.join(said.split())[:300]}")
    return Torch(torch.__version__, cuda_build, "")


def verdict(gpus: Gpus, torch: Torch) -> UserError | None:
    """What must be fixed before a training; None if nothing must."""
    if not torch.problem:
        return None
    if not gpus.usable:
        return UserError(
            f"torch {torch.version}: {torch.problem}. Delete the environment (.venv) and rerun: bash scripts/run.sh",
            "PyTorch 无法导入：请删除 .venv 后重新运行该命令",
        )
    if not torch.cuda_build:
        remedy = "Delete the environment (.venv) and rerun bash scripts/run.sh, so that the build for GPUs is installed"
        chinese = "删除 .venv 后重新运行 bash scripts/run.sh"
    else:
        remedy = (
            "Update the NVIDIA driver, or set TORCH_INDEX_URL to the index of a CUDA version it supports and rerun "
            "bash scripts/run.sh"
        )
        chinese = "更新显卡驱动，或用 TORCH_INDEX_URL 换成驱动支持的 CUDA 版本"
    return UserError(
        f"torch {torch.version} can't use the GPU ({gpus.names[0]}): {torch.problem}. {remedy}; "
        "to train on the CPU on purpose, set CUDA_VISIBLE_DEVICES to nothing.",
        f"PyTorch 无法使用显卡：请{chinese}；只用 CPU 就把 CUDA_VISIBLE_DEVICES 设为空",
    )


def _read(path: str) -> str:
    """The text of a file; empty if it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def missing_packages() -> list[str]:
    """Packages of requirements.txt that this Python does not have."""
    lines = _read(str(ROOT / "requirements.txt")).splitlines()
    names = [match[0] for line in lines if (match := re.match(r"[A-Za-z0-9][\w.-]*", line))]
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def disk_free_gb() -> str:
    """Free space where results go."""
    folder = Path(os.environ.get("OUT_DIR") or ROOT).absolute()
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free at {folder}"


def report(gpus: Gpus, torch: Torch) -> str:
    """The table that is printed, a line for each fact about the machine."""
    ours = memory()
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    builds = f"CUDA {torch.cuda_build}" if torch.cuda_build else "CPU build"
    rows: dict[str, str] = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "torch": f"{torch.version} ({builds})" if torch.version else "not installed",
        "gpu": describe_gpus(gpus),
        "cpu": f"{cpu_name()}, {num_cores()} cores",
        "instructions": " ".join(f"{name}:{'yes' if name in cpu_flags() else 'no'}" for name in NOTED_FLAGS),
        "bf16 on CPU": "yes" if cpu_has_bf16() else "no, float32 is faster here",
        "memory": f"{ours.total / 1e9:.1f} GB, {ours.free / 1e9:.1f} GB free" if ours else "unknown",
        "disk": disk_free_gb(),
        "c++ compiler": compiler or "none (long runs are not compiled, and a little slower)",
        "cargo": shutil.which("cargo") or "none (only ENABLE_RUSTBPE=1 needs it)",
        "packages": f"missing: {', '.join(missing)}" if (missing := missing_packages()) else "all there",
    }
    return "\n".join(f"  {name:<13} {value}" for name, value in rows.items())


def answers_in_time(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a package index has torch, asked through the proxies that the user has set."""
    found: list[bool] = []
    thread = threading.Thread(target=_ask_index, args=(url, seconds, found.append), daemon=True)
    # In a thread, because no timeout covers the look-up of a name or a server that sends slowly.
    thread.start()
    thread.join(seconds)
    return bool(found)


def _ask_index(url: str, seconds: float, tell: Callable[[bool], None]) -> None:
    """Call `tell` with True if the index answers with a page about torch."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/torch/", timeout=seconds) as answer:
            if answer.read(1):
                tell(True)
    except (OSError, ValueError):
        return  # closed, silent, refused, or no address at all


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--hardware", action="store_true", help="print only: profile, usable GPUs, GPUs, why 只输出适合的配置"
    )
    parser.add_argument(
        "--probe", metavar="URL", help="exit with 0 if this index has torch, within 5 seconds 检测下载源"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report. Raises: UserError if torch can't use the hardware that is there."""
    arguments = build_parser().parse_args(argv)
    if arguments.probe:
        return 0 if answers_in_time(arguments.probe) else 1
    gpus = find_gpus()
    if arguments.hardware:
        print(hardware_line(gpus))
        return 0
    torch = inspect_torch(gpus)
    print(report(gpus, torch), flush=True)
    if problem := verdict(gpus, torch):
        raise problem
    return 0


if __name__ == "__main__":
    run(main)
