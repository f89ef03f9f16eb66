"""Claims about facts, true and false, and doubts about a right answer: 真的吗？ 应该是里昂吧？

`dataset/samples/claims.py` words them. `claims.tsv` holds the false claims about basics, and
`claims.yaml` other words in which a fact can be stated. Each held-out half has its own wordings
and, as in `questions.py`, its own facts.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples import claims
from dataset.samples.claims import HALVES, KIND, Way, conversation, doubts, judged, typed, ways
from dataset.samples.frames import bare, form_by_mark, framed, marked
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.knowledge.questions import BASICS, Basic, Fact, basics, facts, relations, wrong_answers
from dataset.samples.tables import cells, yaml_table

FALSE_FILE = Path(__file__).with_name("claims.tsv")
FORMS_FILE = Path(__file__).with_name("claims.yaml")
CLAIMS_PER_FACT = {"often": 2, "": 1, "seldom": 0}
"""Wordings in which a fact is claimed, by how often people ask about it. Each wording is used for a
true and for a false claim."""
CLAIMS_PER_BASIC = 2
NUM_DOUBTS = 700
"""Conversations with a doubt."""
DOUBTS = {"asks": 5, "objects": 4, "agrees": 3}
"""What the user does after a right answer, by weight."""
AFTER_CLAIM_SHARE = 0.3
"""Share of these conversations that begin with a claim instead of a question."""
NUM_HELDOUT = 120
"""Claims in each half, as many true as false."""
FORM_SHARE = 0.4
"""How often a fact is stated in other words than its sentence, if the table has any."""
SEED = 8804


@cache
def claimed_facts() -> tuple[Fact, ...]:
    """The facts about which one can make a false claim."""
    left_out = yaml_table(FORMS_FILE)["left_out"]
    return tuple(fact for fact in facts() if fact.relation not in left_out and false_answers(fact))


@cache
def true_sentences() -> frozenset[str]:
    """All sentences that are right by the tables."""
    return frozenset(itertools.chain.from_iterable((fact.sentence, *fact.accepted) for fact in facts()))


def false_answers(fact: Fact) -> list[str]:
    """Short answers that are clearly wrong: not even a part of them is right."""
    sentence = relations()[fact.relation].sentence
    return [
        answer
        for answer in wrong_answers(fact)
        if sentence.format(s=fact.subject, a=answer) not in true_sentences()
        and (fact.relation != "who" or not _share_a_word(answer, " ".join((fact.answer, *fact.accepted))))
    ]


def _share_a_word(one: str, other: str) -> bool:
    """Whether two descriptions share two characters in a row: 唐代诗人, 唐代的大诗人."""
    return any(one[place : place + 2] in other for place in range(len(one) - 1))


@cache
def false_claims() -> dict[str, tuple[str, ...]]:
    """Answer of a basic -> the false claims about it."""
    return {answer: tuple(listed.split("|")) for answer, listed in cells(FALSE_FILE)}


# --- claims ---------------------------------------------------------------------------------------


def _about_fact(fact: Fact, way: Way, rng: random.Random, *, true: bool) -> dict[str, Any]:
    """A record in which the fact is claimed in one wording, with its answer or with a wrong one."""
    relation = relations()[fact.relation]
    forms = yaml_table(FORMS_FILE)["forms"].get(fact.relation, ())
    form = rng.choice(forms) if forms and rng.random() < FORM_SHARE else bare(relation.sentence)
    claim = form.format(s=fact.subject, a=fact.answer if true else rng.choice(false_answers(fact)))
    record = _claim(way, claim, (fact.sentence, *fact.accepted), rng, true=true)
    return record | {"relation": fact.relation, "answer": fact.answer, "cluster": fact.source}


def _about_basic(basic: Basic, way: Way, rng: random.Random, *, true: bool) -> dict[str, Any]:
    """A record in which the basic is claimed, or something false about it."""
    claim = basic.answer if true else rng.choice(false_claims()[basic.answer])
    record = _claim(way, claim, (basic.answer, *basic.accepted), rng, true=true)
    return record | {"relation": BASICS, "answer": basic.answer, "cluster": f"{BASICS}:{basic.answer}"}


def _claim(way: Way, claim: str, right: Sequence[str], rng: random.Random, *, true: bool) -> dict[str, Any]:
    answer = judged(way, claim, right[0], true=true)
    accepted = [text for text in claims.also_right(right, true=true) if text != answer]
    messages = conversation(typed(way, claim, rng), answer)
    return {"conversations": messages, "kind": KIND, "accepted": accepted}


def _trained(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Each fact and basic in some wordings, with a true and a false claim in each."""
    for fact in claimed_facts():
        relation = relations()[fact.relation]
        count = CLAIMS_PER_FACT["often" if fact.subject in relation.often else relation.asked]
        for way, true in itertools.product(rng.sample(ways("train"), count), (True, False)):
            yield _about_fact(fact, way, rng, true=true)
    for basic in basics():
        if basic.answer in false_claims():
            for way, true in itertools.product(rng.sample(ways("train"), CLAIMS_PER_BASIC), (True, False)):
                yield _about_basic(basic, way, rng, true=true)


