"""Sample talk in which users tell something about themselves and ask for it later.

There are many values, so that a model has to copy what was said. Training never uses the values and
wordings of the held-out halves. Here at most one turn of small talk is between telling and asking.
`medley` puts more turns there.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.dialogue.everyday import HALVES, SMALLTALK_FILE, Half, Turn, record, spread, topics, typed
from dataset.samples.frames import bare
from dataset.samples.tables import yaml_table

MEMORY_FILE = Path(__file__).with_name("remembering.yaml")
NAME = "name"
NUM_FULL_NAMES, NUM_NICKNAMES = 4000, 400
"""Names that are put together at random. They are so many that a model can't learn them all and has
to copy them."""
NUM_TOLD = {NAME: 700}
"""Training conversations about a subject; for other subjects NUM_TOLD_OF_OTHERS."""
NUM_TOLD_OF_OTHERS = 45
NUM_CORRECTED, NUM_BOTH, NUM_BACK = 40, 70, 40
"""Training conversations in which a name is corrected, in which two things are told at once, and in
which the user asks the model's name back."""
NUM_HELDOUT_BOTH = 8
"""Held-out conversations in each half in which two things are told at once."""
NUM_HELDOUT = {NAME: 34}
"""Held-out conversations in each half; for other subjects NUM_HELDOUT_OF_OTHERS."""
NUM_HELDOUT_OF_OTHERS = 4
BETWEEN_SHARE = 0.4
"""How often a turn of small talk is between telling and asking."""


@dataclass(frozen=True, slots=True)
class Memory:
    """One thing that the user tells and asks for."""

    subject: str
    value: str
    told: Turn
    asked: Turn


def table() -> dict[str, Any]:
    """The subjects with their wordings, and the lists of names."""
    return yaml_table(MEMORY_FILE)


@cache
def subjects() -> tuple[str, ...]:
    """The names of the things that users tell."""
    return tuple(name for name, entry in table().items() if "answer" in entry and "tell" in entry)


@cache
def values(subject: str, half: Half) -> tuple[str, ...]:
    """All values of a subject on one side. Most names of people are put together from parts."""
    names, entry = table()["names"], table()[subject]
    if "values" in entry:
        return tuple(map(str, entry["values"] if half == "training" else entry["heldout"][half]))
    if half != "training":
        return tuple(names["heldout"][half])
    unseen = {name for other in names["heldout"].values() for name in other}
    rng = random.Random(4403)
    characters = names["characters"]
    given = [*names["given"], *(one + other for one in characters for other in characters if one != other)]
    full = dict.fromkeys(rng.choice(names["surname"]) + rng.choice(given) for _ in range(NUM_FULL_NAMES))
    nick = dict.fromkeys(_nickname(rng.choice(characters), rng) for _ in range(NUM_NICKNAMES))
    drawn = [name for name in (*nick, *full) if name not in unseen]
    return (*names["short"], *names["english"], *names["given"][41:], *drawn)


def _nickname(character: str, rng: random.Random) -> str:
    """A name among friends, such as 小兰 or 兰兰."""
    return rng.choice((f"小{character}", f"阿{character}", character * 2))


def remembered(subject: str, value: str, half: Half, rng: random.Random) -> Memory:
    """A thing told and asked for, in drawn wordings of a side."""
    entry = table()[subject]
    side = entry if half == "training" else entry[half]
    told = typed(rng.choice(side["tell"]).format(v=value), rng, "mark")
    asked = typed(rng.choice(side["ask"]), rng, "ask" if half == "training" else "mark")
    reply, answer = entry["reply"].format(v=value), entry["answer"].format(v=value)
    return Memory(subject, value, (told, reply), (asked, answer))


@cache
def _replies() -> re.Pattern[str]:
    """Matches what the assistant says when the user has told something."""
    found = (re.escape(table()[subject]["reply"]).replace(re.escape("{v}"), ".*") for subject in subjects())
    return re.compile("|".join(found), re.DOTALL)


def is_told(turn: Turn) -> bool:
    """Whether the user tells something in this turn, by the assistant's answer."""
    return _replies().fullmatch(turn[1]) is not None


def drawn(half: Half, rng: random.Random) -> Memory:
    """Something that a user tells. Half of the time it is a name."""
    subject = NAME if rng.random() < 0.5 else rng.choice(subjects())
    return remembered(subject, rng.choice(values(subject, half)), half, rng)


@cache
def _small_talk() -> tuple[tuple[str, str], ...]:
    """Short turns that may come between telling and asking."""
    rng = random.Random(4404)
    return tuple(
        (wording, topic.answer)
        for topic in topics(SMALLTALK_FILE)
        if topic.form == "mark" and topic.heldout
        for wording in spread(topic.training, 8, rng)
    )


