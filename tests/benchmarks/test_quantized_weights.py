"""benchmarks/quantized_weights.py: its tables, on models so small that nothing is to be learnt."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import quantized_weights as benchmark
from configs.schema import UserError
from tests.tiny_run import TinyRun

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program sets the threads of its whole process."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(benchmark, "REPEATS", 1)


def rows(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]


def test_each_shape_and_kind_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--shapes", "32x1", "32x1x4", "--batches", "1", "2"]) == 0
    table = rows(capsys)
    assert [row[:2] for row in table[2:]] == [
        [shape, kind] for shape in ("32x1", "32x1x4") for kind in ("float32", "fp16", "int8", "int4")
    ]
    assert {len(row) for row in (table[0], *table[2:])} == {5}


def test_bits_and_answers_of_trained_weights(
    trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "heldout.jsonl"
    data.write_text(json.dumps({"text": "今天天气很好。"}, ensure_ascii=False) + "\n", encoding="utf-8")
    weight = str(trained.path("sft"))
    assert benchmark.main(["--shapes", "--weight", weight, "--data_path", str(data)]) == 0
    none, fp16, *others = rows(capsys)[2:]
    assert none[0] == "none"
    assert [row[0] for row in others] == ["int8", "int4", "q8_0", "q5_0", "q4_0"]
    assert all(float(row[1]) == pytest.approx(float(none[1]), rel=0.1) for row in others)
    assert float(fp16[1]) == pytest.approx(float(none[1]), rel=0.001)
    assert benchmark.main(["--shapes", "--weight", weight, "--most", "2"]) == 0
    assert rows(capsys)[2] == ["none", "2 of 2"]


def test_training_text_adds_a_row_for_gptq(trained: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--calibration", str(trained.data / "sft.jsonl")]
    assert benchmark.main(["--shapes", "--weight", str(trained.path("sft")), "--most", "2", *text]) == 0
    kinds = [row[0] for row in rows(capsys)[2:]]
    assert kinds == ["none", "fp16", "int8", "int4", benchmark.WITH_GPTQ, "q8_0", "q5_0", "q4_0"]


def test_a_shape_that_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="--shapes 512: not hidden size x layers"):
        benchmark.shape_of("512")
