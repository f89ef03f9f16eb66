"""benchmarks/lm_eval_folder.py: tasks that lm-evaluation-harness can read, our number beside it."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import lm_eval_folder
from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from scripts.convert_model import main as convert
from tests.tiny_run import TinyRun


def test_a_task_names_its_data_and_its_output(tmp_path: Path) -> None:
    lm_eval_folder.write_task(tmp_path, "sums", lm_eval_folder.SUMS, lm_eval_folder.sums())
    task = json.loads((tmp_path / "sums.yaml").read_text(encoding="utf-8"))
    assert (task["task"], task["dataset_path"], task["output_type"]) == ("sums", "json", "multiple_choice")
    lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == lm_eval_folder.sums()


def test_one_of_four_different_sums_is_right() -> None:
    for record in lm_eval_folder.sums():
        a, b = record["question"].removesuffix("等于多少？").split("+")
        assert record["choices"][record["label"]] == f"{a}+{b}={int(a) + int(b)}。"
        assert len(set(record["choices"])) == 4


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.001, 1)])
def test_another_number_than_ours_is_a_failure(
    trained: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    factor: float,
    code: int,
) -> None:
    pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    flags = ["--to", "hf", "--output", str(tmp_path / "hf"), "--tokenizer_dir", str(TOKENIZER_DIR)]
    convert(["--input", str(trained.path("sft")), *flags])
    bits = lm_eval_folder.ours(tmp_path / "hf", lm_eval_folder.texts())
    told = {"bits_per_byte,none": bits * factor, "acc,none": 0.25}
    monkeypatch.setattr(lm_eval_folder, "theirs", lambda *_, **__: told)
    assert lm_eval_folder.main([str(tmp_path / "hf")]) == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is (code == 0)


def test_without_the_package_a_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install"):
        lm_eval_folder.theirs(tmp_path, tmp_path, "sums")
