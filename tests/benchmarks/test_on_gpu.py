"""The command line of on_gpu.py, and its report."""

from pathlib import Path

import pytest

from benchmarks import on_gpu
from benchmarks.gpu.checks import OK
from benchmarks.gpu.parts import PARTS
from benchmarks.on_gpu import chosen_parts, main, report
from configs.schema import UserError
from tests.benchmarks.gpu.conftest import HEAD, MACHINE, part, program


def test_parts_are_chosen_by_number_or_name_and_keep_their_order() -> None:
    assert [part.name for part in PARTS] == ["tests", "steps", "pipeline", "speed", "shapes"]
    assert [part.name for part in chosen_parts("4, tests,1", PARTS)] == ["tests", "speed"]
    assert chosen_parts(None, PARTS) == list(PARTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x", "--parts", "6"], "--parts 6: unknown. Give numbers or names with commas between: 1 tests"),
        (["--out", "x", "--parts", "tests,sleed"], "--parts sleed: unknown"),
        (["--out", "x", "--parts", ","], "names no part"),
        (["--parts", "1"], "--out is missing"),
        (["--out", "x", "--device", "cpu"], "Add --tiny"),
        (["--out", "x", "--patience", "0"], "--patience 0.0: must be above 0"),
        (["--out", "x", "--text", "a.jsonl"], "--text: only with --prepare"),
        (["--prepare", "--max_tokens", "0"], "--max_tokens 0: must be 1 or more"),
        (["--prepare", "--text", "missing.jsonl"], "missing.jsonl: no such file"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words)


def test_without_a_gpu_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "look_at_machine", lambda: MACHINE)
    with pytest.raises(UserError, match=r"PyTorch 2\.11\.0 sees none.*--device cpu --tiny"):
        main(["--out", str(tmp_path)])


def test_a_python_without_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module_as_this")
    monkeypatch.setattr(on_gpu, "PROBES", str(broken))
    with pytest.raises(UserError, match=r"No module named 'no_such_module_as_this'.*Set PYTHON"):
        on_gpu.look_at_machine()


def test_a_failing_part_gives_exit_code_1_and_a_whole_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_gpu, "look_at_machine", lambda: MACHINE)
    monkeypatch.setattr(
        on_gpu, "PARTS", (part("bad", program("no", "raise SystemExit('a | b')")), part("good", program("yes", "pass")))
    )
    monkeypatch.setenv("OUT_DIR", str(tmp_path / "weights"))
    out = tmp_path / "report"
    assert main(["--device", "cpu", "--tiny", "--out", str(out)]) == 1
    text = (out / "report.md").read_text(encoding="utf-8")
    assert r"| no | failed |" in text and r"exit code 1: a \| b" in text
    assert "| `bash benchmarks/on_gpu.sh --parts good` | 1 of 1 checks ok; 1 rows |" in text
    assert sorted(path.name for path in out.iterdir()) == ["bad.log", "good.log", "report.md", "results.json"]
    assert "$ " in (out / "bad.log").read_text(encoding="utf-8")
    assert "1 part with a failure" in capsys.readouterr().out


def test_a_report_names_card_data_and_result() -> None:
    content = {
        **HEAD,
        "device": "cuda",
        "machine": {**MACHINE, "card": "NVIDIA H100", "memory_gb": 85.0, "driver": "580"},
        "data": {"tokens": {"pretrain": 5000}, "from": {"pretrain": "text.jsonl"}},
        "parts": {
            "speed": {
                "status": "done", "seconds": 61.2, "limit_seconds": 150.0, "result": "1 of 1 checks ok; fast",
                "details": ["more"], "checks": [{"check": "train", "status": OK, "seconds": 60.0, "tokens_per_s": 1234567}],
            }
        },
    }  # fmt: skip
    lines = report(content)
    assert "| 2026-11-27 | NVIDIA H100 | `bash benchmarks/on_gpu.sh --parts speed` | 1 of 1 checks ok; fast |" in lines
    assert "tokens: pretrain 5,000 (text.jsonl)" in lines
    assert "| train | ok | 60.0 | tokens_per_s 1,234,567 |" in lines and "more" in lines
