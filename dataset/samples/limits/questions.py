"""Things that no such model can do: tell the time, search the web, see pictures, pay.

`wordings.yaml` holds an answer for each of them, and many ways to ask. Some wordings are held out.
All answers are trained on.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.samples.alternatives import expanded
from dataset.samples.frames import form_by_mark, in_earnest
from dataset.samples.tables import yaml_table

TABLE_FILE = Path(__file__).with_name("wordings.yaml")
SLOTS = "slots"
LIST_SEPARATOR = "、"
HALVES = ("validation", "test")
NUM_TRAINING = 70
"""Training records of each answer, all typed differently."""
NUM_TRIES = 10 * NUM_TRAINING
"""After so many typed questions an answer gets no more records."""

_SLOT = re.compile(r"\{(\w+)\}")


def _table() -> dict[str, dict[str, str]]:
    """The answers and the wordings."""
    return yaml_table(TABLE_FILE)


def answers() -> dict[str, str]:
    """Name of a thing that can't be done -> answer."""
    return {name: entry["answer"] for name, entry in _table().items() if name != SLOTS}


def wordings(name: str, part: str = "ask") -> tuple[str, ...]:
    """The wordings for one answer: those of training ("ask"), or of a held-out half."""
    lines = (line.strip() for line in _table()[name][part].splitlines())
    return tuple(dict.fromkeys(one for line in lines for one in expanded(line)))


def _filled(wording: str, rng: random.Random) -> str:
    """The wording with a word in each slot."""
    return _SLOT.sub(lambda slot: rng.choice(_table()[SLOTS][slot[1]].split(LIST_SEPARATOR)), wording)


def _typed(wording: str, rng: random.Random) -> str:
    """The wording, filled in, as somebody may type it."""
    return in_earnest(_filled(wording, rng), rng, form_by_mark(wording))


def _record(question: str, name: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answers()[name]}]
    return {"conversations": messages, "kind": "limits", "cluster": f"limits:{name}", "honest": True}


def records() -> Iterator[dict[str, Any]]:
    """Chat records, each question typed in its own way. Held-out ones have `split`."""
    rng = random.Random(5503)
    for name in answers():
        ways = list(wordings(name))
        rng.shuffle(ways)
        # Use every wording once. If that gives too few questions, use the wordings again. Each time
        # other words are put into the slots, and the question is typed in another way.
        asked: dict[str, None] = {}
        for way in itertools.islice(itertools.cycle(ways), NUM_TRIES):
            if len(asked) == max(NUM_TRAINING, len(ways)):
                break
            asked[_typed(way, rng)] = None
        for question in asked:
            yield _record(question, name)
        for half in HALVES:
            for way in wordings(name, half):
                yield _record(_typed(way, rng), name) | {"split": half}
