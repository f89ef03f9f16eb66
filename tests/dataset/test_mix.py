"""The mixture: what is held out, dropped, sampled and repeated, and that nothing held out is ever trained on."""

import errno
import json
import random
import re
import stat
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from configs.artifacts import sha256_file
from configs.paths import IDENTITY_MARK, IDENTITY_SAMPLE
from configs.schema import MixConfig, UserError
from dataset import mix
from dataset.mix import Source, Sources, build_mix, find_sources
from dataset.samples.files import SAMPLE_FILES
from dataset.samples.generators import generated
from dataset.samples.unknown import questions as unknown

Record = dict[str, Any]
SMALL = MixConfig(general=40, knowledge=40, math=40, identity=20, preference=20, heldout_min=2)
PATTERNS = {"identity*": "identity", "pretrain*": "corpus", "r1*": "skip", "dpo*": "preference", "sft*": "general"}


def chat(question: str, answer: str = "答", **fields: Any) -> Record:
    return {
        "conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **fields,
    }


def pair(question: str, chosen: str = "好", rejected: str = "坏", **fields: Any) -> Record:
    return {"prompt": question, "chosen": chosen, "rejected": rejected, **fields}


def write(path: Path, records: list[Record]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mixed(folder: Path, given: dict[str, tuple[str, list[Record]]], config: MixConfig = SMALL) -> dict[str, Any]:
    """Mix files `name: (category, records)` in a folder; the outputs lie in `folder/out`."""
    files = [Source(write(folder / name, records), category) for name, (category, records) in given.items()]
    return build_mix(Sources(files, {}), config, folder / "out")


def out(folder: Path, stage: str, heldout: bool = False) -> list[Record]:
    return read(folder / "out" / f"{stage}_chinese{'_heldout' if heldout else ''}.jsonl")


# --- counts -----------------------------------------------------------------------------------------------------


def test_too_few_records_are_repeated_in_whole_rounds_and_a_remainder_up_to_the_target(tmp_path: Path) -> None:
    manifest = mixed(tmp_path, {"a.jsonl": ("general", [chat(f"问{n}") for n in range(20)])})
    times = Counter(record["origin"] for record in out(tmp_path, "sft"))
    assert times.total() == 40
    assert set(times.values()) == {2, 3}
    assert manifest["sources"][0]["repetition"] == 2.2222
    assert len(out(tmp_path, "pretrain")) == len(times) == 18


def test_no_more_rounds_than_allowed_but_identity_follows_its_target(tmp_path: Path) -> None:
    config = MixConfig(general=40, identity=100, max_rounds=3, heldout_share=0.0)
    manifest = mixed(
        tmp_path,
        {
            "a.jsonl": ("general", [chat(f"问{n}") for n in range(5)]),
            "b.jsonl": ("identity", [chat("你是谁？"), chat("叫什么？")]),
        },
        config,
    )
    reached = {name: (tally["asked"], tally["reached"]) for name, tally in manifest["categories"].items()}
    assert reached == {"general": (40, 15), "identity": (100, 100)}


def test_each_identity_file_has_the_target_for_itself(tmp_path: Path) -> None:
    files = {f"{name}.jsonl": ("identity", [chat(f"{name}{n}") for n in range(9)]) for name in "ab"}
    mixed(tmp_path, files)
    assert Counter(record["source"] for record in out(tmp_path, "sft")) == {"a.jsonl": 20, "b.jsonl": 20}


def test_too_many_records_are_sampled_to_the_exact_target(tmp_path: Path) -> None:
    manifest = mixed(tmp_path, {"a.jsonl": ("general", [chat(f"问{n}") for n in range(200)])})
    assert len({record["origin"] for record in out(tmp_path, "sft")}) == len(out(tmp_path, "sft")) == 40
    assert len(out(tmp_path, "pretrain")) == 40
    source = manifest["sources"][0]
    assert source["kept"] == 40
    assert source["read"] == 200 == source["kept"] + source["heldout"] + source["dropped"]["not sampled"]


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


def test_all_raw_text_is_taken_unless_a_target_is_given(tmp_path: Path) -> None:
    files = {"a.jsonl": ("corpus", [{"text": f"第{n}段。"} for n in range(30)])}
    mixed(tmp_path, files)
    everything = len(out(tmp_path, "pretrain"))
    mixed(tmp_path, files, MixConfig(corpus=7, heldout_min=2))
    assert (everything, len(out(tmp_path, "pretrain"))) == (28, 7)


def test_every_category_goes_where_it_belongs(tmp_path: Path) -> None:
    files = {
        f"{category}.jsonl": (category, [chat(f"{category}{n}", id=n) for n in range(20)])
        for category in ("general", "knowledge", "math", "identity")
    }
    mixed(
        tmp_path,
        {
            **files,
            "preference.jsonl": ("preference", [pair(f"偏好{n}") for n in range(20)]),
            "corpus.jsonl": ("corpus", [{"text": f"语料{n}", "source": "书"} for n in range(20)]),
        },
    )
    chats = {"general", "knowledge", "math", "identity"}
    for heldout in (False, True):
        assert {record["category"] for record in out(tmp_path, "pretrain", heldout)} == chats | {"corpus"}
        assert {record["category"] for record in out(tmp_path, "sft", heldout)} == chats
        assert {record["category"] for record in out(tmp_path, "dpo", heldout)} == {"preference"}
    record = next(record for record in out(tmp_path, "sft") if record["category"] == "math")
    assert record == chat(f"math{record['id']}", id=record["id"]) | {
        "source": "math.jsonl",
        "category": "math",
        "origin": f"math.jsonl:{record['id'] + 1}",
    }
    assert {r["source"] for r in out(tmp_path, "pretrain") if r["category"] == "corpus"} == {"书"}
    assert "math1\n答" in {r["text"] for heldout in (False, True) for r in out(tmp_path, "pretrain", heldout)}


def test_a_chat_among_raw_text_becomes_text_and_keeps_its_key(tmp_path: Path) -> None:
    files = {
        "a.jsonl": ("general", [chat("问", "甲", split="heldout"), chat("别的")]),
        "b.jsonl": ("corpus", [chat("问？", "乙"), chat("还有", "丙")]),
    }
    mixed(tmp_path, files, MixConfig(heldout_share=0.0, general=1))
    texts = {heldout: {record["text"] for record in out(tmp_path, "pretrain", heldout)} for heldout in (False, True)}
    assert texts == {False: {"别的\n答", "还有\n丙"}, True: {"问\n甲", "问？\n乙"}}
    assert len(out(tmp_path, "sft")) == 1


def test_one_seed_gives_one_mix_and_another_seed_another(tmp_path: Path) -> None:
    files = {"a.jsonl": ("general", [chat(f"问{n}") for n in range(200)])}
    first, again = mixed(tmp_path, files), mixed(tmp_path, files)
    other = mixed(tmp_path, files, MixConfig(general=40, heldout_min=2, seed=1))
    assert first == again
    assert first["outputs"]["sft_chinese.jsonl"] != other["outputs"]["sft_chinese.jsonl"]


def test_the_order_is_random_and_the_same_records_survive_many_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.jsonl": ("corpus", [{"text": f"第{n}段。"} for n in range(400)])}
    mixed(tmp_path, files)
    one = [record["origin"] for record in out(tmp_path, "pretrain")]
    monkeypatch.setattr(mix, "BUCKET_BYTES", 4000)
    mixed(tmp_path, files)
    many = [record["origin"] for record in out(tmp_path, "pretrain")]
    assert sorted(one) == sorted(many)
    assert many not in (one, sorted(one))
    position = [int(origin.split(":")[1]) for origin in many]
    assert abs(np.corrcoef(position, range(len(position)))[0, 1]) < 0.2


# --- held out -----------------------------------------------------------------------------------------------------


def bare(text: str) -> str:
    """An independent reading of "case, spacing and punctuation do not count"."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", text).lower())


def key_of(record: Record) -> str:
    if "group" in record:
        return "group:" + re.sub(r"[\W_]+", " ", record["group"].lower()).strip()
    turns = record.get("conversations") or record.get("chosen")
    said = [bare(turn["content"]) for turn in turns or [] if turn["role"] == "user"]
    if said[:1] == ["你好"]:  # an opening that too many share: all that the user says is the key
        return "|".join(said)
    return said[0] if said else bare(record["text"])


def varied(text: str, rng: random.Random) -> str:
    """The same question, as other people type it."""
    text = "".join(char.upper() if rng.random() < 0.5 else char for char in text)
    text = "".join(
        chr(ord(char) + 0xFEE0) if char.isascii() and char.isalnum() and rng.random() < 0.3 else char for char in text
    )
    text = "".join(char + rng.choice([""] * 3 + [" ", "　"] + ["，", "-", "_"] * (not char.isdigit())) for char in text)
    return rng.choice(["", "“", " ", "「", "\n"]) + text + rng.choice(["", "？", "?", "。", "！！", "…", "～"])


def near_duplicates(seed: int) -> dict[str, tuple[str, list[Record]]]:
    """Each of 300 questions some ten times: in all categories and several files, in variants, with several answers."""
    rng = random.Random(seed)
    questions = [f"question {word} 第{n}个{word}是什么" for n in range(150) for word in ("Apple", "苹果")]
    files: dict[str, tuple[str, list[Record]]] = {
        name: (category, [])
        for name, category in [
            ("g1.jsonl", "general"), ("g2.jsonl", "general"), ("k.jsonl", "knowledge"), ("m.jsonl", "math"),
            ("i.jsonl", "identity"), ("p.jsonl", "preference"), ("c.jsonl", "corpus"),
        ]
    }  # fmt: skip
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
    sides = [  # the text of a chat in the pretraining set has no question of its own: its chat is found by its origin
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


def turns(record: Record) -> list[Record]:
    conversation: list[Record] = record["conversations"]
    return conversation


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
    assert mix._heldout_target(num_keys, MixConfig()) == heldout


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


def test_a_group_keeps_all_its_records_on_one_side(tmp_path: Path) -> None:
    records = [
        chat(f"{a}加{b}？问法{way}", group=f"sum:{a},{b}") for a in range(12) for b in range(12) for way in range(3)
    ]
    mixed(tmp_path, {"a.jsonl": ("math", records)}, MixConfig(math=1000, heldout_min=20))
    groups = [{record["group"] for record in out(tmp_path, "sft", heldout)} for heldout in (False, True)]
    assert not groups[0] & groups[1]
    assert [len(side) for side in groups] == [136, 8]  # 22 of 432 records, in groups of 3


def talk(*questions: str, **fields: Any) -> Record:
    messages = []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": "答"}]
    return {"conversations": messages, **fields}


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


# --- the held-out side of a user's own data ------------------------------------------------------------------------


def noted(manifest: dict[str, Any], words: str) -> str:
    """The one note that holds these words."""
    (note,) = [note for note in manifest["notes"] if words in note]
    return str(note)


OWN = MixConfig(general=5000, knowledge=5000, preference=5000)


def test_one_opening_shared_by_most_conversations_takes_no_more_than_five_percent_with_it(tmp_path: Path) -> None:
    records = [talk(["在吗", "你好", "您好"][n % 3], f"订单{n}号到哪了") for n in range(920)]
    records += [talk(f"第{n}件事", f"订单{n}号呢") for n in range(80)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, OWN)
    heldout = out(tmp_path, "sft", True)
    assert len(heldout) == 50
    assert len(out(tmp_path, "sft")) == 5000 and manifest["categories"]["general"]["available"] == 950
    assert sum(turns(record)[0]["content"] in {"在吗", "你好", "您好"} for record in heldout) > 40
    noted(manifest, "920 conversations open with a turn")


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


def test_a_mark_on_one_of_many_records_with_one_question_speaks_for_it_alone(tmp_path: Path) -> None:
    records = [chat("你好", f"答{n}", split="validation" if n == 0 else "") for n in range(100)]
    records += [chat(f"问{n}") for n in range(100)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, replace(OWN, heldout_share=0.0))
    assert len(out(tmp_path, "sft", True)) == 1
    noted(manifest, "99 records without a mark of their own stay")


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


@pytest.mark.parametrize("split", ["test_sft", "Test", ["test"], {"test": 1}, 3, True])
def test_a_split_that_is_none_of_ours_decides_nothing_and_a_line_says_so(tmp_path: Path, split: Any) -> None:
    records = [chat(f"问{n}", split=split, kind=["a"], label=3, category={"a": 1}) for n in range(200)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records)}, OWN)
    assert {record["split"] for record in out(tmp_path, "sft", True)} == {"validation", "test"}
    assert manifest["categories"]["general"]["available"] == 180
    noted(manifest, "`split` of 200 records is none of ours")


def test_bundled_samples_keep_their_groups_and_marks_however_large(tmp_path: Path) -> None:
    records = [chat(f"问{n}", group="g", split="test") for n in range(50)] + [chat(f"学{n}") for n in range(50)]
    path = write(tmp_path / "s.jsonl", records)
    config = replace(OWN, heldout_share=0.0)
    manifest = build_mix(Sources([Source(path, "general", is_sample=True)], {}), config, tmp_path / "out")
    assert (manifest["categories"]["general"]["heldout"], manifest["notes"]) == (50, [])


# --- bad input ----------------------------------------------------------------------------------------------------


def test_bad_lines_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(f"问{n}") for n in range(100)])
    with path.open("ab") as file:
        file.write(b'{"conversations": [\n{"conversations": []}\n{"text": "\xff' + b"x" * 500 + b'"}\n')
    manifest = build_mix(Sources([Source(path, "general")], {}), SMALL, tmp_path / "out")
    rejects = read(tmp_path / "out" / "rejects.jsonl")
    assert [(r["file"], r["line"], r["reason"]) for r in rejects] == [
        ("a.jsonl", 101, "malformed JSON"),
        ("a.jsonl", 102, "empty conversation"),
        ("a.jsonl", 103, "invalid UTF-8"),
    ]
    assert rejects[1]["text"] == '{"conversations": []}'
    assert max(len(r["text"]) for r in rejects) == 200
    source = manifest["sources"][0]
    assert source["read"] == 103 == source["kept"] + source["heldout"] + sum(source["dropped"].values())


@pytest.mark.parametrize(
    ("good", "bad", "stops"), [(100, 3, False), (10, 3, False), (100, 5, False), (50, 4, True), (0, 1, True)]
)
def test_more_than_5_percent_and_3_bad_lines_stop_the_mix(tmp_path: Path, good: int, bad: int, stops: bool) -> None:
    records = [chat(f"问{n}") for n in range(good)] + [{"conversations": []}] * bad
    if not stops:
        mixed(tmp_path, {"a.jsonl": ("general", records)})
        return
    mixed(tmp_path, {"b.jsonl": ("general", [chat("问")])})
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "rejects.jsonl"}
    with pytest.raises(UserError, match=r"a\.jsonl: .*empty conversation"):
        mixed(tmp_path, {"a.jsonl": ("general", records)})
    assert len(read(tmp_path / "out" / "rejects.jsonl")) == bad
    assert before == {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "rejects.jsonl"
    }


def test_answers_marked_as_bad_are_left_out_by_name_and_stop_nothing(tmp_path: Path) -> None:
    records = [chat(f"问{n}", "好" if n % 2 else "滚开", label=bool(n % 2)) for n in range(40)]
    manifest = mixed(tmp_path, {"sft_kto.jsonl": ("general", records)})
    assert manifest["sources"][0]["dropped"]["label is false: an answer marked as bad"] == 20
    assert len(read(tmp_path / "out" / "rejects.jsonl")) == 20
    for stage in ("sft", "pretrain"):
        for heldout in (False, True):
            assert "滚开" not in json.dumps(out(tmp_path, stage, heldout), ensure_ascii=False)


def test_a_file_of_bad_answers_alone_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"every record says that it is not to be learnt \(label is false"):
        mixed(tmp_path, {"a.jsonl": ("general", [chat(f"问{n}", label=False) for n in range(9)])})


def test_turns_not_to_be_learnt_keep_their_mark_and_never_become_text(tmp_path: Path) -> None:
    def corrected(n: int) -> Record:
        right = chat(f"不对{n}", "对的")["conversations"]
        wrong = [{"role": "user", "content": f"问{n}"}, {"role": "assistant", "content": "错的", "weight": 0}]
        return {"messages": [*wrong, *right]}

    mixed(tmp_path, {"a.jsonl": ("general", [corrected(n) for n in range(20)])})
    assert all(record["conversations"][1]["loss"] is False for record in out(tmp_path, "sft"))
    assert all("错的" not in record["text"] for record in out(tmp_path, "pretrain"))


def test_marks_of_other_formats_are_counted(tmp_path: Path) -> None:
    texts = [{"text": f"<|im_start|>问{n}？答。<|im_end|> <|im_start|>又问？<|im_end|>"} for n in range(30)]
    manifest = mixed(tmp_path, {"pretrain_hq.jsonl": ("corpus", texts), "b.jsonl": ("corpus", [{"text": "一段话。"}])})
    assert [source["foreign_marks"] for source in manifest["sources"]] == [
        {"records": 30, "marks": 120},
        {"records": 0, "marks": 0},
    ]
    assert "<|im_" not in json.dumps(out(tmp_path, "pretrain"))


ODD_NAMES = [
    "a: b.jsonl", "#1.jsonl", "x #y.jsonl", "it's.jsonl", 'say "hi".jsonl', "- a.jsonl", "[1].jsonl", "a[1].jsonl", "*.jsonl",
    "数据：一.jsonl", "{a}.jsonl", "&a.jsonl", "!a.jsonl", "%a.jsonl", "`a.jsonl", " a.jsonl", "a?.jsonl",
    "a\\b.jsonl", "a: b: c.csv", "plain.jsonl", "x" * 200 + ".jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_suggested_line_is_yaml_and_places_that_file_alone(tmp_path: Path, bundled: Path, name: str) -> None:
    path = write(bundled / name, [chat("问")])
    with pytest.raises(UserError, match="its name tells no category") as raised:
        find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)
    line = str(raised.value).split("Add the line `  ")[1].split("` (or")[0]
    block = yaml.safe_load(f"files:\n  {line}\n  z*: math\n")["files"]
    assert list(block.values()) == ["general", "math"]
    write(bundled / "other_a1.jsonl", [chat("问")])
    with pytest.raises(UserError, match=r"other_a1\.jsonl: its name tells no category"):
        find_sources(bundled, tmp_path / "samples", SMALL, {**block, **PATTERNS})
    (bundled / "other_a1.jsonl").unlink()
    sources = find_sources(bundled, tmp_path / "samples", SMALL, {**block, **PATTERNS})
    assert Source(path, "general") in sources.files


@pytest.mark.parametrize(
    ("category", "records", "right"),
    [
        ("preference", [chat(f"问{n}") for n in range(9)], "general"),
        ("preference", [{"text": f"文{n}"} for n in range(9)], "corpus"),
        ("general", [{"text": f"文{n}"} for n in range(9)], "corpus"),
        ("math", [pair(f"问{n}") for n in range(9)], "preference"),
    ],
)
def test_a_file_in_the_wrong_category_is_named_with_the_line_to_write(
    tmp_path: Path, category: str, records: list[Record], right: str
) -> None:
    with pytest.raises(UserError, match=rf"first: line 1\).*Put the line `  x\.jsonl: {right}` first under `files:`"):
        mixed(tmp_path, {"x.jsonl": (category, records)})


@pytest.mark.parametrize(
    ("record", "advice"),
    [
        (
            {"messages": [{"role": "旁白", "content": "x"}]},
            "unknown role: 旁白: 9; first: line 1.*Name the speakers system, user",
        ),
        ({"foo": "x", "bar": 1}, "unknown shape: fields foo, bar: 9.*docs/formats.md lists the fields"),
        ({"title": "x", "paragraphs": []}, "SQuAD's nested paragraphs.*its own line"),
        ({"question": "问", "options": ["一", "二"], "answer": "E"}, "It needs a question, options"),
        ({"conversations": [{"role": "user", "content": "问"}]}, "must end with what the assistant says"),
        ({"instruction": "问", "output": "答", "images": ["a.png"]}, "images: the record needs more than its text"),
    ],
)
def test_advice_fits_the_reason(tmp_path: Path, record: Record, advice: str) -> None:
    with pytest.raises(UserError, match=f"no readable record.*{advice}") as raised:
        mixed(tmp_path, {"a.jsonl": ("general", [record] * 9)})
    assert "one JSON record a line" not in str(raised.value)
    assert raised.value.chinese.startswith("9 条记录不可用：")


def test_reasons_that_name_something_do_not_fill_the_manifest(tmp_path: Path) -> None:
    odd = [{"messages": [{"role": f"角色{n}", "content": "x"}]} for n in range(100)]
    records = [chat(f"问{n}") for n in range(3000)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records + odd)}, MixConfig(general=5000, heldout_share=0.0))
    dropped = manifest["sources"][0]["dropped"]
    assert len(dropped) == mix.MAX_REASONS + 1
    assert dropped["unknown role"] == 50


def test_a_file_read_in_another_format_is_named(tmp_path: Path) -> None:
    records = json.dumps([chat(f"请介绍第{n}号公园") for n in range(30)], ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(records.encode("gb18030"))
    manifest = build_mix(Sources([Source(tmp_path / "a.json", "general")], {}), SMALL, tmp_path / "out")
    source = manifest["sources"][0]
    assert (source["read"], source["format"]) == (30, "GB18030 (GBK), a JSON array")
    assert out(tmp_path, "sft")[0]["conversations"][0]["content"].startswith("请介绍第")


def test_a_user_s_columns_that_bear_our_names_decide_nothing(tmp_path: Path) -> None:
    columns = {"kind": "NLI", "split": "train_sft", "label": 0, "category": "Brainstorming", "group": 7}
    records = [chat(f"问{n}") for n in range(60)]
    mixed(tmp_path, {"a.jsonl": ("general", records)})
    plain = [record["conversations"] for record in out(tmp_path, "sft", heldout=True)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", [{**columns, **record} for record in records])})
    assert [record["conversations"] for record in out(tmp_path, "sft", heldout=True)] == plain
    assert manifest["sources"][0]["dropped"].keys() <= {"not sampled"}
    assert {record["category"] for record in out(tmp_path, "sft")} == {"general"}


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl: is empty"):
        mixed(tmp_path, {"a.jsonl": ("general", [])})


def test_a_valid_line_of_10_mb_is_accepted(tmp_path: Path) -> None:
    mixed(tmp_path, {"a.jsonl": ("corpus", [{"text": "长" * 3_400_000}, {"text": "短"}])})
    assert sorted(len(record["text"]) for record in out(tmp_path, "pretrain")) == [1, 3_400_000]


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("io.FileIO", refuse)
    with pytest.raises(UserError, match=r"a.jsonl: can't be read \(Permission denied\)"):
        mixed(tmp_path, {"a.jsonl": ("general", [chat("问")])})


def test_a_source_that_changes_between_the_passes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(*arguments: Any) -> mix.Choice:
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write('{"text": "新"}\n')
        return choose(*arguments)

    choose = mix.choose
    monkeypatch.setattr(mix, "choose", change)
    with pytest.raises(UserError, match=r"a\.jsonl: changed while it was read"):
        mixed(tmp_path, {"a.jsonl": ("corpus", [{"text": f"{n}"} for n in range(9)])})
    assert not (tmp_path / "out" / "pretrain_chinese.jsonl").exists()


def test_a_full_disk_leaves_the_older_mix_whole_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lines: mix.ShuffledLines, line: bytes, copies: int = 1) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    mixed(tmp_path, {"a.jsonl": ("general", [chat("问")])})
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(mix.ShuffledLines, "add", refuse)
    with pytest.raises(UserError, match=r"out: can't be written \(No space left on device\)"):
        mixed(tmp_path, {"a.jsonl": ("general", [chat("新")])})
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_of_equal_records_the_held_out_one_stays(tmp_path: Path) -> None:
    files = {
        "a.jsonl": ("general", [chat("问"), chat("别的")]),
        "b.jsonl": ("knowledge", [chat("问", group="g", split="heldout"), chat("还有")]),
    }
    mixed(tmp_path, files, MixConfig(heldout_share=0.0))
    assert [record["origin"] for record in out(tmp_path, "sft", True)] == ["b.jsonl:1"]
    assert {record["origin"] for record in out(tmp_path, "sft")} == {"a.jsonl:2", "b.jsonl:2"}


def test_a_second_mix_in_the_same_folder_is_refused_and_leftovers_are_removed(tmp_path: Path) -> None:
    files = {"a.jsonl": ("corpus", [{"text": f"{n}"} for n in range(9)])}
    with mix.output_lock(tmp_path / "out"), pytest.raises(UserError, match="another mix is writing there"):
        mixed(tmp_path, files)
    leftover = tmp_path / "out" / ".pretrain_chinese.jsonl.abc.tmp"
    leftover.write_text("half")
    mixed(tmp_path, files)
    assert not leftover.exists()


# --- manifest -----------------------------------------------------------------------------------------------------


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


# --- sources ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tiny stand-in for the bundled samples."""

    def write_samples(folder: Path, categories: set[str]) -> dict[str, Path]:
        folder.mkdir(exist_ok=True)
        made = {
            "general": [chat(f"聊{n}") for n in range(19)],
            "knowledge": [chat(f"知{n}") for n in range(99)],
            "math": [chat(f"算{n}") for n in range(100)],
            "preference": [pair(f"选{n}") for n in range(100)],
            "corpus": [{"text": f"我叫{{{{name}}}}，第{n}段。"} for n in range(10)],
            **REFUSALS,
        }
        return {name: write(folder / f"{name}_cn_sample.jsonl", made[name]) for name in made if name in categories}

    monkeypatch.setattr(mix, "write_samples", write_samples)
    folder = tmp_path / "sources"
    folder.mkdir()
    return folder


def test_samples_stand_in_for_each_category_without_a_file(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "sft_mini_512.jsonl", [chat("问")])
    write(bundled / "r1_mix_1024.jsonl", [chat("问")])
    (bundled / "README.md").write_text("readme")
    sources = find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)
    assert [(source.path.name, source.category, source.is_sample) for source in sources.files] == [
        ("limits_cn_sample.jsonl", "general", True),
        ("sft_mini_512.jsonl", "general", False),
        ("knowledge_cn_sample.jsonl", "knowledge", True),
        ("math_cn_sample.jsonl", "math", True),
        ("identity_conversations.jsonl", "identity", True),
        ("preference_cn_sample.jsonl", "preference", True),
        ("corpus_cn_sample.jsonl", "corpus", True),
    ]
    assert sources.left_out.keys() == {"README.md", "r1_mix_1024.jsonl"}


