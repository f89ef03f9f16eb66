"""Files are written completely or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest

from configs.artifacts import append_line, atomic_write, fingerprint, read_json, sha256_file, write_json
from configs.schema import UserError


def test_a_file_replaces_the_old_one_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    with atomic_write(path) as file:
        file.write("旧\n")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_bytes() == "旧\n".encode()
    assert [other.name for other in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_that_can_not_be_written_is_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x\.json: can't be written"):
        write_json(tmp_path / "file" / "x.json", {})


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    value = {"文": [1, 2.5, None], "a": {"b": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "") == value


def test_a_missing_or_torn_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\. Make it again") as missing:
        read_json(tmp_path / "x.json", "Make it again.", "请重做")
    assert missing.value.chinese == "请重做"
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"can't be read .* Make it again") as torn:
        read_json(tmp_path / "x.json", "Make it again.", "请重做")
    assert torn.value.chinese == "请重做"


def test_lines_are_appended_one_by_one(tmp_path: Path) -> None:
    for number in range(3):
        append_line(tmp_path / "lines.jsonl", {"n": number, "text": "好\n"})
    lines = (tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 1, 2]


def test_a_fingerprint_looks_at_values_not_at_their_order() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"b": [2, 1]}) != fingerprint({"b": [1, 2]})


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf8f01cfea")


def test_a_file_is_on_the_disk_before_it_takes_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "weights", []
    sync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        events.append(("folder synced", 0) if stat.S_ISDIR(status.st_mode) else ("file synced", status.st_size))
        sync(descriptor)

    def noted_replace(temporary: Path, target: Path) -> Path:
        events.append(("renamed", temporary.stat().st_size))
        return replace(temporary, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    with atomic_write(path, "wb") as file:
        file.write(b"12345")
    assert events == [("file synced", 5), ("renamed", 5), ("folder synced", 0)]
