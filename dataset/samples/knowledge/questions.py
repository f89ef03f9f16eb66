"""Knowledge questions: facts and basics from tables, asked in the ways in which people type.

`facts.tsv` holds the facts, and `relations.yaml` how each relation is asked and answered.
`basics.tsv` holds questions that belong to no relation. All wordings for a fact have the same
answer sentence, so a model has to understand the question and can't guess from its style. Some
wordings are held out: training asks nothing in them. The two held-out halves share no wording and
no fact.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.frames import form_by_mark, framed
from dataset.samples.tables import cells, yaml_table

FACTS_FILE = Path(__file__).with_name("facts.tsv")
RELATIONS_FILE = Path(__file__).with_name("relations.yaml")
BASICS_FILE = Path(__file__).with_name("basics.tsv")
LIST_SEPARATOR = "、"
WORDING_SEPARATOR = "|"
BASICS = "basics"
"""The `relation` of records about basics."""

HALVES = ("validation", "test")
QUESTIONS_PER_FACT = {"often": 14, "": 8, "seldom": 6}
"""Training questions about a fact, by how often people ask about it."""
QUESTIONS_PER_BASIC = 22
"""Training questions about a basic."""
HELDOUT_PER_RELATION = 5
"""The most facts of each relation in each held-out half."""
OTHER_NAME_SHARE = 0.35
"""Share of the training questions that use another name of the subject, if it has one."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One true statement: `sentence` says in full that `relation` of `subject` is `answer`."""

    relation: str
    subject: str
    answer: str
    sentence: str
    accepted: tuple[str, ...]
    """Other sentences that are right."""
    source: str
    """The fact in the table, such as "capital:法国". A fact asked in reverse has the same one."""

    @property
    def half(self) -> str:
        """The held-out half that may ask about this fact: the same for all facts of a subject."""
        return half_of(self.source.partition(":")[2])


