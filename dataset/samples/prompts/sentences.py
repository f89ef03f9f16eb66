"""Prompts that ask for a sentence with two given words and a given number of characters.

There are many right answers and none to copy: only a rule can say whether a sentence is right. The
answer in a record is an example. The unordered pair of words is the key: no pair stands on two
sides.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.samples.tables import yaml_table

TABLE = Path(__file__).with_name("sentences.yaml")
NUM_PROMPTS = {"train": 8_000, "validation": 400, "test": 600}
"""Prompts of each side."""
NUM_LESSONS = 6_000
"""Records for a first training by SFT, of other pairs."""
SHARES = {"lessons": 0.3, "train": 0.5, "validation": 0.08, "test": 0.12}
"""Share of the pairs of words that each side has."""

MOST_REPEATS = 2
"""How often a character may stand in an example: the rule takes more for padding
(evaluation/rules.py)."""


def records() -> Iterator[dict[str, Any]]:
    """All prompts. Those of the held-out sides say theirs in `split`."""
    for side, count in NUM_PROMPTS.items():
        for record in _of_side(side, count):
            yield record if side == "train" else record | {"split": side}


def lessons() -> Iterator[dict[str, Any]]:
    """Conversations for a first training by SFT. No prompt has one of their pairs."""
    return _of_side("lessons", NUM_LESSONS)


def _of_side(side: str, count: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"sentences {side}")
    questions: set[str] = set()
    while len(questions) < count:
        sentence, words = _sentence(rng)
        if len(words) < 2 or max(map(sentence.count, sentence)) > MOST_REPEATS:
            continue
        a, b = rng.sample(words, 2)
        length = sum(map(_is_counted, sentence))
        question = rng.choice(yaml_table(TABLE)["questions"]).format(a=a, b=b, n=length)
        if side_of(a, b) != side or question in questions:
            continue
        questions.add(question)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": sentence}]
        yield {
            "conversations": messages,
            "category": "general",
            "kind": "sentences",
            "cluster": " ".join(sorted((a, b))),
            "words": [a, b],
            "length": length,
        }


def side_of(a: str, b: str) -> str:
    """The side that has this pair of words, whatever their order."""
    number, reached = random.Random(" ".join(sorted((a, b)))).random(), 0.0
    for side, share in SHARES.items():
        reached += share
        if number < reached:
            return side
    return "test"


def _is_counted(char: str) -> bool:
    return char not in "，。"


def _sentence(rng: random.Random) -> tuple[str, list[str]]:
    """A sentence, and the words of it that may be asked for."""
    table = yaml_table(TABLE)
    frame = rng.choice(table["frames"])
    people, verbs = rng.sample(table["who"], 2), rng.sample(sorted(table["do"]), 2)
    things = [rng.choice(table["do"][verb]) for verb in verbs]
    filled = {
        "who": people[0],
        "who2": people[1],
        "when": rng.choice(table["when"]),
        "where": rng.choice(table["where"]),
        "how": rng.choice(table["how"]),
        "do": verbs[0] + things[0],
        "do2": verbs[1] + things[1],
    }
    words = [filled[slot] for slot in ("who", "who2", "when", "where") if "{" + slot + "}" in frame]
    words += [things[number] for number, slot in enumerate(("do", "do2")) if "{" + slot + "}" in frame]
    sentence = frame.format(**filled)
    return sentence, [word for word in words if sentence.count(word) == 1]
