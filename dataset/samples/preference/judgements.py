"""Pairs in which the answer judges something. No chat sample asks these questions.

There are three kinds of questions. The user claims something, and the bad answer agrees with what
is wrong or denies what is right. The user asks which of two things is right, and the bad answer
names the other one. The user asks two things, and one of the answers is wrong. Facts and sums come
from the chat samples. Each side has its own wordings (`judgements.yaml`), facts and sums.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dataset.samples.frames import bare
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.preference.answers import Others, stated, wrong_fact, wrong_sum
from dataset.samples.preference.prompts import Prompt, equation, wordings
from dataset.samples.tables import yaml_table

TABLE_FILE = Path(__file__).with_name("judgements.yaml")
NUM_WRONG = 12
"""How many wrong answers of a fact are tried."""
NOT_TO_CHOOSE = ("animal_legs", "animal_sound", "element_class")
"""Relations whose answers make no good question "this or that"."""

REPEATED = ("省", "人")
"""Words that come after both answers: 丹麦人还是美国人."""

Judged = tuple[Prompt, list[str]]
"""A question with its good answer, and bad answers."""


def _wrong_statements(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """False statements about the fact or the sum, in the words of the right answer."""
    if prompt.fact is None:
        found = wrong_sum(prompt, others, rng)
    else:
        found = [text for text in wrong_fact(prompt, others, rng) if text not in stated()][:NUM_WRONG]
    return [text for text in found if text not in prompt.right and "=" not in prompt.answer.partition("=")[2]]


def _claimed(prompt: Prompt, others: Others, rng: random.Random, *, true: bool) -> Judged | None:
    """The user claims something true or false; the good answer judges it rightly."""
    wrong = _wrong_statements(prompt, others, rng)
    if not wrong:
        return None
    table = yaml_table(TABLE_FILE)["claims"]
    entry = table["is" if "是" in prompt.answer and rng.random() < 0.5 else "right"]
    # The false statement of the most similar length, so that neither answer is longer.
    false = min(wrong, key=lambda text: abs(len(text) - len(prompt.answer)) + rng.random())
    question = rng.choice(entry[others.side]).format(c=bare(prompt.answer if true else false))
    said = (entry["agrees"], entry["denies"])
    good, bad = (said[0] + prompt.answer, said[1] + false) if true else (said[1] + prompt.answer, said[0] + false)
    return replace(prompt, question=question, answer=good, right=frozenset({good})), [bad]


def agreeing(prompt: Prompt, others: Others, rng: random.Random) -> Judged | None:
    """The user is wrong, and the bad answer says yes."""
    return _claimed(prompt, others, rng, true=False)


def doubting(prompt: Prompt, others: Others, rng: random.Random) -> Judged | None:
    """The user is right, and the bad answer says no."""
    return _claimed(prompt, others, rng, true=True)


def choice(prompt: Prompt, others: Others, rng: random.Random) -> Judged | None:
    """The question offers two answers, and the bad answer takes the wrong one."""
    wrong = _wrong_statements(prompt, others, rng)
    if prompt.fact is not None:
        relation = knowledge.relations()[prompt.fact.relation]
        if relation.name in NOT_TO_CHOOSE:
            return None
        answers = {
            relation.sentence.format(s=prompt.fact.subject, a=a): a for a in knowledge.wrong_answers(prompt.fact)
        }
        wrong = [text for text in wrong if text in answers]
        if not wrong:
            return None
        pick = min(wrong, key=lambda text: abs(len(text) - len(prompt.answer)) + rng.random())
        before, after = relation.sentence.split("{a}")
        if before[-1:] in ("“", "《"):
            link = after[0] + "还是" + before[-1]
        else:
            link = (bare(after) if bare(after) in REPEATED else "") + "还是"
        two = link.join(rng.sample([prompt.fact.answer, answers[pick]], 2))
        asked = bare(relation.sentence.format(s=prompt.fact.subject, a=two))
    else:
        found = equation(prompt.answer)
        if found is None or not wrong:
            return None
        pick = rng.choice(wrong)
        results = rng.sample([str(found[3]), bare(pick).partition("=")[2]], 2)
        asked = f"{found[0]}{found[1]}{found[2]}{rng.choice(('等于', '=', '是'))}{'还是'.join(results)}"
    question = rng.choice(yaml_table(TABLE_FILE)["choices"][others.side]).format(c=asked)
    return replace(prompt, question=question), [pick]


def _question(fact: knowledge.Fact, others: Others, rng: random.Random) -> str:
    """The fact in one of the side's wordings, as a question and not as a request."""
    ways = knowledge.wordings(fact, others.side)
    asking = [way for way in ways if way[-1] not in "。，" and not way.startswith("告诉我")]
    return bare(rng.choice(asking or ways).format(s=fact.subject)) + "？"


def half_right(prompt: Prompt, others: Others, rng: random.Random) -> Judged | None:
    """The question asks two things, and one of the bad answer's sentences is wrong."""
    fact = prompt.fact
    if fact is None or prompt.family in wordings()["broad"]:
        return None
    known = [
        other
        for other in others.by_subject[fact.subject].values()
        if other.relation != fact.relation
        and other.relation not in wordings()["broad"]
        and not (other.answer in fact.answer or fact.answer in other.answer)
        and other.relation not in getattr(knowledge.relations()[fact.relation], "also_right", ())
    ]
    if not known:
        return None
    facts = rng.sample([fact, rng.choice(known)], 2)
    asked = [_question(one, others, rng) for one in facts]
    question = rng.choice(yaml_table(TABLE_FILE)["doubles"][others.side]).format(x=asked[0], y=asked[1])
    answer = "".join(one.sentence for one in facts)
    bad = []
    for place, one in enumerate(facts):
        sentence = knowledge.relations()[one.relation].sentence
        for wrong in rng.sample(knowledge.wrong_answers(one), min(NUM_WRONG, len(knowledge.wrong_answers(one)))):
            text = sentence.format(s=one.subject, a=wrong)
            if text not in stated():
                bad.append(text + facts[1].sentence if place == 0 else facts[0].sentence + text)
    rng.shuffle(bad)
    return replace(prompt, question=question, answer=answer, right=frozenset({answer})), bad


JUDGES: dict[str, Callable[[Prompt, Others, random.Random], Judged | None]] = {
    "agreeing": agreeing,
    "doubting": doubting,
    "choice": choice,
    "half_right": half_right,
}
