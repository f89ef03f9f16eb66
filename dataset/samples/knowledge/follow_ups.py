"""Conversations about facts in which a later question refers back: 那德国呢？ or 它的货币呢？

Every turn asks for a fact of the knowledge tables and has its sentence as the answer.
`follow_ups.yaml` says how conversations go on. Held-out conversations keep to the facts and
wordings of their half in every turn.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.frames import draw, form_by_mark, framed, marked
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.knowledge.questions import Fact
from dataset.samples.tables import yaml_table

FOLLOW_UPS_FILE = Path(__file__).with_name("follow_ups.yaml")
NUM_TRAINING = 1500
NUM_HELDOUT = 100
"""Conversations in each half."""
TURNS = (2, 2, 2, 3, 3)
"""How many questions a conversation has, each as likely as it stands here."""
OTHER_RELATION_SHARE = 0.5
"""How often the next question is another one about the same subject, where there is one."""
OFTEN_WEIGHT = 4
"""How much likelier a subject comes up that people ask about first."""
SEED = 6203


def _table() -> dict[str, Any]:
    return yaml_table(FOLLOW_UPS_FILE)


@cache
def _known(split: str) -> dict[tuple[str, str], Fact]:
    """(relation, subject) -> fact, of those that a conversation of this split may speak of."""
    return {(fact.relation, fact.subject): fact for fact in knowledge.facts() if split in ("train", fact.half)}


@cache
def _of_relation(relation: str, split: str) -> tuple[Fact, ...]:
    """The facts of one relation among those."""
    return tuple(fact for (name, _), fact in _known(split).items() if name == relation)


def _choose(relation: str, split: str, rng: random.Random, told: Collection[str] = ()) -> Fact:
    """A fact of the relation whose answer has not been told yet."""
    found = [fact for fact in _of_relation(relation, split) if fact.answer not in told]
    often = knowledge.relations()[relation].often
    return rng.choices(found, weights=[OFTEN_WEIGHT if fact.subject in often else 1 for fact in found])[0]


def _others(fact: Fact, split: str) -> list[Fact]:
    """Facts of other relations that one may ask for after this one, without naming the subject
    again."""
    subject = fact.answer if fact.relation in _table()["persons"] else fact.subject
    inner = "who" if fact.relation in _table()["persons"] else fact.relation
    names = dict.fromkeys(name for group in _table()["groups"] if inner in group for name in group)
    found = [_known(split).get((name, subject)) for name in names if name != fact.relation]
    return [other for other in found if other is not None]


def _pronoun(fact: Fact) -> str:
    """How a question refers back to the subject."""
    return "她" if fact.subject in _table()["women"] else "他"


def _turns(split: str, rng: random.Random) -> list[tuple[str, Fact]]:
    """The questions of one conversation with the facts that answer them."""
    fact = _choose(draw(_starts(split), rng), split, rng)
    first = rng.choice(knowledge.wordings(fact, split)).format(s=fact.subject)
    turns = [(framed(first, rng, form_by_mark(first)), fact)]
    for _ in range(rng.choice(TURNS) - 1):
        told = {asked.answer for _, asked in turns if asked.relation == fact.relation}
        others = [other for other in _others(fact, split) if other not in (asked for _, asked in turns)]
        if others and rng.random() < OTHER_RELATION_SHARE:
            fact = rng.choice(others)
            wording = rng.choice(_table()["about"][fact.relation][split]).format(it=_pronoun(fact))
        else:
            fact = _choose(fact.relation, split, rng, told)
            wording = rng.choice(_table()["another"][split]).format(s=fact.subject)
        turns.append((marked(wording, rng, form_by_mark(wording)), fact))
    return turns


@cache
def _starts(split: str) -> dict[str, int]:
    """The relations that a conversation may begin with, weighted: the split knows an answer of them
    for every turn."""
    return {
        name: weight
        for name, weight in _table()["starts"].items()
        if len({fact.answer for fact in _of_relation(name, split)}) >= max(TURNS)
    }


def _steps(turns: list[tuple[str, Fact]]) -> set[tuple[Fact, Fact]]:
    facts = [fact for _, fact in turns]
    return set(itertools.pairwise(facts))


def follow_ups(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Conversations of two and three questions, first the held-out ones.

    No two have the same questions, and no training conversation goes from one fact to another as a
    held-out one does.
    """
    heldout_steps: set[tuple[Fact, Fact]] = set()
    seen: set[tuple[str, ...]] = set()
    for split, count in (*((half, NUM_HELDOUT) for half in knowledge.HALVES), ("train", NUM_TRAINING)):
        made = 0
        while made < count:
            turns = _turns(split, rng)
            questions = tuple(question for question, _ in turns)
            if questions in seen or (split == "train" and _steps(turns) & heldout_steps):
                continue
            seen.add(questions)
            if split != "train":
                heldout_steps |= _steps(turns)
            made += 1
            yield _record(turns) | ({} if split == "train" else {"split": split})


def _record(turns: list[tuple[str, Fact]]) -> dict[str, Any]:
    """A conversation; its fields speak of the last fact, which a held-out conversation is scored
    on."""
    messages = []
    for question, fact in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": fact.sentence}]
    last = turns[-1][1]
    record: dict[str, Any] = {"conversations": messages, "kind": "turns"}
    if last.accepted:
        record["accepted"] = list(last.accepted)
    return record | {"relation": last.relation, "answer": last.answer, "cluster": last.source}


def records() -> Iterator[dict[str, Any]]:
    """Chat records of kind `turns`. A training record has no `split`, a held-out one says its
    half."""
    yield from follow_ups(random.Random(SEED))
