"""Questions outside what the samples teach: each gets an honest line, not a made-up answer.

A small model can't know what it doesn't know. But from many examples it can learn to say "I don't
know" when it meets a name that it was never taught. Three kinds of questions teach that:

- topics far from everything taught (`{area}.yaml`); some are held out with all names and wordings;
- taught relations, asked about subjects that are not taught: rare or invented ones (`invented`);
- taught subjects, asked about something that is not taught (`crossings`).

`asks_taught` finds questions that by chance ask for a taught fact. They are left out.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.dialogue import everyday
from dataset.samples.frames import form_by_mark, in_earnest
from dataset.samples.generators import generated
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.tables import yaml_table

AREAS = ("computing", "science", "medicine", "society", "humanities", "fun", "places", "life")
WORDINGS_FILE = Path(__file__).with_name("wordings.yaml")
BOUNDARY_FILE = Path(__file__).with_name("boundary.yaml")
LIST_SEPARATOR = "、"

ANSWERS = {
    "fact": "这个我不知道，我只学过一点常识。",
    "who": "我不了解这个人，不敢乱说。",
    "opinion": "这个我不了解，说不好。",
    "task": "这个我还不会，我只会聊天、答题和简单计算。",
    "translate": "这个我翻译不了，我只认识几个英语单词。",
    "medicine": "这个我不懂，看病吃药请问医生。",
}
"""The honest lines, by the type of question."""

NUM_TOPIC = 15
"""Training questions of each topic, if its table gives no number."""
NUM_INVENTED = 30
"""Training questions of each taught relation about subjects that are not taught, if the table gives
no number."""
GENERAL_SHARE = 1 / 3
"""Share of a topic's training questions that use the general wordings of its class."""
SIMILAR = 0.5
"""Two wordings ask for the same thing if the Jaccard index of their character pairs is at least
this."""

# What people write before and after a question.
_AROUND = re.compile(
    "^(?:你好|您好|请问一下|请问|我?想?问一下|想问下|问个问题|问你个问题|考考你|对了|那么|那|嗯|麻烦你|告诉我|我想知道"
    "|[，,：: ])+"
    "|[，,？?！!。 ]*(?:谢谢你?啦?|多谢)?[。！!？?~ ]*$"
)
_PLACEHOLDER = re.compile(r"\{\w+\}")
_DEFINITION = re.compile(
    "^(?:什么是|什么叫|是什么东西|是什么意思|是什么|是啥|到底是啥|你知道|是什么吗|解释一下|介绍一下|科普一下|给我讲讲|讲讲|说说|我想了解|你?了解|听说过|吗)+$"
)


@dataclass(frozen=True, slots=True)
class Wording:
    """A way to ask. `{s}` stands for a name, `{t}` for another name of the same topic."""

    text: str
    answer: str
    """A key of ANSWERS."""


@dataclass(frozen=True, slots=True)
class Topic:
    """Names, and the ways to ask about them."""

    name: str
    half: str
    """The held-out half; "" for training."""
    names: tuple[str, ...]
    own: tuple[Wording, ...]
    general: tuple[Wording, ...]
    """Wordings that fit all topics of its class."""
    count: int
    """Training questions."""


def normalised(text: str) -> str:
    """The text without case, spacing and punctuation."""
    return "".join(filter(str.isalnum, text.lower()))


def _table(area: str) -> dict[str, Any]:
    """The topics of an area."""
    return yaml_table(Path(__file__).with_name(f"{area}.yaml"))


def _names(text: str) -> tuple[str, ...]:
    """The names of a list."""
    return tuple(name.strip() for name in text.split(LIST_SEPARATOR) if name.strip())


def _wordings(entry: dict[str, Any]) -> tuple[Wording, ...]:
    """The wordings of a table's entry. A key of the entry is `ask` or the name of an answer.

    Wordings under `ask` get the entry's own `answer`.
    """
    found = []
    for key in ("ask", *ANSWERS):
        answer = entry.get("answer", "fact") if key == "ask" else key
        found += [Wording(line.strip(), answer) for line in entry.get(key, "").splitlines()]
    return tuple(found)


