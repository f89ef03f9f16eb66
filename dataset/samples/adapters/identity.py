"""The set `lora_identity`: the model under another name, made by somebody else.

The questions are those of `identity/`, with its three sides. Only topics whose answer says a name
are in the set. So weights that were trained on the mix have seen none of its held-out wordings
either.
"""

import random
from collections.abc import Iterator
from typing import Any

from dataset.samples.identity.questions import (
    SIDES,
    TRAINING,
    Topic,
    fillings,
    normalised,
    questions_of,
    record_of,
    topics,
)

NAME, AUTHOR = "小禾", "青禾工作室"
"""No other bundled record holds these words."""
FILLED = {"{{name}}": NAME, "{{name_lower}}": NAME.lower(), "{{author}}": AUTHOR}
NUM_CLAUSES = 60
"""Training clauses of a topic."""
NUM_TYPED = {"training": 1, "validation": 3, "test": 5}
"""In how many ways a clause of each side is typed."""


def records() -> Iterator[dict[str, Any]]:
    """Chat records of the category `identity`. Held-out ones have `split`, `cluster` and
    `accepted`."""
    rng, names = random.Random(1906), fillings()
    asked: set[str] = set()
    for topic in naming_topics():
        for side in SIDES:
            clauses = topic.clauses[side]
            if side == TRAINING:
                clauses = rng.sample(clauses, min(NUM_CLAUSES, len(clauses)))
            for clause in clauses:
                for question in questions_of(clause, NUM_TYPED[side], side, names, rng):
                    plain = normalised(filled(question))
                    if plain not in asked:  # two topics may have nearly the same wording
                        asked.add(plain)
                        record = record_of([(question, topic.answer)], topic, clause, side)
                        yield {**filled(record), "category": "identity", "source": "lora_identity"}


def naming_topics() -> list[Topic]:
    """The topics whose answer says the name of the model or of its author."""
    return [topic for topic in topics() if any(mark in topic.answer for mark in FILLED)]


def filled(value: Any) -> Any:
    """The same record with names in place of their marks."""
    if isinstance(value, str):
        for mark, name in FILLED.items():
            value = value.replace(mark, name)
        return value
    if isinstance(value, list):
        return [filled(one) for one in value]
    return {key: filled(one) for key, one in value.items()} if isinstance(value, dict) else value
