"""The cost tables: docs/costs.md has what the program computes; each row says how it was found."""

from pathlib import Path

import pytest

from benchmarks.cost_table import BEGIN, END, main, parameters, presets, state_bytes, tables
from configs.paths import ROOT
from configs.schema import UserError


def test_the_document_has_the_tables_of_today() -> None:
    text = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == tables(), "run benchmarks/cost_table.py --write docs/costs.md"


def test_each_row_says_whether_it_was_measured_or_computed() -> None:
    rows = [line for line in tables().splitlines() if line.startswith("| ") and not line.endswith("| |")]
    assert len(rows) == 13
    assert all("computed" in row or "measured" in row for row in rows)


def test_presets_have_the_sizes_that_the_documents_name() -> None:
    sizes = {one.name: round(parameters(one.shape) / 1e6, 1) for one in presets()}
    assert sizes == {"smoke": 0.5, "cpu": 2.8, "default": 25.8, "768 x 16": 104.0, "MoE 640 x 8": 146.0}


def test_muon_keeps_one_number_a_weight_and_adamw_two() -> None:
    shape = next(one.shape for one in presets() if one.name == "default")
    embedding = shape.vocab_size * shape.hidden_size
    assert state_bytes(shape) == 4 * (3 * (parameters(shape) - embedding) + 4 * embedding)


def test_another_document_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.md"
    path.write_text("mine")
    with pytest.raises(UserError, match="has no place for the tables"):
        main(["--write", str(path)])
    assert path.read_text() == "mine"
