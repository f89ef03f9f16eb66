"""Settings against each other: how they are given, padded rows, and what is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import compare_settings
from benchmarks.compare_settings import Setting, table
from benchmarks.training.corpus import padded_rows
from configs.schema import UserError
from dataset.lm_dataset import PretrainDataset
from tests.benchmarks.training.test_corpus import TOKENIZER, documents, prepared


def result(name: str, *by_seed: float) -> dict[str, Any]:
    return {
        "name": name, "flags": f"--schedule {name}", "steps": 9, "tokens": 5000, "real_tokens_per_s": 800.0,
        "heldout_bpb": sum(by_seed) / len(by_seed), "bpb_of_seeds": list(by_seed), "bytes_scored": 700, "minutes": 3.0,
        "model": "64x2", "device": "CPU", "instructions": ["avx2"], "threads": 2, "seeds": [0, 1],
    }  # fmt: skip


def test_a_setting_is_a_name_and_flags() -> None:
    assert Setting.parse("cosine:--schedule cosine") == Setting("cosine", ("--schedule", "cosine"))
    assert Setting.parse("default:") == Setting("default", ())
    for wrong in ("--schedule cosine", ":--schedule cosine"):
        with pytest.raises(UserError, match="must be a name, a colon, and flags"):
            Setting.parse(wrong)


def test_padded_rows_hold_what_the_baseline_learns_from(tmp_path: Path) -> None:
    corpus = prepared(tmp_path)
    rows, cut = PretrainDataset(padded_rows(corpus, TOKENIZER)), documents(corpus)
    assert len(rows) == len(cut)
    ids, own = (torch.from_numpy(array) for array in cut.batch(rows.largest(len(rows))))
    batch = rows.batch(rows.largest(len(rows)))
    real = own != -100
    assert torch.equal(batch["input_ids"], ids) and torch.equal(batch["document_ids"] >= 0, real)
    assert torch.equal(batch["labels"][:, :-1], own[:, 1:]) and (batch["labels"][:, -1] == -100).all()
    assert rows.manifest.num_targets == len(batch["target_places"]) and rows.manifest.num_tokens == real.sum()
    assert padded_rows(corpus, TOKENIZER) == rows.path  # made once


def test_the_best_setting_stands_first_with_its_spread() -> None:
    lines = table([result("cosine", 2.0, 2.2), result("constant", 1.9, 2.1)])
    assert lines[4].startswith("| constant | --schedule constant | 2.0000 ± 0.1414 | 1.9000, 2.1000 | 9 | 5,000 |")
    assert lines[5].startswith("| cosine |")


def test_table_and_plot_come_from_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps([result("cosine", 2.0)]), encoding="utf-8")
    assert compare_settings.main(["--from_json", str(path)]) == 0
    assert "| cosine | --schedule cosine | 2.0000 | 2.0000 | 9 | 5,000 | 800 |" in capsys.readouterr().out
    assert (tmp_path / "settings.svg").exists()