REFUSALS = {"unknown": [chat("深海有多深？", "这个我不知道。")], "limits": [chat("现在几点了？", "我看不到时钟。")]}


@pytest.mark.parametrize(
    ("own", "there"),
    [
        ([], {"unknown", "limits"}),
        (["knowledge_mine.jsonl"], {"limits"}),
        (["sft_mine.jsonl"], {"limits"}),
        (["math_mine.jsonl", "dpo_mine.jsonl", "pretrain_mine.jsonl"], {"unknown", "limits"}),
    ],
)
def test_not_knowing_goes_when_the_user_brings_knowledge_but_limits_of_any_model_stay(
    tmp_path: Path, bundled: Path, own: list[str], there: set[str]
) -> None:
    for name in own:
        records = [pair("问")] if name.startswith("dpo") else [chat(f"{name}{n}") for n in range(20)]
        write(bundled / name, records)
    patterns = {**PATTERNS, "knowledge*": "knowledge", "math*": "math"}
    sources = find_sources(bundled, tmp_path / "samples", SMALL, patterns)
    assert {source.path.name.split("_")[0] for source in sources.files} & REFUSALS.keys() == there
    build_mix(sources, replace(SMALL, general=80, knowledge=800, heldout_share=0.0), tmp_path / "out")
    answers = {record["conversations"][-1]["content"] for record in out(tmp_path, "sft")}
    for name, (record,) in REFUSALS.items():
        assert (record["conversations"][-1]["content"] in answers) == (name in there)


