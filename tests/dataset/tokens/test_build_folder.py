"""The tensor folder: made once, made again when anything has changed, never incomplete."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.paths import ROOT
from configs.schema import UserError
from configs.stage_table import RECIPE_VERSION
from dataset.tokens import packing, workers
from dataset.tokens.build import TensorJob, build_tensors, current_tensors, ensure_tensors
from tests.dataset.tokens.byte_tokens import (
    documents,
    job,
    tokenizer,
    write_lines,
)


def test_tensors_are_made_once_and_again_when_anything_they_depend_on_changes(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")

    def ensure(max_length: int = 16) -> int:
        ensure_tensors(
            "documents", source, tmp_path / "tensors", tokenizer, max_length=max_length, num_workers=1, progress=False
        )
        return (tmp_path / "tensors" / "manifest.json").stat().st_mtime_ns

    first = ensure()
    assert ensure() == first
    second = ensure(32)
    assert second != first
    documents(source, ["new"])
    third = ensure(32)
    assert third != second
    documents(tmp_path / "a_heldout.jsonl", ["held"])
    assert ensure(32) != third


def test_a_raised_version_of_the_recipe_makes_tensors_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    build_tensors(task)
    assert current_tensors(task) is not None
    monkeypatch.setitem(RECIPE_VERSION, "export", RECIPE_VERSION["export"] + 1)
    assert current_tensors(task) is None


def test_the_record_file_may_be_deleted_once_the_tensors_exist(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")
    heldout = write_lines(tmp_path / "a_heldout.jsonl", [{"text": "x", "split": "validation"}])
    task = job("pretrain", source, heldout=heldout)
    manifest = build_tensors(task)
    source.unlink()
    heldout.unlink()
    assert current_tensors(job("pretrain", source)) == manifest
    with pytest.raises(UserError, match="other settings or another tokenizer"):
        current_tensors(job("pretrain", source, max_length=32))


def test_neither_records_nor_tensors_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl: no such file"):
        current_tensors(job("pretrain", tmp_path / "a.jsonl"))


BUILD = """
import os, signal, sys
from pathlib import Path
from configs import folders
from dataset.tokens import build, packing
from dataset.tokenizer import QWEN2_PATTERN, RustBPETokenizer
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
source, output, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if moment:
    owner, name = moment.split(".")
    owners = {"build": build, "folders": folders, "ArrayFile": packing.ArrayFile}
    setattr(owners[owner], name, die)
tokenizer = RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(256)})
build.ensure_tensors("documents", source, output, tokenizer, max_length=16, num_workers=1, progress=False)
print("torch" in sys.modules)
"""


def build_elsewhere(task: TensorJob, die_in: str = "") -> "subprocess.CompletedProcess[str]":
    """Build in another process, which kills itself when it enters a certain function."""
    command = [sys.executable, "-c", BUILD, str(task.source), str(task.output), die_in]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("moment", ["ArrayFile.append", "ArrayFile.finish", "build.write_json", "folders._move_folder"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_kill_at_any_moment_leaves_nothing_that_is_trusted(tmp_path: Path, moment: str, existing: bool) -> None:
    source = documents(tmp_path / "a.jsonl")
    task = job("pretrain", source)
    if existing:
        build_tensors(job("pretrain", source, max_length=32))
    assert build_elsewhere(task, die_in=moment).returncode == -signal.SIGKILL
    assert task.output.exists() == existing
    assert current_tensors(task) is None
    build_tensors(task)
    assert current_tensors(task) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tensors"]


def test_a_full_disk_is_one_clear_message_and_leaves_the_old_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.ArrayFile, "append", full)
        with pytest.raises(UserError, match=r"can't be written \(No space left on device\)"):
            build_tensors(job("pretrain", task.source, max_length=32))
    assert current_tensors(task) == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tensors"]


def test_a_second_builder_of_the_same_folder_is_refused(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    folder = tmp_path / ".tensors.tmp"
    folder.mkdir()
    (folder / "labels.npy").write_bytes(b"half")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is making it"):
            build_tensors(task)
        assert (folder / "labels.npy").exists()
    finally:
        os.close(descriptor)
    build_tensors(task)


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"holds other things \(a\.jsonl\)"):
        build_tensors(job("pretrain", source, output=tmp_path))
    with pytest.raises(UserError, match="holds other things"):
        build_tensors(job("pretrain", source, output=source))
    assert source.exists()


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a.jsonl"
    folder.mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl: can't be read"):
        build_tensors(job("pretrain", folder))
    with pytest.raises(UserError, match=r"b\.jsonl: can't be read"):
        build_tensors(job("pretrain", tmp_path / "b.jsonl"))


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = documents(tmp_path / "a.jsonl")
    real = packing.DocumentRows.finish

    def meddle(writer: packing.DocumentRows) -> Any:
        documents(source, ["other"])
        return real(writer)

    monkeypatch.setattr(packing.DocumentRows, "finish", meddle)
    with pytest.raises(UserError, match="changed while it was read"):
        build_tensors(job("pretrain", source))


def test_a_worker_that_dies_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BYTES_PER_WORKER", 1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="a process that encodes text ended"):
        build_tensors(job("pretrain", documents(tmp_path / "a.jsonl"), num_workers=2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_building_needs_no_torch(tmp_path: Path) -> None:
    assert build_elsewhere(job("pretrain", documents(tmp_path / "a.jsonl"))).stdout == "False\n"
