"""Sample conversations that change their subject: small talk, facts, sums, the model itself, in any order.

Each turn is one single-turn training record of the other samples, word for word. Without such conversations a small
model takes the subject of the first turns for that of all later ones.
"""

import random
from collections.abc import Iterator
from typing import Any

from dataset.samples import arithmetic, dialogue, identity, knowledge

NUM_CONVERSATIONS = 3_000
TURNS = (2, 2, 3, 3, 4, 5)
"""How many turns a conversation has, each as likely as it stands here."""
SUBJECTS = {"dialogue": 4, "knowledge": 3, "arithmetic": 2, "identity": 1}
"""How often a turn is of each kind."""

Turn = tuple[str, str]


def training_turns(records: Iterator[dict[str, Any]]) -> list[Turn]:
    """Question and answer of the single-turn records that may be trained on."""
    return [
        (record["conversations"][0]["content"], record["conversations"][1]["content"])
        for record in records
        if record.get("split") in (None, "train") and len(record["conversations"]) == 2
    ]


def records() -> Iterator[dict[str, Any]]:
    """Conversations of two to five turns, all for training: their turns are training questions of other categories.

    {{name}} and {{author}} are filled in when the data is mixed.
    """
    rng = random.Random(4127)
    turns = {
        "dialogue": training_turns(dialogue.records()),
        "knowledge": training_turns(knowledge.records()),
        "arithmetic": training_turns(arithmetic.records()),
        "identity": training_turns(identity.records()),
    }
    for _ in range(NUM_CONVERSATIONS):
        subjects = rng.choices(list(SUBJECTS), weights=list(SUBJECTS.values()), k=rng.choice(TURNS))
        messages = []
        for question, answer in (rng.choice(turns[subject]) for subject in subjects):
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"conversations": messages, "split": "train"}
