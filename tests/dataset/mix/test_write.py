"""The second pass: which records are written, to which files, in which order."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from configs.schema import MixConfig
from dataset.mix import write as writing
from tests.dataset.mix.small_mix import Record, chat, mixed, out, pair


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


def test_the_order_is_random_and_the_same_records_survive_many_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.jsonl": ("corpus", [{"text": f"第{n}段。"} for n in range(400)])}
    mixed(tmp_path, files)
    one = [record["origin"] for record in out(tmp_path, "pretrain")]
    monkeypatch.setattr(writing, "BUCKET_BYTES", 4000)
    mixed(tmp_path, files)
    many = [record["origin"] for record in out(tmp_path, "pretrain")]
    assert sorted(one) == sorted(many)
    assert many not in (one, sorted(one))
    position = [int(origin.split(":")[1]) for origin in many]
    assert abs(np.corrcoef(position, range(len(position)))[0, 1]) < 0.2


def test_turns_without_targets_keep_their_mark_and_never_become_text(tmp_path: Path) -> None:
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


def test_outputs_are_ordinary_files_for_their_readers(tmp_path: Path) -> None:
    mixed(tmp_path, {"a.jsonl": ("general", [chat("问")])})
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o600 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o600}
