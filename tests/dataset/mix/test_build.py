"""The whole mix: reproducible, with its manifest; full disks, second mixes, changing sources."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from configs.artifacts import sha256_file
from configs.schema import MixConfig, UserError
from dataset.mix import build
from dataset.mix import write as writing
from dataset.mix.build import output_lock
from dataset.mix.choice import Choice
from tests.dataset.mix.small_mix import (
    chat,
    mixed,
    read,
)


def test_one_seed_gives_one_mix_and_another_seed_another(tmp_path: Path) -> None:
    files = {"a.jsonl": ("general", [chat(f"问{n}") for n in range(200)])}
    first, again = mixed(tmp_path, files), mixed(tmp_path, files)
    other = mixed(tmp_path, files, MixConfig(general=40, heldout_min=2, seed=1))
    assert first == again
    assert first["outputs"]["sft_chinese.jsonl"] != other["outputs"]["sft_chinese.jsonl"]


@pytest.mark.parametrize("text", ['{"text": "新"}\n' * 20, "no records any more\n" * 20, '{"text": "短"}\n'])
def test_a_source_that_changes_between_the_passes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def change(*arguments: Any) -> Choice:
        (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
        return choose(*arguments)

    choose = build.choose
    monkeypatch.setattr(build, "choose", change)
    with pytest.raises(UserError, match=r"a\.jsonl: changed while it was read"):
        mixed(tmp_path, {"a.jsonl": ("corpus", [{"text": f"{n}"} for n in range(9)])})
    assert not (tmp_path / "out" / "pretrain_chinese.jsonl").exists()


def test_a_full_disk_leaves_the_older_mix_whole_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lines: writing.ShuffledLines, line: bytes, copies: int = 1) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    mixed(tmp_path, {"a.jsonl": ("general", [chat("问")])})
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(writing.ShuffledLines, "add", refuse)
    with pytest.raises(UserError, match=r"out: can't be written \(No space left on device\)"):
        mixed(tmp_path, {"a.jsonl": ("general", [chat("新")])})
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_second_mix_in_the_same_folder_is_refused_and_leftovers_are_removed(tmp_path: Path) -> None:
    files = {"a.jsonl": ("corpus", [{"text": f"{n}"} for n in range(9)])}
    with output_lock(tmp_path / "out"), pytest.raises(UserError, match="another mix is writing there"):
        mixed(tmp_path, files)
    leftover = tmp_path / "out" / ".pretrain_chinese.jsonl.abc.tmp"
    leftover.write_text("half")
    mixed(tmp_path, files)
    assert not leftover.exists()


def test_the_manifest_tells_what_was_made_from_what(tmp_path: Path) -> None:
    manifest = mixed(tmp_path, {"a.jsonl": ("general", [chat(f"问{n}") for n in range(20)] + [chat("问1")])})
    assert manifest == json.loads((tmp_path / "out" / "mix_manifest.json").read_text(encoding="utf-8"))
    assert manifest["seed"] == 42
    for name, output in manifest["outputs"].items():
        path = tmp_path / "out" / name
        assert output == {"records": len(read(path)), "sha256": sha256_file(path)}
    source = manifest["sources"][0]
    assert source["sha256"] == sha256_file(tmp_path / "a.jsonl")
    assert source["dropped"] == {"duplicate": 1}
    assert source["read"] == 21 == source["kept"] + source["heldout"] + 1
