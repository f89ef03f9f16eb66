"""The table and the targets of the speed benchmark, from its JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import train_speed
from benchmarks.train_speed import figures, table, targets
from benchmarks.training.speed import Speed


def result(arm: str, rate: float, **fields: Any) -> dict[str, Any]:
    return {
        "arm": arm, "dtype": "float32", "real_tokens_per_s": rate, "padded_share": 0.1, "mfu": 0.2,
        "gemm_bound_tokens_per_s": 1000.0, "bound_plan": "float32", "bound_seconds": [1.0, 1.1], "bound_tflops": 0.2,
        "peak_rss_mb": 900.0, "startup_seconds": 3.0, "measured_seconds": 120.0, "peak_tflops": 0.3,
        "peak_from": "measured", "has_bf16": True, "on_gpu": False, "model": "512x8", "device": "CPU", "threads": 2,
        **fields,
    }  # fmt: skip


BASELINE = result("baseline", 300.0, plain_loop_tokens_per_s=310.0)


def test_a_cpu_is_held_against_its_bound_and_the_baseline() -> None:
    lines = [str(target) for target in targets([result("minillm", 900.0), BASELINE])]
    assert lines[0] == "share of the bound: 90.00% (target 90%): met"
    assert lines[1] == "real tokens/s of the baseline: 3.00x (target 2.5x): met"
    assert lines[2] == "baseline as fast as the plain loop: 96.77% (target 90%): met"


def test_without_bfloat16_the_baseline_is_nearer() -> None:
    assert "(target 1.3x): NOT met" in str(targets([result("minillm", 380.0, has_bf16=False), BASELINE])[1])


def test_a_gpu_is_held_against_its_peak() -> None:
    (target,) = targets([result("minillm", 900.0, on_gpu=True, mfu=0.36)])
    assert str(target) == ("MFU over 2.0 minutes: 36.00% (target 35%): met")


def test_a_baseline_slower_than_the_plain_loop_shows() -> None:
    slow = result("baseline", 200.0, plain_loop_tokens_per_s=310.0)
    assert not targets([slow])[-1].met


def test_replays_that_differ_much_tell_of_a_busy_machine() -> None:
    assert not any("busy" in line for line in table([BASELINE]))
    assert any("busy" in line for line in table([BASELINE | {"bound_seconds": [1.0, 1.3]}]))


def test_speeds_of_several_seeds_give_their_median() -> None:
    speeds = [Speed(2.0, 10.0, 5, tokens, memory, "bfloat16") for tokens, memory in ((100, 7), (300, 9), (200, 8))]
    found = figures("minillm", speeds, 0.0)
    assert found["real_tokens_per_s"] == 20.0 and found["peak_rss_mb"] == 9 and found["dtype"] == "bfloat16"
    assert len(found["runs"]) == 3


def test_table_and_plot_come_from_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.json"
    path.write_text(json.dumps([result("minillm", 900.0), BASELINE]), encoding="utf-8")
    assert train_speed.main(["--from_json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "| minillm | float32 | 900 | 10.0% | 1,000 | 90.0% | 20.0% | 900 | 3.0 |" in shown
    assert "\n- share of the bound: 90.00% (target 90%): met\n" in shown
    assert "plain loop" in (tmp_path / "speed.svg").read_text(encoding="utf-8")