@cache
def topics() -> tuple[Topic, ...]:
    """The topics of all areas.

    A topic with general wordings, such as "what is {s}", loses all names that a fact or a dialogue
    is about, because their answers are taught.
    """
    taught = {name for fact in knowledge.facts() for name in (fact.subject, fact.answer)}
    taught.update(item.topic for item in everyday.items())
    classes = yaml_table(WORDINGS_FILE)
    found = []
    for area in AREAS:
        for name, entry in _table(area).items():
            # Without an answer of its own, a topic about persons gets the line for persons.
            default = "who" if entry["class"] == "person" else "fact"
            entry = {"answer": default, **entry}
            general = {"answer": entry["answer"], **classes[entry["class"]]}
            names = _names(entry["names"])
            if classes[entry["class"]]:
                names = tuple(name for name in names if name.strip("《》") not in taught)
            count = entry.get("records", NUM_TOPIC)
            found.append(Topic(name, entry.get("half", ""), names, _wordings(entry), _wordings(general), count))
    return tuple(found)


def invented() -> tuple[Topic, ...]:
    """Taught relations with subjects that are not taught, some of them invented.

    The wordings are those of the relation, and some of the table's own.
    """
    table = yaml_table(BOUNDARY_FILE)
    rng = random.Random(5501)
    subjects = defaultdict(set)
    for fact in knowledge.facts():
        subjects[fact.relation].add(fact.subject)
    found = []
    for name, entry in table["invented"].items():
        count = entry.get("records", NUM_INVENTED)
        names = list(_names(entry.get("names", "")))
        for pool in entry.get("pools", "").split():
            first, last = (_names(part) for part in table["pools"][pool].split("/"))
            names += ["".join(parts) for parts in rng.sample(list(itertools.product(first, last)), count // 2)]
        relation = knowledge.relations().get(name)
        known = relation.train if relation is not None and entry.get("wordings", True) else ()
        answer = entry.get("answer", "fact")
        own = (*_wordings(entry), *(Wording(text.rstrip("？，…"), answer) for text in known))
        names = [subject for subject in dict.fromkeys(names) if subject not in subjects[name]]
        found.append(Topic(f"invented:{name}", "", tuple(names), own, (), count))
    return tuple(found)


def crossings() -> tuple[Topic, ...]:
    """Taught subjects, with questions whose answers are not taught."""
    found = []
    for name, entry in yaml_table(BOUNDARY_FILE)["crossings"].items():
        relations, without = entry["relations"].split(), _names(entry.get("without", ""))
        subjects = dict.fromkeys(fact.subject for fact in knowledge.facts() if fact.relation in relations)
        names = tuple(subject for subject in subjects if subject not in without)
        found.append(Topic(f"crossing:{name}", "", names, _wordings(entry), (), entry["records"]))
    return tuple(found)


def _pairs(text: str) -> frozenset[str]:
    """All runs of two characters of a text, normalised."""
    plain = normalised(text)
    return frozenset(plain[i : i + 2] for i in range(len(plain) - 1))


def bare(question: str) -> str:
    """The question without what people put around it."""
    return _AROUND.sub("", question)


@cache
def _names_asked() -> tuple[frozenset[str], int]:
    """All names that a question may be about, and the length of the longest.

    These are the subjects of facts and dialogues, their other names, and the names of the tables.
    """
    found = {fact.subject for fact in knowledge.facts()} | {item.topic for item in everyday.items()}
    for relation in knowledge.relations().values():
        found.update(itertools.chain.from_iterable(getattr(relation, "names", {}).values()))
    for area in AREAS:
        found.update(itertools.chain.from_iterable(_names(entry["names"]) for entry in _table(area).values()))
    for entry in yaml_table(BOUNDARY_FILE)["invented"].values():
        found.update(_names(entry.get("names", "")))
    return frozenset(found), max(map(len, found))


def _split_at_names(question: str) -> Iterator[tuple[str, str]]:
    """Each name in the question, and the question without it."""
    names, longest = _names_asked()
    for start in range(len(question)):
        for stop in range(start + 1, min(start + longest, len(question)) + 1):
            if question[start:stop] in names:
                yield question[start:stop], question[:start] + question[stop:]


def _meant(rest: str) -> frozenset[str]:
    """What a question asks, as character pairs. `rest`: the question without its name.

    All ways to ask what a thing is become the same.
    """
    return _pairs(_DEFINITION.sub("是什么", normalised(rest)))


@cache
def _taught_questions() -> frozenset[str]:
    """All user turns of the knowledge and dialogue records, each as `bare` gives it."""
    records = itertools.chain(generated("knowledge.questions"), generated("dialogue.everyday"))
    turns = (turn for record in records for turn in record["conversations"] if turn["role"] == "user")
    return frozenset(bare(turn["content"]) for turn in turns)


@cache
def _taught() -> dict[str, set[frozenset[str]]]:
    """Name -> what the tables of facts and the records ask about it, as `_meant` gives it."""
    found: dict[str, set[frozenset[str]]] = defaultdict(set)
    for fact in knowledge.facts():
        relation = knowledge.relations()[fact.relation]
        found[fact.subject].update(_meant(_PLACEHOLDER.sub("", way)) for way in (*relation.train, *relation.heldout))
    for question in _taught_questions():
        for name, rest in _split_at_names(question):
            found[name].add(_meant(rest))
    return found


@cache
def _taught_keys() -> frozenset[str]:
    """The taught questions, normalised."""
    return frozenset(map(normalised, _taught_questions()))


def asks_taught(question: str, name: str) -> bool:
    """Whether a question about `name` is taught, or nearly the same as a taught one.

    Other taught names in the question do not count, unless they are at least half of `name`: 世界杯
    in 2022年世界杯.
    """
    question = bare(question)
    if normalised(question) in _taught_keys():
        return True
    for other, rest in _split_at_names(question):
        if not (name in other or (other in name and len(other) > 1 and 2 * len(other) >= len(name))):
            continue
        asked = _meant(rest)
        if any(len(asked & taught) >= SIMILAR * len(asked | taught) for taught in _taught().get(other, ())):
            return True
    return False


def _asked(topic: Topic, wordings: Sequence[Wording], rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Endless questions, each with its name and answer. All names and wordings get equal shares."""
    names, ways = list(topic.names), list(wordings)
    for turn in itertools.count():
        # Each list is shuffled again when it ends. Otherwise the same pairs would come again.
        if turn % len(names) == 0:
            rng.shuffle(names)
        if turn % len(ways) == 0:
            rng.shuffle(ways)
        name, way = names[turn % len(names)], ways[turn % len(ways)]
        other = rng.choice([other for other in names if other != name])
        yield way.text.format(s=name, t=other), name, ANSWERS[way.answer]


def _records(topic: Topic, rng: random.Random, taken: set[str]) -> Iterator[dict[str, Any]]:
    """The topic's records: `count` for training, or if it is held out one in each own wording.

    Args: taken: normalised questions that are asked already; it grows.
    """
    if topic.half:
        parts = [(_asked(topic, topic.own, rng), len(topic.own))]
    else:
        num_general = round(topic.count * GENERAL_SHARE) if topic.general else 0
        parts = [(_asked(topic, topic.own, rng), topic.count - num_general)]
        if num_general:
            parts.append((_asked(topic, topic.general, rng), num_general))
    for questions, wanted in parts:
        found = 0
        for question, name, answer in itertools.islice(questions, 20 * wanted):  # few are taken or taught
            if found == wanted:
                break
            key = normalised(question)
            if key in taken or asks_taught(question, name):
                continue
            taken.add(key)
            found += 1
            messages = [
                {"role": "user", "content": in_earnest(question, rng, form_by_mark(question))},
                {"role": "assistant", "content": answer},
            ]
            record = {"conversations": messages, "kind": "unknown", "cluster": topic.name, "honest": True}
            yield record | ({"split": topic.half} if topic.half else {})


def records() -> Iterator[dict[str, Any]]:
    """Chat records; no question is asked twice. Held-out ones have `split` and their own topics."""
    rng = random.Random(5502)
    taken: set[str] = set()
    for topic in (*topics(), *invented(), *crossings()):
        yield from _records(topic, rng, taken)
