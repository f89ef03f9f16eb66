"""Sample conversations in which the model tells its name and its maker.

    python -m dataset.samples.identity        # writes dataset/identity_cn_sample.jsonl anew

{{name}} and {{author}} are filled in when the data is mixed. Held-out questions are built from clauses
that no training question contains as its own, so they are new wordings, not old ones behind a new "hello".
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from configs.artifacts import atomic_write

WORDINGS_FILE = Path(__file__).with_name("identity_wordings.yaml")
SAMPLE_FILE = Path(__file__).parents[1] / "identity_cn_sample.jsonl"
TRAINING, HELDOUT = "training", "heldout"

# Each clause appears bare and in some of the frames of its form.
_FRAMES = {
    "wh": (
        "请问{}？",
        "你好，{}？",
        "请问一下，{}？",
        "我想知道{}。",
        "能说说{}吗？",
        "你说说{}。",
        "{}呀？",
        "{}呢？",
        "我有点好奇，{}？",
        "顺便问一句，{}？",
        "对了，{}？",
    ),
    "yn": (
        "请问{}？",
        "你好，{}？",
        "我想问问，{}？",
        "说实话，{}？",
        "我有点好奇，{}？",
        "顺便问一句，{}？",
        "对了，{}？",
    ),
    "do": ("请{}。", "麻烦你{}。", "能{}吗？", "你能{}吗？", "可以{}吗？", "你好，请{}。", "{}吧。"),
}
_BARE = {"wh": "{}？", "yn": "{}？", "do": "{}。"}
_FRAMES_A_CLAUSE = {TRAINING: 4, HELDOUT: 3}
_BRANDED = {TRAINING: 150, HELDOUT: 32}
"""Questions for each topic about another model or a company."""
ABOUT_MAKER = frozenset({"maker", "company", "other", "who", "what", "intro"})
"""Topics whose answer names the maker."""
# Topics that follow one another naturally; "那" ties a later question to the answer before it.
_CHAINS = (
    ("name", "maker"),
    ("name", "ability"),
    ("who", "ability"),
    ("what", "name"),
    ("human", "what"),
    ("human", "name", "maker"),
    ("robot", "name"),
    ("what", "maker"),
    ("name", "maker", "ability"),
    ("robot", "maker"),
)
_CHAINED = {TRAINING: 60, HELDOUT: 30}


def normalised(question: str) -> str:
    """The question without case, spacing and punctuation: what counts as the same wording."""
    return "".join(char for char in question.lower() if char.isalnum())


def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(WORDINGS_FILE.read_text(encoding="utf-8"))
    return table


def topics() -> dict[str, Any]:
    """Each topic's answer and the clauses that ask for it, by side and form."""
    found: dict[str, Any] = _table()["topics"]
    return found


def _asked(clauses: dict[str, list[str]], slots: dict[str, list[str]], side: str, rng: random.Random) -> list[str]:
    """All questions of one topic and side."""
    questions, branded = [], []
    for form, bare_clauses in clauses.items():
        for clause in bare_clauses:
            slot = next((slot for slot in slots if slot in clause), None)
            if slot is not None:
                branded += [_BARE[form].format(clause.replace(slot, value)) for value in slots[slot]]
                continue
            frames = [_BARE[form], *rng.sample(_FRAMES[form], _FRAMES_A_CLAUSE[side])]
            questions += [frame.format(clause) for frame in frames]
    return questions + rng.sample(branded, min(len(branded), _BRANDED[side]))


def _record(turns: list[tuple[str, str]], side: str) -> dict[str, Any]:
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"conversations": messages} | ({"split": HELDOUT} if side == HELDOUT else {})


def _chains(by_topic: dict[str, Any], side: str, rng: random.Random) -> Iterator[list[tuple[str, str]]]:
    """Conversations of two or three questions."""
    for index in range(_CHAINED[side]):
        turns: list[tuple[str, str]] = []
        for topic in _CHAINS[index % len(_CHAINS)]:
            open_clauses = by_topic[topic][side].get("wh") or by_topic[topic][side]["yn"]
            question = f"{rng.choice(open_clauses)}？"
            turns.append((f"那{question}" if turns else question, by_topic[topic]["answer"]))
        yield turns


def records() -> Iterator[dict[str, Any]]:
    """Chat records; held-out ones carry `split`. No normalised question stands on both sides or twice alone."""
    table = _table()
    slots = {"{m}": table["models"], "{c}": table["companies"]}
    rng = random.Random(3301)
    taken: set[str] = set()
    asked_in_training: set[str] = set()
    for side in (TRAINING, HELDOUT):
        conversations: list[list[tuple[str, str]]] = [
            [(question, topic["answer"])]
            for topic in table["topics"].values()
            for question in _asked(topic[side], slots, side, rng)
        ]
        conversations += _chains(table["topics"], side, rng)
        for turns in conversations:
            asked = {normalised(question) for question, _ in turns}
            whole = "|".join(normalised(question) for question, _ in turns)
            if whole in taken or (asked & asked_in_training and side == HELDOUT):
                continue
            taken.add(whole)
            if side == TRAINING:
                asked_in_training |= asked
            yield _record(turns, side)


def sample_text() -> str:
    """The whole of SAMPLE_FILE."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records())


def main() -> int:
    with atomic_write(SAMPLE_FILE) as file:
        file.write(sample_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
