"""Bundled sets: written by name, held-out records apart, and written again only if they change."""

import json
from pathlib import Path

import pytest

from dataset.samples.sets import SAMPLE_SETS, write_set


@pytest.mark.parametrize("name", SAMPLE_SETS)
def test_a_set_is_two_files_of_which_one_is_held_out(name: str, tmp_path: Path) -> None:
    path = write_set(name, tmp_path)
    heldout = tmp_path / f"{name}_heldout.jsonl"
    assert path == tmp_path / f"{name}.jsonl"
    train, held = ([json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in (path, heldout))
    assert train and not any("split" in record for record in train)
    assert {record["split"] for record in held} == {"validation", "test"}


def test_a_set_that_is_there_is_kept_and_a_damaged_one_written_again(tmp_path: Path) -> None:
    path = write_set("lora_identity", tmp_path)
    before, text = path.stat().st_mtime_ns, path.read_text(encoding="utf-8")
    write_set("lora_identity", tmp_path)
    assert path.stat().st_mtime_ns == before
    path.write_text(text[:1000], encoding="utf-8")
    write_set("lora_identity", tmp_path)
    assert path.read_text(encoding="utf-8") == text
