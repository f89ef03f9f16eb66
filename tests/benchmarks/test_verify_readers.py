"""benchmarks/verify_readers.py and .sh: weights that all matter, a table that hides nothing."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks import verify_readers
from configs.paths import ROOT, TOKENIZER_DIR
from configs.schema import ModelConfig, UserError
from model.weights import load_model, read_weights
from tests.tiny_run import DENSE, MOE

GOOD = {
    "version": "1.0", "weights_equal": True, "max_logit_diff": 1e-5, "greedy_equal": 199, "near_ties": 1, "answers": 200,
    "ids_equal": True, "template_equal": True, "more_bits": 0.0, "ok": True,
}  # fmt: skip


def keep(folder: Path, name: str, content: dict[str, Any] | None) -> None:
    """A result as verify_readers.sh leaves it; None: the export or the comparison failed."""
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / f"{name}.json").write_text(json.dumps(content) if content else "", encoding="utf-8")


@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "moe"])
def test_every_weight_changes_the_logits(shape: ModelConfig) -> None:
    model = verify_readers.lively(shape).eval()
    ids = torch.arange(90).view(2, 45)
    with torch.no_grad():
        before = model(ids)
        assert before.std() < 10
        for name, weight in model.named_parameters():
            kept = weight.clone()
            weight.copy_(kept.flip(0))
            assert not torch.allclose(model(ids), before, atol=1e-4), name
            weight.copy_(kept)


def test_each_model_has_its_own_vocabulary(tmp_path: Path) -> None:
    shutil.copytree(TOKENIZER_DIR, tmp_path / "tokenizers" / "vocab6400", ignore=shutil.ignore_patterns("*.py"))
    some = dict.fromkeys(("cpu", "vocab6400"), DENSE_FLAGS)
    with mock.patch.object(verify_readers, "SHAPES", some):
        assert verify_readers.main(["weights", str(tmp_path)]) == 0
    for name in some:
        assert load_model(tmp_path / "weights" / f"{name}.pth")[0].config.vocab_size == 6400
        assert read_weights(tmp_path / "weights" / f"{name}.pth")[2].tokenizer_sha256


DENSE_FLAGS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


def test_the_table_has_a_row_for_each_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path, "transformers5.moe.hf", {"transformers": GOOD, "mlx": GOOD})
    keep(tmp_path, "transformers4.rlhf_192.q8_0", {"llama.cpp": GOOD | {"max_logit_diff": 0.5}})
    assert verify_readers.main(["table", str(tmp_path)]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["llama.cpp 1.0", "rlhf_192", "q8_0", "5.0e-01", "199 + 1 of 200", "yes", "yes", "+0.000%", "yes"],
        ["transformers 1.0", "moe", "hf", "1.0e-05", "199 + 1 of 200", "yes", "yes", "+0.000%", "yes"],
        ["mlx 1.0", "moe", "hf", "1.0e-05", "199 + 1 of 200", "yes", "yes", "+0.000%", "yes"],
    ]


def test_a_reader_that_differs_or_did_not_run_is_shown_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, "transformers5.cpu.hf", {"mlx": GOOD | {"ids_equal": False, "ok": False}})
    assert verify_readers.main(["table", str(tmp_path)]) == 1
    assert "| NO | yes | +0.000% | NO |" in capsys.readouterr().out
    keep(tmp_path, "transformers5.cpu.hf", None)
    assert verify_readers.main(["table", str(tmp_path)]) == 1
    assert "NO: did not run" in capsys.readouterr().out


def test_no_results_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results"):
        verify_readers.main(["table", str(tmp_path)])


def test_the_script_exports_compares_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    """With a stand-in for both Pythons, which writes what each program would write."""
    python = tmp_path / "python"
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)
    for version in ("transformers4", "transformers5"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "python").symlink_to(python)
        (tmp_path / version / ".ready").touch()
    for name in ("weights", "tokenizers/vocab6400", "tokenizers/vocab32000"):
        (tmp_path / name).mkdir(parents=True)
    command = ["bash", str(ROOT / "benchmarks" / "verify_readers.sh"), str(tmp_path), "mine_16.pth"]
    variables = {"MODELS": "yarn vocab32000", "KINDS": "hf f16", "PATH": "/usr/bin:/bin", "TOKENIZER_DIR": "tok"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # that of the stand-in for the table
    results = sorted(path.name for path in (tmp_path / "results").iterdir())
    models = ("mine_16", "vocab32000", "yarn")
    wanted = [f"transformers{v}.{model}.{kind}.json" for v in (4, 5) for model in models for kind in ("f16", "hf")]
    assert results == wanted
    empty = {path.name for path in (tmp_path / "results").iterdir() if not path.stat().st_size}
    assert empty == {name for name in wanted if "mine_16" in name}  # the stand-in fails on these
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert sum("--rope_scaling_factor 4" in call for call in calls) == 4
    assert sum("tokenizers/vocab32000 --verify" in call for call in calls) == 4
    assert sum("--tokenizer_dir tok --verify" in call for call in calls) == 4
    assert calls[-1].endswith(f"verify_readers.py table {tmp_path}")
    assert not list((tmp_path / "exports").iterdir())
    subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    again = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()[len(calls) :]
    assert len(again) == 5  # what failed is tried again, and the table


STAND_IN = """#!/bin/bash
folder=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
echo "$@" >> "$folder/calls"
[[ "$*" == *mine_16* ]] && exit 1
previous=
for word in "$@"; do
  [[ $previous == --output && $word != *.gguf ]] && mkdir -p "$word" && echo '{}' > "$word/verify.json"
  [[ $previous == --output && $word == *.gguf ]] && echo '{}' > "$(dirname "$word")/verify.json"
  previous=$word
done
exit 0
"""
