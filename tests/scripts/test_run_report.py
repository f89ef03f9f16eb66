"""scripts/run_report.py: page, JSON and card lie beside the weights; what can't be is refused."""

import json
from pathlib import Path

import pytest

from dataset.tokenizer import RustBPETokenizer
from scripts.run_report import main
from tests.evaluation.run_report.small_run import SmallRun


@pytest.fixture
def flags(tmp_path: Path, tokenizer: RustBPETokenizer) -> list[str]:
    folders = SmallRun(tmp_path, tokenizer).whole().folders
    return ["--data_dir", str(folders.data), "--out_dir", str(folders.out), "--tf_dir", str(folders.results)]


def test_page_json_and_card_are_written_and_the_path_is_printed(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--no-ask"]) == 0
    out = tmp_path / "out"
    assert str(out / "report.html") in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["run_id"] == "r1"
    card = (out / "model_card.md").read_text(encoding="utf-8")
    assert "| mine.jsonl | math | 4 | 1 |" in card
    assert "90.0% (88.0% to 92.0%) [50.0%]" in card
    assert "eval_model.py --weight rlhf_16.pth" in card


def test_answers_are_asked_once_and_kept(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(flags) == 0
    first = (tmp_path / "out" / "report.html").read_bytes()
    columns = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["answers"]["columns"]
    assert {stage: len(said) for stage, said in columns.items()} == {"pretrain": 12, "sft": 12, "dpo": 12}
    monkeypatch.setattr("evaluation.run_report.answers.open_model", lambda *_, **__: pytest.fail("asked again"))
    assert main(flags) == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == first


def test_a_negative_price_is_refused(flags: list[str]) -> None:
    with pytest.raises(Exception, match=r"--rent -1.0: must be a number that is not negative"):
        main([*flags, "--rent=-1"])


@pytest.mark.parametrize("content", [None, "{}", '{"format": 99}', "[]"])
def test_a_run_to_compare_with_must_be_a_report(flags: list[str], tmp_path: Path, content: str | None) -> None:
    other = tmp_path / "other.json"
    if content is not None:
        other.write_text(content)
    with pytest.raises(Exception, match=r"--compare .*other.json: (no report of a run|of format 99)"):
        main([*flags, "--no-ask", "--compare", str(other)])
