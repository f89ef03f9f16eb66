"""Sample talk in which each turn follows from the one before: "I'm sad", then why.

The second turn gets the same answer as alone, unless `links.yaml` gives another one.
"""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.alternatives import expanded
from dataset.samples.dialogue import everyday, remembering, series
from dataset.samples.dialogue.everyday import FEELINGS_FILE, HALVES, SMALLTALK_FILE, Topic, Turn, key, record, typed
from dataset.samples.generators import generated
from dataset.samples.tables import yaml_table

LINKS_FILE = Path(__file__).with_name("links.yaml")
NUM_EVENTS = {"sad": 110, "glad": 60}
"""Training conversations in which the user tells a feeling, then its reason."""
NUM_HELDOUT_EVENTS = {"sad": 14, "glad": 8}
"""The same in each held-out half."""
NUM_A_REPLY = 2
"""Training conversations for each reply in the table."""
THIRD_TURN_SHARE = 0.35
"""How often a third turn, such as thanks, follows."""


def _table() -> dict[str, Any]:
    """Which turns may follow which."""
    return yaml_table(LINKS_FILE)


@cache
def _topics() -> tuple[Topic, ...]:
    """The topics of feelings and small talk."""
    return everyday.topics(FEELINGS_FILE) + everyday.topics(SMALLTALK_FILE)


@cache
def _openings(line: str) -> tuple[Topic, tuple[str, ...]]:
    """The topic with this line as its answer, and its wordings."""
    topic = next(topic for topic in _topics() if topic.answer == line)
    return topic, tuple(wording for pattern in topic.training for wording in expanded(pattern))


@cache
def answers() -> dict[str, str]:
    """Normalised question -> the answer that it gets alone, in training."""
    known = {key(w): topic.answer for topic in _topics() for pattern in topic.training for w in expanded(pattern)}
    for one in (*generated("dialogue.series"), *generated("dialogue.remembering")):
        if "split" not in one:
            question, answer = one["conversations"][:2]
            known.setdefault(key(question["content"]), answer["content"])
    return known


def _opening(line: str, rng: random.Random) -> Turn:
    """A first turn whose answer is this line."""
    topic, wordings = _openings(line)
    return typed(rng.choice(wordings), rng, topic.form), line


def _reply(wording: str, rng: random.Random) -> Turn:
    """A wording, and the answer that it gets alone."""
    return typed(wording, rng), answers()[key(wording)]


def _events(rng: random.Random) -> Iterator[dict[str, Any]]:
    """A feeling, then what happened, then perhaps thanks."""
    for form, count in NUM_EVENTS.items():
        events = [topic for topic in everyday.topics(FEELINGS_FILE) if topic.form == form]
        for number in range(count):
            event = events[number % len(events)]
            told = rng.choice(expanded(rng.choice(event.training)))
            said = rng.choice(_table()["because"][form]).format(told)
            turns = [_opening(rng.choice(_table()[form]), rng), (typed(said, rng), event.answer)]
            if rng.random() < THIRD_TURN_SHARE:
                turns.append(_reply(rng.choice(_table()["comfort" if form == "sad" else "cheer"]), rng))
            yield record(turns, kind="turns")


def _linked(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Every reply of the table, after a line that it may follow."""
    for link in _table()["links"]:
        replies: list[Turn | str] = [*link.get("to", ()), *map(tuple, link.get("with", ()))]
        for reply in [*replies] * NUM_A_REPLY:
            turn = _reply(reply, rng) if isinstance(reply, str) else (typed(reply[0], rng), reply[1])
            yield record([_opening(rng.choice(link["from"]), rng), turn], kind="turns")
        if "memory" in link:
            values = remembering.values(link["memory"], "training")
            for value in rng.sample(values, min(12, len(values))):
                memory = remembering.remembered(link["memory"], value, "training", rng)
                yield record([_opening(rng.choice(link["from"]), rng), memory.told, memory.asked], kind="turns")


def _heldout(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Held-out feelings, each followed by a held-out reason of the same half."""
    for index, half in enumerate(HALVES):
        for form, count in NUM_HELDOUT_EVENTS.items():
            lines = [line for line in _table()[form] if _half_of(line) == index]
            events = [topic for topic in everyday.topics(FEELINGS_FILE) if topic.form == form]
            mine = [event for event in events if _half_of(event.answer) == index]
            for number in range(count):
                line, event = lines[number % len(lines)], mine[number % len(mine)]
                opening: Turn = (typed(rng.choice(_openings(line)[0].heldout), rng), line)
                told = typed(rng.choice(event.heldout), rng)
                name = f"flow:{event.answer}"
                group = f"flow:{half}:{form}:{number}"
                yield record([opening, (told, event.answer)], kind="turns", split=half, cluster=name, group=group)


@cache
def _half_of(answer: str) -> int:
    """The number of the half in which `everyday` holds a topic out. Raises: ValueError if none."""
    for path in (FEELINGS_FILE, SMALLTALK_FILE):
        scored = [topic.answer for topic in everyday.topics(path) if topic.heldout]
        if answer in scored:
            return scored.index(answer) % len(HALVES)
    raise ValueError(f"{answer}: not the answer of a topic that is scored")


def records() -> Iterator[dict[str, Any]]:
    """Chat records of kind `turns`, all different."""
    rng = random.Random(4406)
    yield from series.distinct([*_events(rng), *_linked(rng), *_heldout(rng)])
