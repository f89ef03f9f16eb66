"""The doctor says what a machine has, and fails only if torch can't use a GPU that is there."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from configs.hardware import NOTED_FLAGS
from scripts.doctor import Gpus, Torch, answers_in_time, find_gpus, hardware_line, verdict

DOCTOR = Path(__file__).resolve().parents[2] / "scripts" / "doctor.py"
ONE_GPU = Gpus(("NVIDIA GeForce RTX 4090",), 1)
NO_GPU = Gpus((), 0)


def fake_smi(folder: Path, listing: str, code: int = 0) -> Path:
    """A folder with an `nvidia-smi` that lists these GPUs."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\nexit {code}\n")
    tool.chmod(0o755)
    return folder


def doctor(*flags: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DOCTOR, *flags], capture_output=True, text=True, env={**os.environ, **(variables or {})}
    )


def test_gpus_are_counted_and_named_without_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = (
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\nGPU 1: NVIDIA T4 (UUID: x)"
    )
    monkeypatch.setenv("PATH", str(fake_smi(tmp_path, listing)), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_gpus() == Gpus(("NVIDIA H100 80GB HBM3", "NVIDIA T4"), 2)
    assert hardware_line(find_gpus()) == "default 2 2 1 x NVIDIA H100 80GB HBM3, 1 x NVIDIA T4"


@pytest.mark.parametrize(("chosen", "usable"), [("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,1,2,3", 2)])
def test_hidden_gpus_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, usable: int) -> None:
    monkeypatch.setenv("PATH", str(fake_smi(tmp_path, "GPU 0: A\nGPU 1: A")), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert find_gpus() == Gpus(("A", "A"), usable)
    assert hardware_line(find_gpus()).split()[0] == ("default" if usable else "cpu")


def test_a_gpu_and_a_torch_without_cuda_is_a_failure_that_says_what_to_do() -> None:
    problem = verdict(ONE_GPU, Torch("2.9.0+cpu", "", "it is a build without CUDA"))
    assert problem is not None
    line = problem.line
    assert line.startswith("torch 2.9.0+cpu can't use the GPU (NVIDIA GeForce RTX 4090): it is a build without CUDA.")
    assert "Delete the environment (.venv) and rerun bash scripts/run.sh" in line and "删除 .venv" in line
    assert "\n" not in line


def test_an_old_driver_is_a_failure_that_says_what_to_do() -> None:
    problem = verdict(ONE_GPU, Torch("2.9.0", "13.0", "CUDA 13.0 fails: too old"))
    assert problem is not None
    assert "Update the NVIDIA driver" in str(problem) and "更新显卡驱动" in problem.chinese


def test_no_gpu_or_a_good_one_is_no_failure() -> None:
    assert verdict(NO_GPU, Torch("2.9.0", "", "")) is None
    assert verdict(ONE_GPU, Torch("2.9.0", "13.0", "")) is None
    assert verdict(ONE_GPU, Torch("", "", "")) is None


def test_a_gpu_that_the_installed_torch_can_not_use_exits_with_one_line(tmp_path: Path) -> None:
    folder = fake_smi(tmp_path, "GPU 0: NVIDIA Imaginary (UUID: GPU-1)")
    fake_torch = tmp_path / "torch.py"
    fake_torch.write_text("class version:\n    cuda = None\n__version__ = '9.9+cpu'\n")
    (tmp_path / "torch-9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0"}
    result = doctor(variables=variables)
    assert result.returncode == 1
    assert result.stderr.startswith("error: torch 9.9+cpu can't use the GPU (NVIDIA Imaginary)")
    assert result.stderr.count("\n") == 1
    hidden = doctor(variables={**variables, "CUDA_VISIBLE_DEVICES": ""})
    assert (hidden.returncode, hidden.stderr) == (0, "")


def test_the_report_names_every_part_of_the_machine(tmp_path: Path) -> None:
    fake_torch = tmp_path / "torch.py"  # the real one takes seconds to import
    fake_torch.write_text("class version:\n    cuda = None\n__version__ = '9.9'\n")
    result = doctor(variables={"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr
    names = [line.split("  ")[1].strip() for line in result.stdout.splitlines()]
    assert names == [
        "system",
        "python",
        "torch",
        "gpu",
        "cpu",
        "instructions",
        "bf16 on CPU",
        "memory",
        "disk",
        "c++ compiler",
        "cargo",
        "packages",
    ]
    assert all(f"{name}:" in result.stdout for name in NOTED_FLAGS)


def test_hardware_alone_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')\n")
    result = doctor("--hardware", variables={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0
    assert result.stdout.split()[0] in {"cpu", "default"}


def test_a_closed_port_is_no_index() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    assert not answers_in_time(f"http://127.0.0.1:{port}", seconds=5)


def test_a_port_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not answers_in_time(f"http://127.0.0.1:{port}", seconds=0.2)


def test_an_address_that_is_none_is_no_index() -> None:
    assert not answers_in_time("no address at all", seconds=5)