def test_no_conversation_of_other_samples_says_that_the_model_does_not_know() -> None:
    """Else a user's own knowledge would meet refusals in the bundled talk."""
    lines = set(unknown.ANSWERS.values()) - {unknown.ANSWERS["task"]}  # which tells what a model so small can do
    for generator in (*SAMPLE_FILES["general"].generators, "knowledge.questions"):
        for record in generated(generator):
            said = {turn["content"] for turn in record["conversations"] if turn["role"] == "assistant"}
            assert not said & lines, record


def test_a_target_of_0_leaves_a_category_out(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "sft_mini_512.jsonl", [chat("问")])
    sources = find_sources(bundled, tmp_path / "samples", MixConfig(general=0, math=0), PATTERNS)
    assert {source.category for source in sources.files} == {"knowledge", "identity", "preference", "corpus"}
    assert sources.left_out == {"sft_mini_512.jsonl": "the target of general is 0"}


def test_samples_alone_shrink_all_targets_by_one_factor_but_none_below_what_there_is(
    tmp_path: Path, bundled: Path
) -> None:
    config = MixConfig(general=800, knowledge=1000, math=100, identity=300, preference=200, heldout_min=2, max_rounds=5)
    sources = find_sources(bundled, tmp_path / "samples", config, PATTERNS)
    manifest = build_mix(sources, config, tmp_path / "out")
    factor = 18 * 5 / 800  # 18 of the 20 general samples are trained on
    assert manifest["sample_factor"] == factor
    reached = {name: tally["reached"] for name, tally in manifest["categories"].items()}
    assert reached == {"general": 90, "knowledge": 112, "math": 95, "identity": 300, "preference": 95, "corpus": 9}
    config = replace(config, knowledge=4000, identity=100)
    tallies = build_mix(sources, config, tmp_path / "out")["categories"]
    assert tallies["knowledge"]["reached"] == 4000 * factor  # more than there is: rounds
    assert tallies["identity"]["reached"] == 100  # fewer than there is, as asked for


