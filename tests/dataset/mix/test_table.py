"""The key of a record: its group; openings that too many conversations share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import MixConfig
from dataset.mix.build import build_mix
from dataset.mix.sources import Source, Sources
from tests.dataset.mix.small_mix import OWN, chat, mixed, noted, out, talk, turns, write


def test_a_group_keeps_all_its_records_on_one_side(tmp_path: Path) -> None:
    records = [
        chat(f"{a}加{b}？问法{way}", group=f"sum:{a},{b}") for a in range(12) for b in range(12) for way in range(3)
    ]
    mixed(tmp_path, {"a.jsonl": ("math", records)}, MixConfig(math=1000, heldout_min=20))
    groups = [{record["group"] for record in out(tmp_path, "sft", heldout)} for heldout in (False, True)]
    assert not groups[0] & groups[1]
    assert [len(side) for side in groups] == [136, 8]  # 22 of 432 records, in groups of 3


def test_one_opening_shared_by_most_conversations_takes_no_more_than_five_percent_with_it(tmp_path: Path) -> None:
    records = [talk(["在吗", "你好", "您好"][n % 3], f"订单{n}号到哪了") for n in range(920)]
    records += [talk(f"第{n}件事", f"订单{n}号呢") for n in range(80)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, OWN)
    heldout = out(tmp_path, "sft", True)
    assert len(heldout) == 50
    assert len(out(tmp_path, "sft")) == 5000 and manifest["categories"]["general"]["available"] == 950
    assert sum(turns(record)[0]["content"] in {"在吗", "你好", "您好"} for record in heldout) > 40
    noted(manifest, "920 conversations open with a turn")


@pytest.mark.parametrize("group", ["all", 3, ["a"], {"a": 1}, True])
def test_a_group_that_is_no_text_or_too_large_is_ignored_with_a_line(tmp_path: Path, group: Any) -> None:
    records = [chat(f"问{n}", group=group) for n in range(200)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, OWN)
    assert len(out(tmp_path, "sft", True)) == 20
    noted(manifest, "ignored")


def test_a_group_of_a_fiftieth_is_taken_and_one_record_more_is_ignored(tmp_path: Path) -> None:
    for size, ignored in ((20, False), (21, True)):
        records = [chat(f"问{n}", group="g0" if n < size else f"g{n}") for n in range(1000)]
        manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, OWN)
        assert any("`group` is ignored" in note for note in manifest["notes"]) == ignored


def test_bundled_samples_keep_their_groups_and_marks_however_large(tmp_path: Path) -> None:
    records = [chat(f"问{n}", group="g", split="test") for n in range(50)] + [chat(f"学{n}") for n in range(50)]
    path = write(tmp_path / "s.jsonl", records)
    config = replace(OWN, heldout_share=0.0)
    manifest = build_mix(Sources([Source(path, "general", is_sample=True)], {}), config, tmp_path / "out")
    assert (manifest["categories"]["general"]["heldout"], manifest["notes"]) == (50, [])
