"""Device, dtype, threads and memory: what is chosen, and what is refused with the way out."""

import platform
import subprocess
import sys

import pytest
import torch

from configs.paths import ROOT
from configs.schema import UserError
from model import device
from model.device import choose_device, choose_dtype, dtype_name


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
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: real)
    wanted = torch.bfloat16 if real else torch.float32
    assert choose_dtype("auto", torch.device("cpu")) == wanted
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
    assert dtype_name(wanted) == ("bfloat16" if real else "float32")


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


FAULTS = """
import resource, torch
from model.device import keep_freed_memory
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
    monkeypatch.setattr(device, "num_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: found[-1])
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    choose_device("cpu")
    choose_device("cpu")
    assert found[-1] == wanted
    assert len(found) <= 2


@pytest.mark.parametrize(("cores", "given", "threads"), [(4, None, 3), (2, None, 1), (1, None, 1), (4, "4", 4)])
def test_a_server_leaves_a_core_unless_the_user_says_how_many_threads(
    monkeypatch: pytest.MonkeyPatch, cores: int, given: str | None, threads: int
) -> None:
    monkeypatch.setattr(device, "num_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        device.leave_a_core()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
