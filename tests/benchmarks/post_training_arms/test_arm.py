"""The finished run that methods start from, and fingerprints of contents."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks.post_training_arms.arm import (
    RUN_DIR,
    FinishedRun,
    Method,
    content_sha256,
    finished_run,
    start_sha256,
    targets_of,
)
from benchmarks.post_training_arms.runs import Runs
from benchmarks.report import Target
from configs.paths import DATA_DIR, OUT_DIR
from configs.schema import UserError


def weights(path: Path, *, manifest: str = "here", **tensors: torch.Tensor) -> Path:
    """A file as trainers write it, of any tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"model": tensors, "config": {"hidden_size": 2}, "manifest": {"path": manifest}}
    torch.save(content, path)
    return path


def test_the_finished_run_is_where_run_sh_left_it_or_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RUN_DIR, raising=False)
    assert finished_run() == FinishedRun(OUT_DIR, DATA_DIR)
    monkeypatch.setenv(RUN_DIR, str(tmp_path))
    run = finished_run()
    assert run == FinishedRun(tmp_path / "out", tmp_path / "data")
    assert run.tokens("conversations") == tmp_path / "data" / "sft_tokens"
    assert run.heldout("pairs").name == "dpo_chinese_heldout.jsonl"
    with pytest.raises(UserError, match=r"full_sft_.*no such weights"):
        run.weights("sft")
    path = weights(run.out_dir / "full_sft_192.pth", a=torch.ones(2))
    assert run.weights("sft") == path


def test_only_contents_make_a_start_another_one(tmp_path: Path) -> None:
    one = weights(tmp_path / "one" / "a.pth", manifest="/home/one", a=torch.ones(2))
    two = weights(tmp_path / "two" / "b.pth", manifest="/home/two", a=torch.ones(2))
    other = weights(tmp_path / "other.pth", a=torch.ones(2, dtype=torch.bfloat16))
    assert content_sha256(one) == content_sha256(two) != content_sha256(other)
    assert start_sha256({"w": one}, {"steps": 3}) == start_sha256({"w": two}, {"steps": 3})
    assert start_sha256({"w": one}, {"steps": 3}) != start_sha256({"w": one}, {"steps": 4})
    assert start_sha256({"w": one}, {}) != start_sha256({"v": one}, {})


def test_of_a_folder_all_counts_but_its_manifest(tmp_path: Path) -> None:
    def folder(name: str, rows: str, manifest: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "rows.npy").write_text(rows)
        (path / "manifest.json").write_text(manifest)
        return path

    assert content_sha256(folder("a", "1", "here")) == content_sha256(folder("b", "1", "there"))
    assert content_sha256(tmp_path / "a") != content_sha256(folder("c", "2", "here"))


def test_another_finished_run_has_another_fingerprint(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path / "out", tmp_path / "data")
    empty = run.fingerprint()
    weights(run.out_dir / "pretrain_192.pth", a=torch.ones(2))
    first = run.fingerprint()
    run.data_dir.mkdir()
    run.records("conversations").write_text("{}\n")
    assert len({empty, first, run.fingerprint()}) == 3


def test_a_module_may_name_targets() -> None:
    target = Target("right", 0.9, 0.95, "")
    runs = Runs([], [])
    assert targets_of(cast(Method, SimpleNamespace()), runs) == []
    assert targets_of(cast(Method, SimpleNamespace(targets=lambda runs: [target])), runs) == [target]
