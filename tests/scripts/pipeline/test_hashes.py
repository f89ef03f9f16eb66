"""Hashes of files: read when something changed, and known by labels that survive a move."""

import os
from pathlib import Path

from scripts.pipeline.hashes import Hashes


def test_hashes_are_read_again_only_when_size_or_time_changed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    os.utime(file, ns=(5, 5))
    hashes = Hashes(tmp_path / "hashes.json", {"base": tmp_path})
    first = hashes.sha256(file)
    hashes.save()
    file.write_text("two")
    os.utime(file, ns=(5, 5))
    assert Hashes(tmp_path / "hashes.json", {"base": tmp_path}).sha256(file) == first
    os.utime(file, ns=(6, 6))
    assert Hashes(tmp_path / "hashes.json", {"base": tmp_path}).sha256(file) != first
    assert hashes.sha256(tmp_path / "missing") == ""


def test_a_label_leads_back_to_its_file(tmp_path: Path) -> None:
    hashes = Hashes(tmp_path / "hashes.json", {"base": tmp_path / "a"})
    for path in (tmp_path / "a" / "b" / "c.npy", tmp_path / "elsewhere"):
        assert hashes.locate(hashes.label(path)) == path
    assert hashes.label(tmp_path / "a" / "b" / "c.npy") == "base/b/c.npy"