XIAOZHI = [
    chat(f"{asked}（{n}）", "我是小智，由星河实验室训练的助手。")
    for n in range(30)
    for asked in ("你是谁？", "谁开发了你？")
]


@pytest.mark.parametrize("name", ["identity_mine.jsonl", "identity_conversations.jsonl"])
def test_a_user_s_identity_file_replaces_the_bundled_one_and_is_held_out_from(
    tmp_path: Path, bundled: Path, name: str
) -> None:
    find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)  # lays the bundled file there
    write(bundled / name, XIAOZHI)
    sources = find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)
    assert [s.path.name for s in sources.files if s.category == "identity"] == [name]
    assert ("identity_conversations.jsonl" in sources.left_out) == (name != "identity_conversations.jsonl")
    manifest = build_mix(sources, SMALL, tmp_path / "out")
    assert manifest["categories"]["identity"]["heldout"] == 3
    answers = [
        record["conversations"][-1]["content"] for record in out(tmp_path, "sft") if record["category"] == "identity"
    ]
    assert set(answers) == {"我是小智，由星河实验室训练的助手。"}
    (bundled / "identity_conversations.jsonl").unlink()
    if name != "identity_conversations.jsonl":
        find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)
        assert not (bundled / "identity_conversations.jsonl").exists()


