"""What a user is told about the held-out split, and the errors when it leaves too little."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import UserError
from tests.dataset.mix.small_mix import OWN, SMALL, chat, mixed, noted, out, pair, talk


@pytest.mark.parametrize(("count", "heldout"), [(9, 0), (19, 1), (90, 9), (200, 20), (1000, 50)])
def test_a_small_category_gives_a_tenth_at_most_and_a_line_names_the_count(
    tmp_path: Path, count: int, heldout: int
) -> None:
    records = [chat(f"第{n}条规定是什么") for n in range(count)]
    manifest = mixed(tmp_path, {"a.jsonl": ("knowledge", records)}, OWN)
    assert len(out(tmp_path, "sft", True)) == heldout
    told = f"{heldout} of your" if heldout else "none of your"
    note = noted(manifest, f"{told} {count:,} records")
    assert ("no accuracy is printed" in note) == (0 < heldout < 10)


@pytest.mark.parametrize("prompts", [1, 2])
def test_pairs_too_few_or_too_alike_to_hold_any_out_are_trained_on_and_a_line_says_so(
    tmp_path: Path, prompts: int
) -> None:
    records = [pair(f"你是谁{n % prompts}", f"第{n}号") for n in range(40)]
    manifest = mixed(tmp_path, {"a.jsonl": ("preference", records)}, OWN)
    assert (out(tmp_path, "dpo", True), manifest["categories"]["preference"]["available"]) == ([], 40)
    assert "trained on, and not judged" in noted(manifest, "none of your 40 records")


@pytest.mark.parametrize("name", ["heldout", "validation", "dev", "test"])
def test_a_file_marked_wholly_as_held_out_is_an_error(tmp_path: Path, name: str) -> None:
    files = {
        "a.jsonl": ("general", [chat(f"问{n}") for n in range(100)]),
        "b.jsonl": ("general", [chat(f"别的{n}", split=name) for n in range(50)]),
    }
    with pytest.raises(UserError, match=r"b\.jsonl: all its 50 records are marked .*Remove `split`"):
        mixed(tmp_path, files)
    assert not (tmp_path / "out" / "mix_manifest.json").exists()


def test_a_file_left_nearly_empty_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    records = [chat(f"问{n}", split="test") for n in range(96)] + [chat(f"学{n}") for n in range(4)]
    with pytest.raises(UserError, match=r"a\.jsonl: 4 of 100 records are left to train on .*--heldout_share 0"):
        mixed(tmp_path, {"a.jsonl": ("general", records)})
    again = [talk(f"问题{n}是什么意思呢", f"又是第{n}个问题呀怎么办") for n in range(100)]
    others = [chat(f"又是第{n}个问题呀怎么办", split="test") for n in range(100)] + [chat(f"学{n}") for n in range(100)]
    with pytest.raises(UserError, match=r"a\.jsonl: 0 of 100 records are left .* 100 that ask a held-out question"):
        files = {"a.jsonl": ("general", again), "b.jsonl": ("knowledge", others)}
        mixed(tmp_path, files, replace(SMALL, heldout_share=0.0))


@pytest.mark.parametrize("split", ["test_sft", "Test", ["test"], {"test": 1}, 3, True])
def test_a_split_that_is_none_of_ours_decides_nothing_and_a_line_says_so(tmp_path: Path, split: Any) -> None:
    records = [chat(f"问{n}", split=split, kind=["a"], label=3, category={"a": 1}) for n in range(200)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, OWN)
    assert {record["split"] for record in out(tmp_path, "sft", True)} == {"validation", "test"}
    assert manifest["categories"]["general"]["available"] == 180
    noted(manifest, "`split` of 200 records is none of ours")


def test_a_user_s_columns_that_bear_our_names_decide_nothing(tmp_path: Path) -> None:
    columns = {"kind": "NLI", "split": "train_sft", "label": 0, "category": "Brainstorming", "group": 7}
    records = [chat(f"问{n}") for n in range(60)]
    mixed(tmp_path, {"a.jsonl": ("general", records)})
    plain = [record["conversations"] for record in out(tmp_path, "sft", heldout=True)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", [{**columns, **record} for record in records])})
    assert [record["conversations"] for record in out(tmp_path, "sft", heldout=True)] == plain
    assert manifest["sources"][0]["dropped"].keys() <= {"not sampled"}
    assert {record["category"] for record in out(tmp_path, "sft")} == {"general"}
