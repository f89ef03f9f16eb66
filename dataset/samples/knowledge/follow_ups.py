"""Conversations about facts in which a later question refers back: 那德国呢？ or 它的货币呢？

Every turn asks for a fact of the knowledge tables, and its answer is the sentence of the fact. The
wordings are in `follow_ups.yaml`. In a held-out conversation all turns use the facts and wordings
of its half.
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
"""Conversations for training."""
NUM_HELDOUT = 100
"""Conversations in each half."""
TURNS = (2, 2, 2, 3, 3)
"""How many questions a conversation has. One of these numbers is drawn."""
OTHER_RELATION_SHARE = 0.5
"""How often the next question is about the same subject, if there is another fact about it."""
OFTEN_WEIGHT = 4
"""How many times as likely a subject is that people often ask about."""
SEED = 6203


def _table() -> dict[str, Any]:
    """The wordings of follow-up questions."""
    return yaml_table(FOLLOW_UPS_FILE)


@cache
def _known(split: str) -> dict[tuple[str, str], Fact]:
    """(relation, subject) -> fact, for all facts that this split may use."""
    return {(fact.relation, fact.subject): fact for fact in knowledge.facts() if split in ("train", fact.half)}


@cache
def _of_relation(relation: str, split: str) -> tuple[Fact, ...]:
    """Those of one relation."""
    return tuple(fact for (name, _), fact in _known(split).items() if name == relation)


def _choose(relation: str, split: str, rng: random.Random, told: Collection[str] = ()) -> Fact:
    """A fact of the relation whose answer is not in `told`."""
    found = [fact for fact in _of_relation(relation, split) if fact.answer not in told]
    often = knowledge.relations()[relation].often
    return rng.choices(found, weights=[OFTEN_WEIGHT if fact.subject in often else 1 for fact in found])[0]


def _others(fact: Fact, split: str) -> list[Fact]:
    """Facts of other relations about the same subject, for a question that says only 它 or 他."""
    subject = fact.answer if fact.relation in _table()["persons"] else fact.subject
    inner = "who" if fact.relation in _table()["persons"] else fact.relation
    names = dict.fromkeys(name for group in _table()["groups"] if inner in group for name in group)
    found = [_known(split).get((name, subject)) for name in names if name != fact.relation]
    return [other for other in found if other is not None]


def _pronoun(fact: Fact) -> str:
    """The pronoun of a person."""
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
    """Relation -> weight, for all relations that a conversation may begin with.

    The split must have enough different answers of it for the longest conversation.
    """
    return {
        name: weight
        for name, weight in _table()["starts"].items()
        if len({fact.answer for fact in _of_relation(name, split)}) >= max(TURNS)
    }


def _steps(turns: list[tuple[str, Fact]]) -> set[tuple[Fact, Fact]]:
    """Each fact of a conversation with the one after it."""
    facts = [fact for _, fact in turns]
    return set(itertools.pairwise(facts))


def follow_ups(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Conversations of two and three questions. The held-out ones come first.

    No two have the same questions. Two facts that follow each other in a held-out conversation
    never do so in training.
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
    """A record. Its fields are about the last fact, because the last answer is scored."""
    messages = []
    for question, fact in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": fact.sentence}]
    last = turns[-1][1]
    record: dict[str, Any] = {"conversations": messages, "kind": "turns"}
    if last.accepted:
        record["accepted"] = list(last.accepted)
    return record | {"relation": last.relation, "answer": last.answer, "cluster": last.source}


def records() -> Iterator[dict[str, Any]]:
    """Chat records of kind `turns`. Held-out ones have `split`."""
    yield from follow_ups(random.Random(SEED))