def test_the_name_in_a_user_s_identity_file_fills_the_samples_and_the_manifest(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "identity_mine.jsonl", XIAOZHI)
    manifest = build_mix(find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS), SMALL, tmp_path / "out")
    assert manifest["identity"] == {"own": True, "name": "小智", "author": "星河实验室"}
    assert manifest["settings"]["name"] == "小智"
    assert any("call the model 小智 and its maker 星河实验室" in note for note in manifest["notes"])
    texts = [record["text"] for record in out(tmp_path, "pretrain") if record["category"] == "corpus"]
    assert texts and all("我叫小智" in text for text in texts)


@pytest.mark.parametrize(
    ("answer", "identity"),
    [
        ("我叫{{name}}，是{{author}}做的。", {"own": True, "name": "MiniLLM", "author": "MiniLLM团队"}),
        ("我是一个人工智能助手。", {"own": True, "name": None, "author": None}),
        ("你可以叫我阿星。", {"own": True, "name": "阿星", "author": None}),
        ("I'm Nova, built by Galaxy Lab.", {"own": True, "name": "Nova", "author": "Galaxy Lab"}),
        (None, {"own": False, "name": "MiniLLM", "author": "MiniLLM团队"}),
    ],
)
def test_the_manifest_says_whose_identity_it_is_and_what_it_calls_the_model(
    tmp_path: Path, bundled: Path, answer: str | None, identity: dict[str, Any]
) -> None:
    if answer:
        write(bundled / "identity_mine.jsonl", [chat(f"你是谁{n}", answer) for n in range(20)])
    manifest = build_mix(find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS), SMALL, tmp_path / "out")
    assert manifest["identity"] == identity
    warned = [note for note in manifest["notes"] if "don't say what the model is called" in note]
    assert bool(warned) == (identity["name"] is None)


