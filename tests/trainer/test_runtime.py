"""Device, dtype, generators, and the pipeline's process that a trainer watches."""

import os
import platform
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from configs.paths import ROOT
from configs.schema import UserError
from trainer import runtime
from trainer.runtime import ParentWatch, Runtime, choose_device, choose_dtype, dtype_name, rng_states, set_rng_states

CPU = Runtime(torch.device("cpu"), torch.float32)


def test_a_device_that_is_not_there_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"sees no CUDA GPU. Run python scripts/doctor\.py"):
        choose_device("cuda")
    with pytest.raises(UserError, match="no MPS"):
        choose_device("mps")
    with pytest.raises(UserError, match="device gpu: unknown"):
        choose_device("gpu")


@pytest.mark.parametrize("real", [True, False])
def test_bfloat16_is_taken_on_a_cpu_only_where_it_is_real(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: real)
    wanted = torch.bfloat16 if real else torch.float32
    assert choose_dtype("auto", torch.device("cpu")) == wanted
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
    assert dtype_name(wanted) == ("bfloat16" if real else "float32")


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


def test_a_gpu_that_is_not_there_is_named_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == choose_device("cuda") == choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="cuda:7: the GPUs here are numbered 0 to 1"):
        choose_device("cuda:7")
    monkeypatch.setenv("LOCAL_RANK", "2")
    for name in ("auto", "cuda"):
        with pytest.raises(UserError, match="start fewer processes"):
            choose_device(name)


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


def test_generators_go_on_where_they_were_each_process_with_its_own() -> None:
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
    monkeypatch.setenv("MINILLM_PARENT_PID", str(os.getppid()))
    watch = ParentWatch()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert watch.is_gone()


FAULTS = """
import resource, torch
from trainer.runtime import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(1 << 22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
without = faults()
keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    shown = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    without, kept = map(int, shown.stdout.split())
    assert kept < 100 and kept <= without


@pytest.mark.parametrize(
    ("threads", "cores", "words", "wanted"), [(8, 3, None, 3), (2, 3, None, 2), (8, 3, "8", 8), (8, 1, None, 1)]
)
def test_torch_starts_no_more_threads_than_a_container_lets_run(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, words: str | None, wanted: int
) -> None:
    found = [threads]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if words:
        monkeypatch.setenv("OMP_NUM_THREADS", words)
    monkeypatch.setattr(runtime, "num_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: found[-1])
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    choose_device("cpu")
    choose_device("cpu")
    assert found[-1] == wanted
    assert len(found) <= 2


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
