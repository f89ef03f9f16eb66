"""What is measured from inside a process, here on a CPU."""

import json
import signal
from collections.abc import Iterator

import pytest

from benchmarks.gpu import probes
from benchmarks.gpu.checks import Row
from configs.schema import UserError
from tests.tiny_run import TinyRun


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    """A trainer's signal handlers do not outlive the test."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def last_line(capsys: pytest.CaptureFixture[str]) -> Row:
    found: Row = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.usefixtures("handlers_kept")
def test_a_trainer_is_watched_from_inside(tiny: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    flags = tiny.flags("pretrain", "--max_steps", "8", "--from_resume", "0", "--tf_dir", str(tiny.out / "new"))
    assert probes.main(["train", "pretrain", "--profile_steps", "2", "--", *flags]) == 0
    found = last_line(capsys)
    assert len(found["losses"]) == 8 and found["last_loss"] < found["first_loss"]
    assert (found["micro_batch"], found["accumulation"], found["dtype"]) == (2, 2, "float32")
    assert found["tokens_per_s"] > 0 and found["kernels"][0]["ms"] >= found["kernels"][-1]["ms"] > 0
    assert "peak_memory_gb" not in found


@pytest.mark.usefixtures("handlers_kept")
def test_too_few_steps_to_tell_a_speed_are_refused(tiny: TinyRun) -> None:
    flags = tiny.flags("pretrain", "--max_steps", "3", "--from_resume", "0", "--tf_dir", str(tiny.out / "new"))
    with pytest.raises(UserError, match="3 steps, too few"):
        probes.main(["train", "pretrain", "--", *flags])


def test_attention_and_decoding_are_measured_on_a_cpu_too(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--rows", "1", "--heads", "4", "--tokens", "40", "--head_dim", "10"]
    assert probes.main(["attention", "--device", "cpu", *size]) == 0
    assert last_line(capsys)["blocked_float32_error"] < 1e-5
    assert (
        probes.main(["decode", "--device", "cpu", "--model", "32x1", "--batch_sizes", "1", "3", "--tokens", "3"]) == 0
    )
    found = last_line(capsys)
    assert found["tokens_per_s_batch_1"] > 0 and found["tokens_per_s_batch_3"] > 0


def test_attention_that_is_wrong_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = probes.blocked_attention
    monkeypatch.setattr(probes, "blocked_attention", lambda q, k, v, bias: 1.1 * right(q, k, v, bias))
    assert probes.main(["attention", "--device", "cpu", "--rows", "1", "--tokens", "24", "--head_dim", "8"]) == 1
    assert "blocked in float32: values, dq, dk, dv are off by" in last_line(capsys)["problem"]