@pytest.mark.parametrize("own", ["identity_mine.jsonl", "math_mine.jsonl", "sft_mine.jsonl"])
def test_one_small_file_changes_nothing_about_the_repetition_of_other_categories(
    tmp_path: Path, bundled: Path, own: str
) -> None:
    config = MixConfig(
        general=800, knowledge=4000, math=100, identity=300, preference=900, heldout_share=0.0, max_rounds=5
    )
    patterns = {**PATTERNS, "math*": "math"}

    def repetitions() -> dict[str, float]:
        sources = find_sources(bundled, tmp_path / "samples", config, patterns)
        return {name: t["repetition"] for name, t in build_mix(sources, config, tmp_path / "out")["categories"].items()}

    alone = repetitions()
    write(bundled / own, XIAOZHI[:10])
    beside = repetitions()
    mine = {"identity": "identity", "math": "math", "sft": "general"}[own.split("_")[0]]
    assert {name: value for name, value in alone.items() if name != mine} == pytest.approx(
        {name: value for name, value in beside.items() if name != mine}, rel=0.02
    )


@pytest.mark.parametrize(
    ("mine", "target", "taken"), [(40, 100, 40), (40, 41, 37), (40, 20, 18), (95, 100, 90), (200, 100, 90)]
)
def test_bundled_samples_of_a_category_do_not_push_out_the_user_s_records(
    tmp_path: Path, mine: int, target: int, taken: int
) -> None:
    own = write(tmp_path / "a.jsonl", [chat(f"我{n}") for n in range(mine)])
    sample = write(tmp_path / "limits.jsonl", [chat(f"限{n}") for n in range(500)])
    config = MixConfig(general=target, heldout_share=0.0)
    build_mix(
        Sources([Source(own, "general"), Source(sample, "general", is_sample=True)], {}), config, tmp_path / "out"
    )
    assert Counter(record["source"] for record in out(tmp_path, "sft")) == {
        "a.jsonl": taken,
        "limits.jsonl": target - taken,
    }


