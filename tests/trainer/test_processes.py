"""The processes that a run on a CPU starts: how many, and that they end with their leader."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from configs.paths import ROOT
from configs.train_run import parse_run
from model.weights import read_weights
from tests.tiny_run import TinyRun, same
from trainer import processes
from trainer.processes import Group, num_processes

CPU = torch.device("cpu")
TWO = ("--cpu_processes", "2", "--accumulation_steps", "4")
"""Flags for two processes. A step has four micro-batches, two for each process."""


def start(tiny: TinyRun, *words: str) -> subprocess.Popen[str]:
    """Start a trainer as a user does. The metrics of earlier runs are deleted first."""
    for file in (tiny.tf_dir / "metrics").glob("pretrain_*"):
        file.unlink()
    command = [sys.executable, str(ROOT / "trainer/train_pretrain.py"), *tiny.flags("pretrain", *TWO, *words)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def helper_of(process: subprocess.Popen[str], tiny: TinyRun) -> int:
    """Wait until the run has logged its first step. Returns: the process id of its one helper."""
    while process.poll() is None and not any(
        file.stat().st_size for file in (tiny.tf_dir / "metrics").glob("pretrain_*.jsonl")
    ):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def is_there(pid: int) -> bool:
    """Whether a process still runs."""
    try:  # a zombie (Z) has ended, and only waits until its parent asks how
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("words", "cores", "count"),
    [
        ([], 8, 1),
        (["--cpu_processes", "2"], 1, 1),
        (["--cpu_processes", "2"], 8, 2),
        (["--cpu_processes", "4", "--accumulation_steps", "6"], 8, 3),
        (["--cpu_processes", "4", "--accumulation_steps", "1"], 8, 1),
    ],
)
def test_a_run_takes_as_many_as_its_settings_cores_and_steps_allow(
    monkeypatch: pytest.MonkeyPatch, words: list[str], cores: int, count: int
) -> None:
    monkeypatch.setattr(processes, "num_cores", lambda: cores)
    run = parse_run("pretrain", "", ["--profile", "smoke", "--accumulation_steps", "0", *words])
    assert num_processes(run, CPU) == count
    assert num_processes(run, torch.device("cuda")) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun's
    assert num_processes(run, CPU) == 1


def test_two_processes_give_the_losses_of_one(tiny: TinyRun) -> None:
    assert tiny.train("pretrain", "--accumulation_steps", "4", "--from_resume", "0") == 0
    losses, validation = tiny.metric("pretrain"), tiny.metric("pretrain", "validation_loss")
    process = start(tiny, "--from_resume", "0")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.count("written after") == 1  # the helper is silent
    assert_close(tiny.metric("pretrain"), losses, rtol=1e-4, atol=1e-5)
    assert_close(tiny.metric("pretrain", "validation_loss"), validation, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_stopped_run_takes_its_helper_along_and_resumes_exactly(tiny: TinyRun, tmp_path: Path) -> None:
    longer = ("--epochs", "60", "--max_steps", "0", "--save_interval", "1000", "--seed", "3")
    process = start(tiny, *longer)
    helper = helper_of(process, tiny)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "the state is saved" in said
    deadline = time.monotonic() + 60
    while is_there(helper):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    resumed = start(tiny, *longer)
    _, said = resumed.communicate(timeout=300)
    assert "resuming after step" in said
    unbroken = start(tiny, *longer, "--out_dir", str(tmp_path / "unbroken"))
    unbroken.communicate(timeout=300)
    assert same(read_weights(tmp_path / "unbroken/pretrain_16.pth")[0], tiny.weights("pretrain"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_helper_does_not_outlive_a_killed_run(tiny: TinyRun) -> None:
    process = start(tiny, "--epochs", "100000", "--max_steps", "0", "--save_interval", "100000")
    helper = helper_of(process, tiny)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while is_there(helper):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_helper_that_dies_ends_the_run_with_one_message(tiny: TinyRun) -> None:
    process = start(tiny, "--epochs", "100000", "--max_steps", "0", "--save_interval", "100000")
    os.kill(helper_of(process, tiny), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "error: a helper process ended in the middle of the run" in said
    assert "--cpu_processes 1" in said
    assert "Traceback" not in said


def test_a_helpers_last_words_are_kept() -> None:
    group = Group(dist.HashStore(), 0, 2)
    with tempfile.TemporaryFile() as messages:
        helper = subprocess.Popen([sys.executable, "-c", "raise SystemExit('no room left')"], stderr=messages)
        group.helpers = [(helper, messages)]
        failure = group.failure()
    assert failure is not None
    assert "no room left" in failure
    assert "exit code 1" in failure