def _heldout(half: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Claims about facts and basics of one half, in its wordings."""
    known = [fact for fact in claimed_facts() if fact.half == half]
    simple = [basic for basic in basics() if basic.half == half and basic.answer in false_claims()]
    for index, fact in enumerate(rng.sample(known, NUM_HELDOUT - len(simple[: NUM_HELDOUT // 4]))):
        yield _about_fact(fact, rng.choice(ways(half)), rng, true=index % 2 == 0) | {"split": half}
    for index, basic in enumerate(simple[: NUM_HELDOUT // 4]):
        yield _about_basic(basic, rng.choice(ways(half)), rng, true=index % 2 == 0) | {"split": half}


# --- doubts ---------------------------------------------------------------------------------------


@cache
def _doubted() -> tuple[Fact, ...]:
    """Facts in whose sentence the answer comes right after 是."""
    return tuple(fact for fact in claimed_facts() if "是{a}" in relations()[fact.relation].sentence)


def _doubt(rng: random.Random) -> dict[str, Any]:
    """A fact that the user asks for or claims, the right answer, and a doubt of the user's."""
    fact = rng.choice(_doubted())
    name = rng.choices(list(DOUBTS), weights=list(DOUBTS.values()))[0]
    if rng.random() < AFTER_CLAIM_SHARE:
        opened = _about_fact(fact, rng.choice(ways("train")), rng, true=rng.random() < 0.5)["conversations"]
        question, first = (message["content"] for message in opened)
    else:
        asked = rng.choice(knowledge.wordings(fact, "train")).format(s=fact.subject)
        question, first = framed(asked, rng, form_by_mark(asked)), fact.sentence
    way = rng.choice(doubts(name))
    said = way.text.format(a=rng.choice(false_answers(fact)) if name == "objects" else fact.answer)
    last = judged(way, "是", fact.sentence, true=name != "objects")
    messages = conversation(question, first, marked(said, rng, form_by_mark(way.text)), last)
    return {
        "conversations": messages,
        "kind": KIND,
        "relation": fact.relation,
        "answer": fact.answer,
        "cluster": fact.source,
    }


def records() -> Iterator[dict[str, Any]]:
    """Chat records of kind `claims`, no two with the same questions. Held-out ones have `split`."""
    rng = random.Random(SEED)
    seen: set[tuple[str, ...]] = set()
    made = [*itertools.chain.from_iterable(_heldout(half, rng) for half in HALVES), *_trained(rng)]
    for record in [*made, *(_doubt(rng) for _ in range(NUM_DOUBTS))]:
        asked = tuple(message["content"] for message in record["conversations"] if message["role"] == "user")
        if asked not in seen:
            seen.add(asked)
            yield record