def test_a_category_with_files_of_the_user_s_keeps_its_target(tmp_path: Path, bundled: Path) -> None:
    config = replace(SMALL, general=100, knowledge=4000, max_rounds=8)
    write(bundled / "sft_mini_512.jsonl", [chat(f"问{n}") for n in range(60)])
    manifest = build_mix(find_sources(bundled, tmp_path / "samples", config, PATTERNS), config, tmp_path / "out")
    assert manifest["sample_factor"] < 1.0
    assert manifest["categories"]["general"]["asked"] == manifest["categories"]["general"]["reached"] == 100


def test_the_identity_file_is_created_renewed_while_unedited_and_then_left_alone(tmp_path: Path, bundled: Path) -> None:
    def identity() -> Source:
        files = find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS).files
        return next(source for source in files if source.category == "identity")

    path = bundled / "identity_conversations.jsonl"
    assert identity() == Source(path, "identity", is_sample=True)
    assert path.read_bytes() == IDENTITY_SAMPLE.read_bytes()
    older = b'{"text": "an older sample"}\n'
    path.write_bytes(older)
    (bundled / IDENTITY_MARK).write_text(sha256_file(path))
    assert identity().is_sample
    assert path.read_bytes() == IDENTITY_SAMPLE.read_bytes()
    path.write_bytes(older + b"edited")
    assert identity() == Source(path, "identity", is_sample=False)
    assert path.read_bytes() == older + b"edited"


