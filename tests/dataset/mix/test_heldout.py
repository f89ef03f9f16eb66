"""Which records are held out, and that none of them is ever trained on."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import MixConfig
from dataset.mix.heldout import heldout_target
from tests.dataset.mix.small_mix import OWN, Record, bare, chat, key_of, mixed, noted, out, pair, talk, turns


def varied(text: str, rng: random.Random) -> str:
    """The same question with other case, spaces and punctuation."""
    text = "".join(char.upper() if rng.random() < 0.5 else char for char in text)
    text = "".join(
        chr(ord(char) + 0xFEE0) if char.isascii() and char.isalnum() and rng.random() < 0.3 else char for char in text
    )
    text = "".join(char + rng.choice([""] * 3 + [" ", "　"] + ["，", "-", "_"] * (not char.isdigit())) for char in text)
    return rng.choice(["", "“", " ", "「", "\n"]) + text + rng.choice(["", "？", "?", "。", "！！", "…", "～"])


def near_duplicates(seed: int) -> dict[str, tuple[str, list[Record]]]:
    """300 questions, each about ten times: in all categories and several files, in variants, with
    several answers."""
    rng = random.Random(seed)
    questions = [f"question {word} 第{n}个{word}是什么" for n in range(150) for word in ("Apple", "苹果")]
    files: dict[str, tuple[str, list[Record]]] = {
        name: (category, [])
        for name, category in [
            ("g1.jsonl", "general"),
            ("g2.jsonl", "general"),
            ("k.jsonl", "knowledge"),
            ("m.jsonl", "math"),
            ("i.jsonl", "identity"),
            ("p.jsonl", "preference"),
            ("c.jsonl", "corpus"),
        ]
    }
    for number, question in enumerate(questions):
        for repeat in range(10):
            category, records = files[rng.choice(list(files))]
            asked = varied(question, rng)
            if category == "preference":
                records.append(pair(asked, rejected=f"坏{repeat}"))
            elif category == "corpus":
                records.append({"text": asked})
            else:
                group = {"group": varied(f"g:{number}", random.Random(0))} if number % 10 == 0 else {}
                split = {"split": "heldout"} if number % 25 == 3 and repeat == 5 else {}
                records.append(chat(asked, f"答{repeat}", **group, **split))
        later = chat("你好", number * "好")
        later["conversations"] += [
            {"role": "user", "content": varied(question, rng)},
            {"role": "assistant", "content": "答"},
        ]
        files["g1.jsonl"][1].append(later)
    return files


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_held_out_key_is_ever_on_the_training_side(tmp_path: Path, seed: int) -> None:
    targets = MixConfig(general=3000, knowledge=3000, math=300, identity=500, preference=3000)
    config = replace(targets, heldout_share=0.2, heldout_min=5, seed=seed)
    manifest = mixed(tmp_path, near_duplicates(seed), config)
    stages = ("pretrain", "sft", "dpo")
    chats = {record["origin"]: record for heldout in (False, True) for record in out(tmp_path, "sft", heldout)}
    sides = [  # in the pretraining set a chat is only a text, so its question is looked up by its origin
        {key_of(chats.get(record["origin"], record)) for stage in stages for record in out(tmp_path, stage, heldout)}
        for heldout in (False, True)
    ]
    assert len(sides[1]) > 20
    assert not sides[0] & sides[1]
    asked = [
        {
            bare(turn["content"])
            for record in out(tmp_path, "sft", heldout)
            for turn in turns(record)
            if turn["role"] == "user"
        }
        for heldout in (False, True)
    ]
    first_held = {bare(turns(record)[0]["content"]) for record in out(tmp_path, "sft", True)}
    assert not asked[0] & (first_held - {"你好"})
    assert all(entry["heldout"] > 0 for entry in manifest["categories"].values())
    assert sum(source["dropped"].get("asks a held-out question", 0) for source in manifest["sources"]) > 0


def test_a_held_out_key_is_in_one_half_and_the_halves_are_equal(tmp_path: Path) -> None:
    records = [chat(f"问{n}", f"答{again}") for n in range(2000) for again in range(2)]
    mixed(tmp_path, {"a.jsonl": ("general", records), "b.jsonl": ("preference", [pair(f"问{n}") for n in range(2000)])})
    halves: dict[str, set[str]] = {"validation": set(), "test": set()}
    for stage in ("sft", "dpo", "pretrain"):
        for record in out(tmp_path, stage, True):
            key = key_of(record) if stage != "pretrain" else bare(record["text"].split("\n")[0])
            halves[record["split"]].add(key)
    assert not halves["validation"] & halves["test"]
    assert len(halves["validation"]) == len(halves["test"]) == 50


@pytest.mark.parametrize(("num_keys", "heldout"), [(9, 0), (120, 12), (600, 50), (2000, 100), (50_000, 2000)])
def test_five_percent_are_held_out_within_bounds_but_never_above_a_tenth(num_keys: int, heldout: int) -> None:
    assert heldout_target(num_keys, MixConfig()) == heldout


def test_a_record_s_own_split_comes_first(tmp_path: Path) -> None:
    records = [chat(f"问{n}", split="train") for n in range(30)]
    records += [
        chat("甲", split="heldout"),
        chat("乙", split="validation"),
        chat("丙", split="test"),
        chat("甲！", "别的"),
    ]
    mixed(tmp_path, {"a.jsonl": ("general", records)}, MixConfig(general=30))
    heldout = {(turns(record)[0]["content"]): record["split"] for record in out(tmp_path, "sft", True)}
    assert heldout.keys() == {"甲", "甲！", "乙", "丙"}
    assert (heldout["乙"], heldout["丙"]) == ("validation", "test")
    assert heldout["甲"] == heldout["甲！"]
    assert len(out(tmp_path, "sft")) == 30


def test_declared_held_out_records_count_towards_the_share(tmp_path: Path) -> None:
    records = [chat(f"留{n}", split="heldout") for n in range(30)] + [chat(f"问{n}") for n in range(170)]
    mixed(tmp_path, {"a.jsonl": ("general", records)}, MixConfig(general=200, heldout_min=20))
    assert len(out(tmp_path, "sft", True)) == 30


@pytest.mark.parametrize("copies", [21, 300])
def test_no_question_asked_too_often_is_drawn(tmp_path: Path, copies: int) -> None:
    records = [chat("同一个问题", f"答{n}") for n in range(copies)] + [chat(f"问{n}") for n in range(1000 - copies)]
    for seed in range(3):
        mixed(tmp_path, {"a.jsonl": ("general", records)}, replace(OWN, seed=seed))
        asked = [turns(record)[0]["content"] for record in out(tmp_path, "sft", True)]
        assert len(asked) == 50 and "同一个问题" not in asked


def test_a_question_that_many_others_ask_on_the_way_is_not_drawn(tmp_path: Path) -> None:
    records = [chat(f"大家后来都会问到的问题{n}") for n in range(50)]
    records += [talk(f"开头{n}", f"大家后来都会问到的问题{n % 50}") for n in range(950)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, OWN)
    dropped = manifest["sources"][0]["dropped"].get("asks a held-out question", 0)
    assert manifest["categories"]["general"]["heldout"] + dropped <= 100


def test_a_mark_on_one_of_many_records_with_one_question_speaks_for_it_alone(tmp_path: Path) -> None:
    records = [chat("你好", f"答{n}", split="validation" if n == 0 else "") for n in range(100)]
    records += [chat(f"问{n}") for n in range(100)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, replace(OWN, heldout_share=0.0))
    assert len(out(tmp_path, "sft", True)) == 1
    noted(manifest, "99 records without a mark of their own stay")
