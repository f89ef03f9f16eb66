"""Sample everyday dialogue, single and multi-turn. No answer speaks of the model's name or maker.

Each topic in the tables has one good answer and one answer to the natural follow-up; the wordings say how people
ask. Topics times wordings give the single questions; a few wordings of each topic go on for two to four rounds.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
WORDINGS_FILE = FOLDER / "dialogue_wordings.yaml"
ITEM_FILES = tuple(FOLDER / f"dialogue_items_{name}.tsv" for name in ("life", "words", "people"))
SMALLTALK_FILE = FOLDER / "dialogue_smalltalk.tsv"
TALKS_FILE = FOLDER / "dialogue_talks.tsv"

NUM_SINGLE = 7
"""Single-turn wordings of each topic."""
NUM_MULTI = 2
"""Longer conversations of each topic, opened with wordings that no single-turn record of it has."""

Turn = tuple[str, str]
"""What the user says, what the assistant answers."""


@dataclass(frozen=True, slots=True)
class Item:
    """One topic with its answer and the answer to the follow-up."""

    kind: str
    topic: str
    answer: str
    more: str


@dataclass(frozen=True, slots=True)
class Wordings:
    """How one kind of topic is asked about, followed up and ended."""

    ask: list[str]
    more: list[str]
    closings: list[Turn]


def items() -> list[Item]:
    """The topics of all tables."""
    found = []
    for path in ITEM_FILES:
        kind = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                kind = line.strip("[]")
            elif not line.startswith("#"):
                topic, answer, more = line.split("\t")
                found.append(Item(kind, topic, answer, more))
    return found


def _wordings(table: dict[str, Any]) -> dict[str, Wordings]:
    """The wordings by kind."""
    by_kind = {}
    for closing in table["closings"].values():
        for kind in closing["kinds"]:
            turns = [(user, assistant) for user, assistant in closing["turns"]]
            by_kind[kind] = Wordings(table[kind]["ask"], table[kind]["more"], turns)
    return by_kind


def _record(turns: list[Turn]) -> dict[str, Any]:
    messages = []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"conversations": messages}


def _longer(item: Item, ask: str, wordings: Wordings, openings: list[Turn], rng: random.Random) -> list[Turn]:
    """A conversation of two to four rounds about one topic."""
    first: Turn = (ask, item.answer)
    more: Turn = (rng.choice(wordings.more), item.more)
    closing = rng.choice(wordings.closings)
    shapes = (
        [first, more],
        [first, more],
        [first, more, closing],
        [first, closing],
        [rng.choice(openings), first, more],
        [rng.choice(openings), first, more, closing],
    )
    return rng.choices(shapes, weights=(4, 4, 6, 3, 1, 1))[0]


def _smalltalk() -> Iterator[list[Turn]]:
    """Greetings, moods, questions that a model without clock and eyes can't answer, requests that are too vague."""
    for line in SMALLTALK_FILE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            answer, wordings = line.split("\t")
            for wording in wordings.split("|"):
                # Many people end a chat message with no mark at all.
                for user in dict.fromkeys((wording, wording.rstrip("。？"))):
                    yield [(user, answer)]


def _talks() -> Iterator[list[Turn]]:
    """Conversations written out whole, in which the assistant asks back before it answers."""
    for line in TALKS_FILE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            said = line.split("\t")
            yield list(zip(said[::2], said[1::2], strict=True))


def records() -> Iterator[dict[str, Any]]:
    """Chat records, every conversation distinct."""
    table = yaml.safe_load(WORDINGS_FILE.read_text(encoding="utf-8"))
    by_kind = _wordings(table)
    openings: list[Turn] = [(user, assistant) for user, assistant in table["openings"]]
    rng = random.Random(4401)
    for item in items():
        wordings = by_kind[item.kind]
        asked = [ask.format(t=item.topic) for ask in rng.sample(wordings.ask, NUM_SINGLE + NUM_MULTI)]
        for ask in asked[:NUM_SINGLE]:
            yield _record([(ask, item.answer)])
        for ask in asked[NUM_SINGLE:]:
            yield _record(_longer(item, ask, wordings, openings, rng))
    for turns in (*_smalltalk(), *_talks()):
        yield _record(turns)