def test_a_read_only_source_folder_uses_the_bundled_identity_file(
    tmp_path: Path, bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    files = find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS).files
    assert Source(IDENTITY_SAMPLE, "identity", is_sample=True) in files
    assert not any(bundled.iterdir())


def test_a_file_that_nobody_can_place_is_named_with_the_line_to_add(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "secret.jsonl", [chat("问")])
    with pytest.raises(UserError, match=r"secret\.jsonl: .*`  secret\.jsonl: general`.*mixture\.yaml"):
        find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)


def test_a_pattern_with_an_unknown_category_is_named(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "sft.jsonl", [chat("问")])
    with pytest.raises(UserError, match="sft\\*: chats: no such category"):
        find_sources(bundled, tmp_path / "samples", SMALL, {"sft*": "chats"})


def test_placeholders_are_filled_in_identity_files_and_samples_alone(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "sft.jsonl", [chat("模板", "{{name}}")])
    config = MixConfig(general=5, identity=50, name="小灵", author="小组", heldout_share=0.0)
    build_mix(find_sources(bundled, tmp_path / "samples", config, PATTERNS), config, tmp_path / "out")
    texts = {"general": "", "identity": "", "corpus": ""}
    for record in out(tmp_path, "pretrain"):
        if record["category"] in texts:
            texts[record["category"]] += record["text"]
    assert "{{" not in texts["identity"] + texts["corpus"]
    assert "小灵" in texts["identity"] and "小组" in texts["identity"] and "我叫小灵" in texts["corpus"]
    assert "{{name}}" in texts["general"]


def test_outputs_are_ordinary_files_for_their_readers(tmp_path: Path) -> None:
    mixed(tmp_path, {"a.jsonl": ("general", [chat("问")])})
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o600 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o600}
