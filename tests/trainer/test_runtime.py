"""Autocast, random generators, what processes agree on, and the pipeline that a trainer watches."""

import os
import platform
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from trainer import runtime
from trainer.runtime import ParentWatch, Runtime, rng_states, set_rng_states

CPU = Runtime(torch.device("cpu"), torch.float32)


def test_autocast_is_on_only_below_float32() -> None:
    a = torch.ones(2, 2)
    with CPU.autocast():
        assert (a @ a).dtype == torch.float32
    with replace(CPU, dtype=torch.bfloat16).autocast():
        assert (a @ a).dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Runtime(torch.device("mps"), torch.float32).autocast():  # torch's own warns even where it is off
            pass


@pytest.mark.parametrize(
    ("release", "system", "spills"),
    [
        ("6.6.87.2-microsoft-standard-WSL2", "linux", True),
        ("4.4.0-19041-Microsoft", "linux", True),
        ("11", "win32", True),
        ("6.1.0-18-amd64", "linux", False),
        ("24.6.0", "darwin", False),
    ],
)
def test_where_the_driver_spills_a_process_takes_no_more_than_is_free_on_the_card(
    monkeypatch: pytest.MonkeyPatch, release: str, system: str, spills: bool
) -> None:
    limits: list[tuple[float, torch.device]] = []
    card = torch.device("cuda", 0)
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 << 30, 12 << 30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: limits.append(limit))
    Runtime.start("cuda", "bfloat16")
    assert limits == ([(pytest.approx(0.7), card)] if spills else [])


def test_where_no_memory_can_be_pinned_batches_go_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"input_ids": torch.arange(4)}
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    assert torch.equal(CPU.pinned(batch)["input_ids"], torch.arange(4))
    gpu = replace(CPU, device=torch.device("cuda", 0))
    assert torch.equal(gpu.pinned(batch)["input_ids"], torch.arange(4) + 1)

    def refused(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    assert gpu.pinned(batch) is batch


@pytest.mark.usefixtures("determinism_ends_with_the_test")
def test_deterministic_refuses_kernels_that_may_differ() -> None:
    Runtime.start("cpu", "float32")
    assert not torch.are_deterministic_algorithms_enabled()
    Runtime.start("cpu", "float32", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_generators_resume_where_they_were_each_process_with_its_own() -> None:
    torch.manual_seed(1)
    states = rng_states(CPU)
    wanted = torch.rand(5)
    torch.manual_seed(2)
    other = rng_states(CPU)
    both = {name: torch.cat((other[name], states[name])) for name in states}
    set_rng_states(both, replace(CPU, rank=1, world_size=2))
    assert torch.equal(torch.rand(5), wanted)


def test_the_least_number_of_all_processes_counts_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    others = torch.tensor(3)

    def all_reduce(mine: torch.Tensor, operation: object) -> None:
        choose = {runtime.dist.ReduceOp.MIN: torch.minimum, runtime.dist.ReduceOp.MAX: torch.maximum}[operation]
        mine.copy_(choose(mine, others))

    monkeypatch.setattr(runtime.dist, "all_reduce", all_reduce)
    two = replace(CPU, world_size=2)
    assert [two.least_over_ranks(mine) for mine in (2, 3, 8)] == [2, 3, 3]
    assert CPU.least_over_ranks(8) == 8


@pytest.mark.parametrize(
    ("mine", "others", "up"), [(False, 0, False), (True, 0, True), (False, 1, True), (True, 1, True)]
)
def test_a_flag_that_one_process_raises_is_up_for_all(
    monkeypatch: pytest.MonkeyPatch, mine: bool, others: int, up: bool
) -> None:
    monkeypatch.setattr(runtime.dist, "all_reduce", lambda value: value.add_(others))
    assert replace(CPU, world_size=2).any_rank(mine) is up


def test_the_pipelines_process_is_watched_only_where_its_id_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ParentWatch().is_gone()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, gone in ((os.getppid(), False), (os.getpid(), False), (ended.pid, True)):
        monkeypatch.setenv("MINILLM_PARENT_PID", str(pid))
        assert ParentWatch().is_gone() is gone


def test_a_trainer_whose_parent_ended_notices_though_another_process_adopts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = os.getppid()
    monkeypatch.setenv("MINILLM_PARENT_PID", str(parent))
    watch = ParentWatch()
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    assert watch.is_gone()


@pytest.mark.parametrize(("device", "at_once"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_a_copy_to_a_cuda_gpu_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, device: str, at_once: bool
) -> None:
    asked: list[tuple[object, bool]] = []

    def to(self: torch.Tensor, where: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        asked.append((where, non_blocking))
        return self

    monkeypatch.setattr(torch.Tensor, "to", to)
    replace(CPU, device=torch.device(device)).to_device({"input_ids": torch.arange(2)})
    assert asked == [(torch.device(device), at_once)]
