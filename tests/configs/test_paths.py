"""A data set is found in each folder where users keep one."""

from pathlib import Path

import pytest

from configs.paths import ROOT, display, find_dataset, heldout_beside
from configs.schema import UserError


def test_a_path_is_looked_for_where_the_user_stands_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_dataset(Path("identity_cn_sample.jsonl")) == ROOT / "dataset" / "identity_cn_sample.jsonl"
    (tmp_path / "identity_cn_sample.jsonl").touch()
    assert find_dataset(Path("identity_cn_sample.jsonl")) == Path("identity_cn_sample.jsonl")


def test_a_missing_file_names_every_place_that_was_looked_at() -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl: no such file.*data/chinese/nothing\.jsonl"):
        find_dataset(Path("nothing.jsonl"))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("data/processed/sft_tokens", "make it: python scripts/export_embeddings.py sft "),
        ("dpo_chinese_heldout.jsonl", "make it: python scripts/build_chinese_mix.py "),
        ("out/full_sft_512_moe.pth", "make it: python trainer/train_full_sft.py "),
        ("mine.jsonl", "Check the path.$"),
    ],
)
def test_what_a_stage_makes_is_missed_with_the_command_that_makes_it(name: str, command: str) -> None:
    with pytest.raises(UserError, match=command):
        find_dataset(Path("nowhere") / name)


def test_a_path_is_shown_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert display(tmp_path / "a" / "b") == "a/b"
    assert display(Path("/elsewhere")) == "/elsewhere"


def test_the_held_out_file_stands_beside_the_training_file(tmp_path: Path) -> None:
    for name in ("a_heldout.jsonl", "b_heldout.jsonl.gz"):
        (tmp_path / name).touch()
    assert heldout_beside(tmp_path / "a.jsonl") == tmp_path / "a_heldout.jsonl"
    assert heldout_beside(tmp_path / "b.jsonl.gz") == tmp_path / "b_heldout.jsonl.gz"
    assert heldout_beside(tmp_path / "c.jsonl") is heldout_beside(Path("/")) is heldout_beside(Path("..")) is None
