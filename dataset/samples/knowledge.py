"""Knowledge questions: facts from a table, each asked in every wording of its relation.

`knowledge_facts.tsv` holds the facts, `knowledge_relations.yaml` how each relation is asked and answered. The answer
sentence is the same for every wording, so a model has to understand the question, not guess a style. Some wordings
are held out whole: no fact is asked in them in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FACTS_FILE = Path(__file__).with_name("knowledge_facts.tsv")
RELATIONS_FILE = Path(__file__).with_name("knowledge_relations.yaml")
LIST_SEPARATOR = "、"
HELDOUT_QUESTIONS_PER_FACT = 2


@dataclass(frozen=True, slots=True)
class Fact:
    """One true statement: `sentence` says in full that `relation` of `subject` is `answer`."""

    relation: str
    subject: str
    answer: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Relation:
    """How one kind of fact is asked and answered. `{s}` stands for the subject, `{a}` for the short answer."""

    name: str
    sentence: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FactRow:
    """One line of the table: subjects that share an answer, and what else would be right for them."""

    relation: str
    answer: str
    subjects: tuple[str, ...]
    also_right: frozenset[str]


@cache
def relations() -> dict[str, Relation]:
    """The relations by name, in the order of their file."""
    loaded = yaml.safe_load(RELATIONS_FILE.read_text(encoding="utf-8"))
    return {
        name: Relation(name, entry["sentence"], tuple(entry["train"]), tuple(entry["heldout"]))
        for name, entry in loaded.items()
    }


@cache
def _rows() -> tuple[FactRow, ...]:
    rows = []
    for line in FACTS_FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        relation, answer, subjects, *also_right = line.split("\t")
        others = also_right[0].split(LIST_SEPARATOR) if also_right else []
        rows.append(FactRow(relation, answer, tuple(subjects.split(LIST_SEPARATOR)), frozenset(others)))
    return tuple(rows)


def facts() -> list[Fact]:
    """Every fact, in the order of the table."""
    return [
        Fact(row.relation, subject, row.answer, relations()[row.relation].sentence.format(s=subject, a=row.answer))
        for row in _rows()
        for subject in row.subjects
    ]


def wrong_answers(fact: Fact) -> list[str]:
    """Short answers to other facts of the same relation that are wrong here, those that follow in the table first.

    Starting behind the fact's own line gives neighbouring facts different wrong answers.
    """
    rows = [row for row in _rows() if row.relation == fact.relation]
    own = next(i for i, row in enumerate(rows) if row.answer == fact.answer and fact.subject in row.subjects)
    rotated = rows[own + 1 :] + rows[:own]
    return list(dict.fromkeys(row.answer for row in rotated if row.answer not in rows[own].also_right | {fact.answer}))


def training_questions(fact: Fact) -> list[str]:
    """The fact asked in each training wording of its relation."""
    return [wording.format(s=fact.subject) for wording in relations()[fact.relation].train]


def records() -> Iterator[dict[str, Any]]:
    """Chat records: each fact in every training wording, and in two held-out wordings taken in turn."""
    asked: dict[str, int] = {}  # facts of each relation so far, so that all its held-out wordings get their share
    for fact in facts():
        for question in training_questions(fact):
            yield _record(fact, question)
        heldout = relations()[fact.relation].heldout
        position = asked.get(fact.relation, 0)
        asked[fact.relation] = position + 1
        for turn in range(HELDOUT_QUESTIONS_PER_FACT):
            wording = heldout[(position + turn) % len(heldout)]
            yield {**_record(fact, wording.format(s=fact.subject)), "split": "heldout"}


def _record(fact: Fact, question: str) -> dict[str, Any]:
    return {
        "conversations": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": fact.sentence},
        ],
        "relation": fact.relation,
        "answer": fact.answer,
    }
