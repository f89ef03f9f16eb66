"""Model FLOPs utilisation: which operations are counted, and what the peak is."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import device
from model.model_minillm import MiniLLM
from tests.tiny_run import DENSE, MOE
from trainer import flops
from trainer.flops import (
    active_parameters,
    known_peak,
    listed_peak,
    machine_peak,
    newton_schulz_flops,
    timed,
    training_flops,
    usable_dtypes,
)
from trainer.optim import orthogonalize

CPU = torch.device("cpu")


def test_active_parameters_are_all_of_a_dense_model() -> None:
    assert active_parameters(DENSE) == MiniLLM(DENSE).num_parameters()


def test_active_parameters_leave_out_the_experts_that_a_token_does_not_meet() -> None:
    idle = (MOE.num_experts - MOE.num_experts_per_tok) * 3 * 32 * 24 * MOE.num_hidden_layers
    assert active_parameters(MOE) == MiniLLM(MOE).num_parameters() - idle


def test_mfu_counts_6n_and_12ldt_a_token() -> None:
    assert training_flops(DENSE, 128) == 6 * active_parameters(DENSE) + 12 * 2 * 32 * 128


def test_muons_operations_are_those_of_its_products() -> None:
    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.randn(3, 8, 24), torch.float32)
        orthogonalize(torch.randn(1, 24, 8), torch.float32)
        orthogonalize(torch.randn(2, 16, 16), torch.float32)
    assert counter.get_total_flops() == newton_schulz_flops([*[(8, 24)] * 3, (24, 8), (16, 16), (16, 16)])


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
    ],
)
def test_a_gpus_peak_is_found_by_its_name(name: str, tflops: float) -> None:
    assert listed_peak(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "Tesla T4", ""])
def test_a_gpu_that_only_resembles_a_listed_one_has_no_peak(name: str) -> None:
    assert listed_peak(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA A100-40C",
        "GRID A100D-10C",
        "NVIDIA H100X",
        "NVIDIA A100X",
    ],
)
def test_a_slice_of_a_listed_gpu_has_no_peak(name: str) -> None:
    assert listed_peak(name) is None


def test_a_run_knows_a_peak_from_a_data_sheet_and_in_16_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA L4", "NVIDIA GB300"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    listed, unknown = torch.device("cuda", 0), torch.device("cuda", 1)
    assert known_peak(listed, torch.bfloat16) == known_peak(listed, torch.float16) == 121e12
    assert known_peak(listed, torch.float32) is None
    assert known_peak(unknown, torch.bfloat16) is None
    assert known_peak(CPU, torch.bfloat16) is None
    assert known_peak(torch.device("mps"), torch.float16) is None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that take no time."""
    monkeypatch.setattr(flops, "SIDE", {"cpu": 48})


@pytest.mark.usefixtures("small")
def test_a_cpus_peak_is_the_best_of_its_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    speed, source = machine_peak(CPU)
    assert speed > 0
    assert source.endswith("measured: float32 product of 48 x 48")
    speeds = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(flops, "_square_speed", lambda side, dtype, device: speeds[dtype])
    assert machine_peak(CPU)[0] == 1.0
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    assert usable_dtypes(CPU) == ["float32", "bfloat16"]
    assert machine_peak(CPU)[0] == 2.0
    assert machine_peak(CPU)[1].endswith("bfloat16 product of 48 x 48")


def test_a_listed_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    monkeypatch.setattr(flops, "usable_dtypes", lambda device: ["float32", "bfloat16"])
    monkeypatch.setattr(flops, "_square_speed", lambda side, dtype, device: 5.0)
    gpu = torch.device("cuda", 0)
    assert machine_peak(gpu) == (121e12, "NVIDIA L4, dense 16-bit, data sheet")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GB300")
    assert machine_peak(gpu)[0] == 5.0


def test_work_is_repeated_as_often_as_said_after_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    seconds = iter([50.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr(flops.time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += next(seconds)

    assert timed(work, CPU, 3) == [3.0, 2.0, 4.0]
