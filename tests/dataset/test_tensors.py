"""Reading a tensor folder: nothing damaged, changed or half-written is trusted."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.artifacts import sha256_file, write_json
from configs.schema import UserError
from dataset import tensors
from dataset.tensors import check_contents, open_tensors
from dataset.tokens.build import build_tensors, current_tensors
from tests.dataset.tokens.byte_tokens import (
    BOS,
    documents,
    job,
)


@pytest.mark.parametrize("lost", [1, 100])
def test_a_file_cut_short_is_refused_and_made_anew(tmp_path: Path, lost: int) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    labels = tmp_path / "tensors" / "labels.npy"
    labels.write_bytes(labels.read_bytes()[:-lost])
    with pytest.raises(
        UserError, match=r"labels\.npy: .* bytes instead of .* rerun: python scripts/export_embeddings\.py pretrain"
    ):
        open_tensors(task.output)
    assert current_tensors(task) is None
    assert build_tensors(task) == manifest
    assert "labels" in open_tensors(task.output)


def test_a_changed_byte_a_missing_file_and_a_torn_manifest_are_noticed(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    build_tensors(task)
    array = tmp_path / "tensors" / "input_ids.npy"
    content = array.read_bytes()
    array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert current_tensors(task) is None
    array.unlink()
    assert current_tensors(task) is None
    with pytest.raises(UserError, match="missing"):
        open_tensors(task.output)
    manifest = tmp_path / "tensors" / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    assert current_tensors(task) is None


def test_tensors_that_were_compared_once_are_not_read_again_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(tensors, "sha256_file", noted)
    check_contents(task.output, manifest)
    assert sorted(read) == sorted(f"{name}.npy" for name in manifest.files)
    check_contents(task.output, manifest)
    assert len(read) == len(manifest.files)
    os.utime(task.output / "labels.npy")  # its time has changed, its bytes have not
    check_contents(task.output, manifest)
    assert read[len(manifest.files) :] == ["labels.npy"]
    other = replace(manifest.files["labels"], sha256="0" * 64)  # what the last check stored is about another checksum
    manifest = replace(manifest, files={**manifest.files, "labels": other})
    with pytest.raises(UserError, match=r"labels\.npy: its bytes have changed"):
        check_contents(task.output, manifest)


def test_a_byte_changed_under_the_old_size_and_time_of_writing_is_found(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    check_contents(task.output, manifest)
    array = task.output / "labels.npy"
    status = array.stat()
    array.write_bytes(array.read_bytes()[:-1] + b"\x01")
    while array.stat().st_ctime_ns == status.st_ctime_ns or array.stat().st_mtime_ns != status.st_mtime_ns:
        os.utime(array, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"labels\.npy: its bytes have changed"):
        check_contents(task.output, manifest)


@pytest.mark.parametrize("note", ["", "{", "[]", '{"labels": 1}', '{"labels": {"size": 1}}'])
def test_a_torn_note_of_what_was_compared_is_no_harm(tmp_path: Path, note: str) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    (task.output / tensors.CHECKED_FILE).write_text(note)
    check_contents(task.output, manifest)
    array = task.output / "labels.npy"
    array.write_bytes(array.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="its bytes have changed"):
        check_contents(task.output, manifest)


def test_tensors_in_a_folder_that_cannot_be_written_are_compared_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, value: Any) -> None:
        raise UserError(f"{path}: can't be written")

    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    monkeypatch.setattr(tensors, "write_json", refused)
    for _ in range(2):
        check_contents(task.output, manifest)
    assert not (task.output / tensors.CHECKED_FILE).exists()


@pytest.mark.parametrize(
    "part",
    [
        *("max_length", "vocab_size", "pad_id", "tokenizer_sha256", "source", "validation", "rows", "num_tokens"),
        *("fingerprint", "files"),
    ],
)
def test_a_manifest_without_a_part_is_refused_by_name(tmp_path: Path, part: str) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    content = build_tensors(task).as_json()
    del content[part]
    write_json(task.output / "manifest.json", content)
    with pytest.raises(
        UserError,
        match=f"manifest.json: has no '{part}'. Delete .* and rerun: python scripts/export_embeddings.py pretrain",
    ):
        open_tensors(task.output)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"files": []}, "files"),
        ({"files": {"labels": 3}}, "files: labels"),
        ({"files": {"labels": {"bytes": "4"}}}, "files: labels"),
        ({"rows": "many"}, "rows"),
        ({"validation": {"rows": 2}}, "validation"),
        ({"source": {}}, "source"),
    ],
)
def test_a_manifest_with_a_part_of_another_type_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    write_json(task.output / "manifest.json", build_tensors(task).as_json() | change)
    with pytest.raises(UserError, match=f"manifest.json: '{named}' is not as it was written. Delete"):
        open_tensors(task.output)


def test_an_array_of_another_shape_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    build_tensors(task)
    path = tmp_path / "tensors" / "labels.npy"
    array = np.load(path)
    np.save(path, array.reshape(-1, 8))
    with pytest.raises(UserError, match="not the array that the manifest describes"):
        open_tensors(task.output)


def test_writing_into_an_opened_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    build_tensors(task)
    open_tensors(task.output)["input_ids"].zero_()
    assert open_tensors(task.output)["input_ids"][0, 0] == BOS
