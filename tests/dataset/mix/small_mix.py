"""Small mixes for the tests: records, settings, and functions that read what was written."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from configs.schema import MixConfig
from dataset.mix.build import build_mix
from dataset.mix.sources import Source, Sources

Record = dict[str, Any]
SMALL = MixConfig(general=40, knowledge=40, math=40, identity=20, preference=20, heldout_min=2)
OWN = MixConfig(general=5000, knowledge=5000, preference=5000)
PATTERNS = {"identity*": "identity", "pretrain*": "corpus", "r1*": "skip", "dpo*": "preference", "sft*": "general"}


def chat(question: str, answer: str = "答", **fields: Any) -> Record:
    return {
        "conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **fields,
    }


def pair(question: str, chosen: str = "好", rejected: str = "坏", **fields: Any) -> Record:
    return {"prompt": question, "chosen": chosen, "rejected": rejected, **fields}


def talk(*questions: str, **fields: Any) -> Record:
    messages = []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": "答"}]
    return {"conversations": messages, **fields}


def turns(record: Record) -> list[Record]:
    conversation: list[Record] = record["conversations"]
    return conversation


def bare(text: str) -> str:
    """A text without case, spacing and punctuation, written independently of the product."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", text).lower())


def key_of(record: Record) -> str:
    if "group" in record:
        return "group:" + re.sub(r"[\W_]+", " ", record["group"].lower()).strip()
    turns = record.get("conversations") or record.get("chosen")
    said = [bare(turn["content"]) for turn in turns or [] if turn["role"] == "user"]
    if said[:1] == ["你好"]:  # too many share this opening, so all that the user says is the key
        return "|".join(said)
    return said[0] if said else bare(record["text"])


def write(path: Path, records: list[Record]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mixed(folder: Path, given: dict[str, tuple[str, list[Record]]], config: MixConfig = SMALL) -> dict[str, Any]:
    """Mix files, given as `name: (category, records)`, in a folder. Outputs are in `folder/out`."""
    files = [Source(write(folder / name, records), category) for name, (category, records) in given.items()]
    return build_mix(Sources(files, {}), config, folder / "out")


def out(folder: Path, stage: str, heldout: bool = False) -> list[Record]:
    return read(folder / "out" / f"{stage}_chinese{'_heldout' if heldout else ''}.jsonl")


def noted(manifest: dict[str, Any], words: str) -> str:
    """The only note that contains these words."""
    (note,) = [note for note in manifest["notes"] if words in note]
    return str(note)


REFUSALS = {"unknown": [chat("深海有多深？", "这个我不知道。")], "limits": [chat("现在几点了？", "我看不到时钟。")]}
XIAOZHI = [
    chat(f"{asked}（{n}）", "我是小智，由星河实验室训练的助手。")
    for n in range(30)
    for asked in ("你是谁？", "谁开发了你？")
]
