"""Leaks (training records with a held-out question), and duplicates."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import MixConfig
from tests.dataset.mix.small_mix import OWN, chat, mixed, noted, out, talk, turns


def test_equal_records_are_kept_once_across_files_whatever_their_other_fields(tmp_path: Path) -> None:
    records = [chat(f"问{n}") for n in range(12)]
    manifest = mixed(
        tmp_path,
        {
            "a.jsonl": ("general", records),
            "b.jsonl": ("knowledge", [{**record, "id": 5} for record in [*records, chat("新")]]),
        },
        MixConfig(general=0, knowledge=0, heldout_share=0.0),
    )
    assert [source["dropped"] for source in manifest["sources"]] == [{}, {"duplicate": 12}]


def test_of_a_held_out_group_only_the_last_question_is_kept_out_of_training(tmp_path: Path) -> None:
    records = [
        talk("你好", "讲个笑话", "谁是老大", split="test", group="boss"),
        chat("你好"), chat("讲个笑话"), talk("在吗", "谁是老大？"), chat("谁是老大！", "别的"),
        talk("晚安", "明天见", split="test"),
        chat("晚安", "好梦"), chat("明天见"),
    ]  # fmt: skip
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, MixConfig(general=9, heldout_share=0))
    kept = {tuple(turn["content"] for turn in turns(record)[::2]) for record in out(tmp_path, "sft")}
    assert kept == {("你好",), ("讲个笑话",), ("明天见",)}
    assert manifest["sources"][0]["dropped"]["asks a held-out question"] == 2  # 晚安 has the key of a held-out record


@pytest.mark.parametrize("marks", [("继续", "好的", "谢谢"), ("继续", "请接着讲下去，我很想听后来怎么样了", "嗯")])
def test_short_turns_that_many_conversations_share_are_no_leak(tmp_path: Path, marks: tuple[str, ...]) -> None:
    records = [talk(f"请讲第{n}个故事", marks[n % 3]) for n in range(600)]
    records += [chat(mark, "先告诉我讲什么。", split="heldout") for mark in marks]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, OWN)
    assert manifest["categories"]["general"]["available"] == 553
    noted(manifest, "turns that many conversations share")


def test_a_question_that_few_share_is_a_leak_still(tmp_path: Path) -> None:
    records = [talk(f"请讲第{n}个故事", "月亮为什么会发光呢" if n < 9 else "后来呢") for n in range(600)]
    records.append(chat("月亮为什么会发光呢？", split="test"))
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, replace(OWN, heldout_share=0.0))
    assert manifest["sources"][0]["dropped"] == {"asks a held-out question": 9}


def test_of_equal_records_the_held_out_one_stays(tmp_path: Path) -> None:
    files = {
        "a.jsonl": ("general", [chat("问"), chat("别的")]),
        "b.jsonl": ("knowledge", [chat("问", group="g", split="heldout"), chat("还有")]),
    }
    mixed(tmp_path, files, MixConfig(heldout_share=0.0))
    assert [record["origin"] for record in out(tmp_path, "sft", True)] == ["b.jsonl:1"]
    assert {record["origin"] for record in out(tmp_path, "sft")} == {"a.jsonl:2", "b.jsonl:2"}
