"""The set `lora_medical`: what to do about small everyday complaints, with a disclaimer."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.records.keys import normalised_question
from dataset.samples import frames
from dataset.samples.alternatives import wordings
from dataset.samples.tables import yaml_table

TABLE = Path(__file__).with_name("medical.yaml")
NUM_TYPED = {"training": 2, "validation": 3, "test": 5}
"""In how many ways a wording of each side is typed."""


def records() -> Iterator[dict[str, Any]]:
    """Chat records of the kind `medical`. Held-out ones have `split` and `cluster`."""
    table, rng = yaml_table(TABLE), random.Random(2407)
    asked: set[str] = set()
    for topic, row in table["topics"].items():
        answer = row["answer"] + table["disclaimer"]
        for side, count in NUM_TYPED.items():
            for wording in wordings(row[side]):
                for _ in range(count):
                    question = frames.framed(wording, rng, "ask")
                    plain = normalised_question(question)
                    if plain not in asked:
                        asked.add(plain)
                        yield _record(question, answer, topic, side, wording)


def _record(question: str, answer: str, topic: str, side: str, wording: str) -> dict[str, Any]:
    """One question with its answer."""
    record: dict[str, Any] = {
        "conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "category": "knowledge",
        "kind": "medical",
        "source": "lora_medical",
        "complaint": topic,
    }
    return record if side == "training" else {**record, "split": side, "cluster": wording}
