"""What is reported of a run that was killed: weights, lines and files that differ."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.kills.differences import differences
from benchmarks.kills.pipeline import Folders
from configs.stage_table import STAGE_TABLE, STAGES


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Folders, Folders]:
    """Two pipelines with the same end."""
    reference = Folders(tmp_path / "reference")
    for folder in (reference.data, reference.out, reference.results.parent):
        folder.mkdir(parents=True)
    (reference.data / "mix_manifest.json").write_text('{"seed": 0, "source": "here"}')
    for stage in STAGES:
        tokens = reference.data / f"{stage}_tokens"
        tokens.mkdir()
        (tokens / "manifest.json").write_text(json.dumps({"rows": 3, "validation": {"path": "here", "rows": 1}}))
        torch.save({"model": {"norm": torch.ones(3)}}, reference.out / f"{STAGE_TABLE[stage].weights}_64.pth")
    lines = [json.dumps({"stage": stage, "metrics": {"loss": 1.5}}) + "\n" for stage in STAGES]
    reference.results.write_text("".join(lines))
    shutil.copytree(reference.base, tmp_path / "killed")
    return reference, Folders(tmp_path / "killed")


def test_two_runs_with_the_same_end_differ_in_nothing(runs: tuple[Folders, Folders]) -> None:
    (runs[1].data / "mix_manifest.json").write_text('{"seed": 0, "source": "there"}')  # the path alone
    assert differences(*runs) == []


def test_a_changed_weight_and_missing_weights_are_named(runs: tuple[Folders, Folders]) -> None:
    weights = runs[1].weights()
    torch.save({"model": {"norm": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}}, weights["sft"])
    weights["dpo"].unlink()
    assert differences(*runs) == ["sft: norm", "dpo: weights are missing", "out/rlhf_64.pth: missing"]


def test_lines_that_are_doubled_or_torn_are_reported(runs: tuple[Folders, Folders]) -> None:
    whole = runs[1].results.read_text()
    runs[1].results.write_text(whole + whole.splitlines(keepends=True)[-1])
    assert differences(*runs) == ["eval_results.jsonl: stages ['pretrain', 'sft', 'dpo', 'dpo']"]
    assert differences(*runs, settings_changed=True) == []  # the last line of each stage counts
    runs[1].results.write_text(whole[:-5])
    assert "a torn line" in differences(*runs)[0]


def test_files_left_over_are_reported_and_states_of_other_settings_only_where_none_changed(
    runs: tuple[Folders, Folders],
) -> None:
    state = runs[1].out / "checkpoints" / "sft" / "abc" / "state.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    assert "out/checkpoints/sft/abc/state.pt: left over" in differences(*runs)
    assert differences(*runs, settings_changed=True) == []
    (runs[1].data / "rows.tmp").touch()
    assert [text.split(": ")[1] for text in differences(*runs, settings_changed=True)] == [
        "left over",
        "a temporary file is left",
    ]