def _told(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Something is told, and asked for at once or after one more turn."""
    for subject in subjects():
        count = NUM_TOLD.get(subject, NUM_TOLD_OF_OTHERS)
        pool = values(subject, "training")
        order = [value for _ in range(count // len(pool) + 1) for value in rng.sample(pool, len(pool))]
        for value in order[:count]:
            memory = remembered(subject, value, "training", rng)
            between = [rng.choice(_small_talk())] if rng.random() < BETWEEN_SHARE else []
            yield record([memory.told, *between, memory.asked], kind="turns")


def _corrected(rng: random.Random) -> Iterator[dict[str, Any]]:
    """A name is told, then corrected, then asked for."""
    entry, pool = table()["correction"], values(NAME, "training")
    for _ in range(NUM_CORRECTED):
        wrong, right = rng.sample(pool, 2)
        memory = remembered(NAME, wrong, "training", rng)
        said = typed(rng.choice(entry["tell"]).format(v=right, o=wrong), rng)
        asked = remembered(NAME, right, "training", rng).asked
        yield record([memory.told, (said, entry["reply"].format(v=right)), asked], kind="turns")


def _both(half: Half, rng: random.Random) -> list[Turn]:
    """A name and something else are told in one turn. Then one of them is asked for, or both."""
    entry = table()["both"]
    name = remembered(NAME, rng.choice(values(NAME, half)), half, rng)
    subject = rng.choice([subject for subject in subjects() if subject not in (NAME, "friend")])
    other = remembered(subject, rng.choice(values(subject, half)), half, rng)
    said = typed(entry["tell"].format(v=name.value, other=bare(other.told[0])), rng)
    reply = entry["reply"].format(v=name.value, other=other.told[1])
    return [(said, reply), *rng.sample([name.asked, other.asked], rng.choice((1, 2)))]


def _back(rng: random.Random) -> Iterator[dict[str, Any]]:
    """A name is told with 你呢 after it, then asked for."""
    entry = table()["back"]
    for value in rng.sample(values(NAME, "training"), NUM_BACK):
        said = typed(rng.choice(entry["tell"]).format(v=value), rng)
        asked = remembered(NAME, value, "training", rng).asked
        yield record([(said, entry["reply"].replace("{v}", value)), asked], kind="turns")


def _untold(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Something is asked for that was not told."""
    answer = table()["untold"]["answer"]
    for subject in subjects():
        for ask in table()[subject]["ask"] if subject == NAME else rng.sample(table()[subject]["ask"], 5):
            yield record([(typed(ask, rng, "ask"), answer)], kind="chat")
    for ask in table()["untold"]["ask"]:
        yield record([(typed(ask, rng, "ask"), answer)], kind="chat")
    for half in HALVES:
        for ask in table()["untold"]["heldout"][half]:
            yield record([(ask, answer)], kind="chat", split=half, cluster=f"untold:{ask}")
    others = [subject for subject in subjects() if subject != NAME]
    for value in rng.sample(values(NAME, "training"), len(others) * 2):
        # A name is told, but something else is asked for.
        memory = remembered(NAME, value, "training", rng)
        asked = typed(rng.choice(table()[rng.choice(others)]["ask"]), rng, "ask")
        yield record([memory.told, (asked, answer)], kind="turns")


def _heldout(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Held-out conversations, with the values and wordings of their half."""
    for half in HALVES:
        for subject in subjects():
            pool = values(subject, half)
            count = min(NUM_HELDOUT.get(subject, NUM_HELDOUT_OF_OTHERS), len(pool))
            for value in rng.sample(pool, count):
                memory = remembered(subject, value, half, rng)
                between = [rng.choice(_small_talk())] if rng.random() < BETWEEN_SHARE else []
                cluster = f"{subject}:{value}"
                turns = [memory.told, *between, memory.asked]
                yield record(turns, kind="turns", split=half, cluster=cluster, group=f"memory:{cluster}")
        for number in range(NUM_HELDOUT_BOTH):
            turns = _both(half, rng)
            group = f"memory:{half}:both:{number}"
            yield record(turns, kind="turns", split=half, cluster=f"both:{turns[0][0]}", group=group)


def records() -> Iterator[dict[str, Any]]:
    """Chat records of kind `turns`; those of kind `chat` are one question for something untold."""
    rng = random.Random(4405)
    yield from _told(rng)
    yield from _corrected(rng)
    for _ in range(NUM_BOTH):
        yield record(_both("training", rng), kind="turns")
    yield from _back(rng)
    yield from _untold(rng)
    yield from _heldout(rng)