@dataclass(frozen=True, slots=True)
class Relation:
    """How one kind of fact is asked and answered: `{s}` is the subject, `{a}` the short answer.

    The other fields are explained at the top of `relations.yaml`.
    """

    name: str
    sentence: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    asked: str = ""
    often: tuple[str, ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reverses: str = ""
    only: tuple[str, ...] = ()
    others_too: bool = False
    mutual: bool = False
    asked_as: str = ""
    also_right: tuple[str, ...] = ()

    @property
    def heldout(self) -> tuple[str, ...]:
        """The wordings of both held-out halves."""
        return self.validation + self.test

    def wordings(self, split: str) -> tuple[str, ...]:
        """The wordings of "train", "validation" or "test"."""
        found: tuple[str, ...] = getattr(self, split)
        return found


@dataclass(frozen=True, slots=True)
class FactRow:
    """One line of `facts.tsv`: subjects that share an answer."""

    relation: str
    answer: str
    subjects: tuple[str, ...]
    also_right: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    """Answers that are neither clearly right nor clearly wrong, so they are not used."""


@dataclass(frozen=True, slots=True)
class Basic:
    """A question that belongs to no relation, in several wordings."""

    answer: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    accepted: tuple[str, ...]

    @property
    def half(self) -> str:
        """The held-out half that may ask it."""
        return half_of(self.answer)


def half_of(text: str) -> str:
    """One of the two held-out halves, by a hash of the text."""
    return HALVES[zlib.crc32(text.encode()) % 2]


# --- tables ---------------------------------------------------------------------------------------


@cache
def relations() -> dict[str, Relation]:
    """The relations by name, in the order of their file."""
    loaded: dict[str, dict[str, Any]] = yaml_table(RELATIONS_FILE)
    found = {}
    for name, entry in loaded.items():
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        found[name] = Relation(name, **fields)
    return found


@cache
def _rows() -> dict[str, tuple[FactRow, ...]]:
    """The lines of each relation. For a reverse relation they are made from another one's lines."""
    rows: dict[str, list[FactRow]] = {name: [] for name in relations()}
    for name, answer, *lists in cells(FACTS_FILE):
        rows[name].append(FactRow(name, answer, *(_split(cell, LIST_SEPARATOR) for cell in lists)))
    for relation in relations().values():
        if relation.reverses:
            rows[relation.name] = _reversed(relation, rows[relation.reverses])
    return {name: tuple(found) for name, found in rows.items()}


def _reversed(relation: Relation, rows: Sequence[FactRow]) -> list[FactRow]:
    """Rows in which answer and subject have changed places.

    Only rows with one subject are taken, and only if no other row has their answer.
    """
    answers = [row.answer for row in rows]
    return [
        FactRow(relation.name, row.subjects[0], (row.answer, *(row.also_right if relation.others_too else ())))
        for row in rows
        if len(row.subjects) == 1
        and answers.count(row.answer) == 1
        and (not relation.only or row.answer in relation.only)
    ]


def _split(cell: str, separator: str) -> tuple[str, ...]:
    """The parts of a cell; none for an empty cell."""
    return tuple(cell.split(separator)) if cell else ()


@cache
def _facts() -> tuple[Fact, ...]:
    """Every fact, relation by relation."""
    # First all sentences, because a fact may accept the sentence of another relation.
    stated = {
        (name, subject): (row, relations()[name].sentence.format(s=subject, a=row.answer))
        for name, rows in _rows().items()
        for row in rows
        for subject in row.subjects
    }
    facts = []
    for (name, subject), (row, sentence) in stated.items():
        relation = relations()[name]
        accepted = [relation.sentence.format(s=subject, a=answer) for answer in row.also_right]
        for other in relation.also_right:  # the sentence of another relation, if one answer contains the other
            if (other, subject) in stated:
                other_row, other_sentence = stated[other, subject]
                if row.answer in other_row.answer or other_row.answer in row.answer:
                    accepted.append(other_sentence)
        if relation.mutual:  # subject and answer can change places: both ways are one fact
            key = min(subject, row.answer)
        else:
            key = row.answer if relation.reverses else subject
        source = f"{relation.reverses or name}:{key}"
        facts.append(Fact(name, subject, row.answer, sentence, tuple(dict.fromkeys(accepted)), source))
    return tuple(facts)


def facts() -> list[Fact]:
    """Every fact, relation by relation."""
    return list(_facts())


@cache
def basics() -> tuple[Basic, ...]:
    """The questions that belong to no relation."""
    found = []
    for answer, *lists in cells(BASICS_FILE):
        train, heldout, accepted = (_split(cell, WORDING_SEPARATOR) for cell in [*lists, ""][:3])
        found.append(Basic(answer, train, heldout, accepted))
    return tuple(found)


def wrong_answers(fact: Fact) -> list[str]:
    """Short answers to other facts of the same relation, which are wrong here.

    They are in the order of the table, from the line after the fact's own line on, so that facts
    near each other get different wrong answers.
    """
    rows = _rows()[fact.relation]
    own = next(i for i, row in enumerate(rows) if row.answer == fact.answer and fact.subject in row.subjects)
    right = {fact.answer, *rows[own].also_right, *rows[own].doubtful}
    rotated = rows[own + 1 :] + rows[:own]
    return list(
        dict.fromkeys(row.answer for row in rotated if not any(_overlap(row.answer, answer) for answer in right))
    )


def _overlap(one: str, other: str) -> bool:
    """Whether two answers are equal, or one is a more exact form of the other: 法国, 法国巴黎."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) > 1 and not short.isascii() and long.startswith(short))


# --- questions ------------------------------------------------------------------------------------


@cache
def _lent() -> dict[tuple[str, str], str]:
    """(relation, subject) -> another relation in whose wordings the fact is also asked.

    Example: for a place of which only the continent is known, "where is it" asks for the continent.
    If several relations know a place, the first in the file answers.
    """
    taken = {(fact.relation, fact.subject) for fact in facts()}
    lent = {}
    for fact in facts():
        lender = relations()[fact.relation].asked_as
        if lender and (lender, fact.subject) not in taken:
            taken.add((lender, fact.subject))
            lent[fact.relation, fact.subject] = lender
    return lent


def wordings(fact: Fact, split: str) -> tuple[str, ...]:
    """All wordings of "train", "validation" or "test" that ask for the fact."""
    own = relations()[fact.relation].wordings(split)
    lender = _lent().get((fact.relation, fact.subject))
    return own + relations()[lender].wordings(split) if lender else own


def training_questions(fact: Fact) -> list[str]:
    """The training questions about a fact, typed in many ways. What people often ask has more."""
    relation = relations()[fact.relation]
    rng = random.Random(f"{fact.relation}:{fact.subject}")
    names = relation.names.get(fact.subject, ())

    def subject() -> str:
        return rng.choice(names) if names and rng.random() < OTHER_NAME_SHARE else fact.subject

    asked = "often" if fact.subject in relation.often else relation.asked
    templates = wordings(fact, "train")
    shuffled = rng.sample(templates, len(templates))
    return _asked(QUESTIONS_PER_FACT[asked], lambda turn: shuffled[turn % len(shuffled)].format(s=subject()), rng)


def basic_questions(basic: Basic) -> list[str]:
    """The training questions of a basic, typed in many ways."""
    rng = random.Random(basic.answer)
    shuffled = rng.sample(basic.train, len(basic.train))
    return _asked(QUESTIONS_PER_BASIC, lambda turn: shuffled[turn % len(shuffled)], rng)


def _typed(question: str, rng: random.Random) -> str:
    """The question as somebody may type it."""
    return framed(question, rng, form_by_mark(question))


def _asked(count: int, question: Callable[[int], str], rng: random.Random) -> list[str]:
    """`count` different typed questions. `question` gives the wording by its number."""
    asked: dict[str, None] = {}
    turns = itertools.count()
    while len(asked) < count:
        asked[_typed(question(next(turns)), rng)] = None
    return list(asked)


# --- records --------------------------------------------------------------------------------------


def records() -> Iterator[dict[str, Any]]:
    """Chat records. Held-out ones have `split`."""
    for fact in facts():
        for question in training_questions(fact):
            yield _record(fact, question)
    for basic in basics():
        for question in basic_questions(basic):
            yield _basic_record(basic, question)
    for half in HALVES:
        yield from _heldout(half)


def _heldout(half: str) -> Iterator[dict[str, Any]]:
    """The records of one half: some facts of each relation, and all its basics."""
    rng = random.Random(f"knowledge {half}")
    for name in relations():
        mine = [fact for fact in facts() if fact.relation == name and fact.half == half]
        for fact in rng.sample(mine, min(len(mine), HELDOUT_PER_RELATION)):
            question = _typed(rng.choice(wordings(fact, half)).format(s=fact.subject), rng)
            yield _record(fact, question) | {"split": half}
    for basic in basics():
        if basic.half == half:
            for wording in basic.heldout:
                yield _basic_record(basic, _typed(wording, rng)) | {"split": half}


def _record(fact: Fact, question: str) -> dict[str, Any]:
    record = _chat(question, fact.sentence, fact.accepted)
    return record | {"relation": fact.relation, "answer": fact.answer, "cluster": fact.source}


def _basic_record(basic: Basic, question: str) -> dict[str, Any]:
    record = _chat(question, basic.answer, basic.accepted)
    return record | {"relation": BASICS, "answer": basic.answer, "cluster": f"{BASICS}:{basic.answer}"}


def _chat(question: str, answer: str, accepted: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    }
    return record | ({"accepted": list(accepted)} if accepted else {})
