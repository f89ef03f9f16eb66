"""Sample preference pairs: a right, kind answer beside one that is wrong, evasive, rude, repetitive or off the point.

The prompts are knowledge questions, sums and everyday requests, the right answers those of the chat samples. The bad
answers are put together from tables and speak of what was asked, so that hardly two are equal. Held-out pairs are about
other facts, sums and topics than training pairs. Neither answer is longer on average, so length tells nothing.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dataset.samples import arithmetic, dialogue, knowledge

FOLDER = Path(__file__).parent
WORDINGS_FILE = FOLDER / "preference_wordings.yaml"
STYLES_FILE = FOLDER / "preference_styles.yaml"

KINDS = ("wrong", "evasive", "rude", "repetitive", "off_topic")
HELDOUT_SHARE = {"facts": 0.2, "sums": 0.2, "chats": 0.25}
"""Share of the facts, pairs of operands and everyday topics that only held-out pairs are about."""
NUM_TRAINING = {"facts": 240, "sums": 80, "chats": 480}
NUM_HELDOUT = {"facts": 72, "sums": 24, "chats": 144}
"""Pairs of each kind by the source of their prompts."""
NUM_WRONG_TRAINING = {"facts": 440, "sums": 360}
NUM_WRONG_HELDOUT = {"facts": 132, "sums": 108}
"""The same for wrong answers: only facts and sums can be plainly wrong."""
NUM_DRAFTS = 80
"""Bad answers drafted for one prompt, of which the one with the best length is taken."""
PLAIN_OFF_TOPIC_SHARE = 0.3
GOOD_START_SHARE = 0.3
WHOLE_LEAD_SHARE = 0.2
SLIPS = (1, -1, 2, -2, 10, -10)
"""By how much wrong results miss the right one."""
THANKS = "thanks"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request with its right answer."""

    family: str
    """The relation, "sum", or the everyday kind."""
    tone: str
    """Which bad answers fit."""
    question: str
    answer: str
    topic: str
    about: str
    """What was asked, in a few words that a bad answer can take up."""
    wrong: tuple[str, ...] = ()


Entry = TypeVar("Entry")


@cache
def _wordings() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(WORDINGS_FILE.read_text(encoding="utf-8"))
    return loaded


@cache
def _styles() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(STYLES_FILE.read_text(encoding="utf-8"))
    return loaded


# --- prompts ----------------------------------------------------------------------------------------------------


def _fact_prompts(*, heldout: bool) -> list[Prompt]:
    """Facts of one side. Held-out pairs ask in the wordings that the knowledge samples hold out as well."""
    rng = random.Random(5501)
    groups: dict[str, list[knowledge.Fact]] = {}
    for fact in knowledge.facts():
        groups.setdefault(fact.relation, []).append(fact)
    prompts = []
    for name, group in groups.items():
        relation, about = knowledge.relations()[name], _wordings()["facts"][name]
        for fact in _side(group, HELDOUT_SHARE["facts"], rng, heldout=heldout):
            wrong = [relation.sentence.format(s=fact.subject, a=answer) for answer in knowledge.wrong_answers(fact)]
            prompts += [
                Prompt(
                    family=name,
                    tone="ask",
                    question=wording.format(s=fact.subject),
                    answer=fact.sentence,
                    topic=fact.subject,
                    about=about.format(s=fact.subject),
                    wrong=tuple(wrong),
                )
                for wording in (relation.heldout if heldout else relation.train)
            ]
    return prompts


def _sum_prompts(*, heldout: bool) -> list[Prompt]:
    """Sums of one side; the pairs of operands that the arithmetic samples hold out are on neither."""
    rng = random.Random(5502)
    unseen = arithmetic.heldout_pairs()
    operands = range(1, arithmetic.LIMIT + 1)
    pairs = [(a, b) for a in operands for b in operands if a <= b and (a, b) not in unseen]
    mine = set(_side(pairs, HELDOUT_SHARE["sums"], rng, heldout=heldout))
    wordings = _wordings()["sums"]["heldout" if heldout else "train"]
    prompts = []
    for problem in arithmetic.problems():
        if problem.pair in mine and problem.result >= 0:
            about = f"{problem.a}{problem.sign}{problem.b}"
            results = [problem.result + slip for slip in SLIPS]
            prompts.append(
                Prompt(
                    family="sum",
                    tone="sum",
                    question=rng.choice(wordings[problem.sign]).format(a=problem.a, b=problem.b),
                    answer=f"{problem.equation}。",
                    topic=about,
                    about=about,
                    wrong=tuple(f"{about}={result}。" for result in results if result >= 0),
                )
            )
    return prompts


def _chat_prompts(*, heldout: bool) -> list[Prompt]:
    """Everyday topics of one side, in wordings that the dialogue samples don't use."""
    rng = random.Random(5503)
    groups: dict[str, list[dialogue.Item]] = {}
    for item in dialogue.items():
        groups.setdefault(item.kind, []).append(item)
    prompts = []
    for kind, entry in _wordings()["chats"].items():
        for item in _side(groups[kind], HELDOUT_SHARE["chats"], rng, heldout=heldout):
            # A bad answer speaks to the user: what was "I" becomes "you".
            topic, about = (text.format(t=item.topic).replace("我", "你") for text in ("{t}", entry["about"]))
            for ask in entry["ask"]:
                prompts.append(Prompt(kind, entry["tone"], ask.format(t=item.topic), item.answer, topic, about))
            if kind in _wordings()[THANKS]:
                thanks = _wordings()[THANKS][kind]
                answer = thanks["answer"].format(t=topic)
                prompts += [Prompt(THANKS, THANKS, ask.format(t=topic), answer, topic, topic) for ask in thanks["ask"]]
    return prompts


def _side(everything: Sequence[Entry], share: float, rng: random.Random, *, heldout: bool) -> list[Entry]:
    """The held-out share of a list, or the rest of it."""
    chosen = set(rng.sample(range(len(everything)), max(1, round(share * len(everything)))))
    return [entry for index, entry in enumerate(everything) if (index in chosen) == heldout]


# --- bad answers ------------------------------------------------------------------------------------------------


def _styled(style: Mapping[str, Mapping[str, list[str]]], prompt: Prompt, rng: random.Random) -> str:
    """An evasive or a rude answer of one to three clauses."""
    parts = style[prompt.tone]
    lead = rng.choice(parts["opening"]) + rng.choice(parts["core"])
    if rng.random() < WHOLE_LEAD_SHARE:
        lead = rng.choice(parts["whole"])
    clauses = [lead.format(x=prompt.about, t=prompt.topic)]
    length = rng.choice((1, 2, 2, 3, 3))
    if length == 3:
        clauses.append(rng.choice(parts["pad"]))
    if length >= 2:
        clauses.append(rng.choice(parts["close"]))
    return "，".join(clauses) + "。"


def _repetitive(prompt: Prompt, rng: random.Random) -> str:
    """One phrase again and again, sometimes after a good beginning."""
    times = rng.randint(3, 8)
    if prompt.family == "sum":
        first, _, second = re.split("([+-])", prompt.about)
        word = rng.choice(
            (f"={prompt.about}", f"，{prompt.about}", "等于", "得", "是", "算", "几", f"、{first}", f"、{second}")
        )
        return (word[1:] if word[0] == "、" else prompt.about) + word * times + "。"
    clauses = re.split("[，。！？；：]", prompt.answer.rstrip("。！？"))
    phrase = rng.choice((prompt.topic, prompt.about, f"{prompt.topic}就是", *clauses))
    separator = "" if phrase.endswith("就是") else rng.choice(("，", "，", "、", ""))
    start = f"{clauses[0]}，" if len(clauses) > 1 and phrase != clauses[0] and rng.random() < GOOD_START_SHARE else ""
    return start + separator.join([phrase] * times) + "。"


def _off_topic(others: Sequence[Prompt], prompt: Prompt, rng: random.Random) -> str:
    """A right answer to something else, plain or after an opening that changes the subject."""
    other = rng.choice(others)
    while _related(prompt, other):
        other = rng.choice(others)
    opening = "" if rng.random() < PLAIN_OFF_TOPIC_SHARE else rng.choice(_styles()["off_topic"])
    return opening + other.answer


def _related(one: Prompt, other: Prompt) -> bool:
    """Whether an answer to one could pass for an answer to the other."""
    close = [set(kinds) for kinds in _wordings()["close_kinds"]]
    return (
        one.family == other.family
        or any({one.family, other.family} <= kinds for kinds in close)
        or one.topic in other.answer
        or other.topic in one.question
    )


def _drafts(kind: str, prompt: Prompt, others: Sequence[Prompt], rng: random.Random) -> list[str]:
    """Bad answers of one kind, in random order."""
    if kind == "wrong":
        return rng.sample(prompt.wrong, len(prompt.wrong))
    if kind == "repetitive":
        return [_repetitive(prompt, rng) for _ in range(NUM_DRAFTS)]
    if kind == "off_topic":
        return [_off_topic(others, prompt, rng) for _ in range(NUM_DRAFTS)]
    return [_styled(_styles()[kind], prompt, rng) for _ in range(NUM_DRAFTS)]


# --- pairs ------------------------------------------------------------------------------------------------------


def _pairs(*, heldout: bool) -> Iterator[dict[str, Any]]:
    """The pairs of one side, kind by kind."""
    rng = random.Random(5504 + heldout)
    sources = {
        "facts": _fact_prompts(heldout=heldout),
        "sums": _sum_prompts(heldout=heldout),
        "chats": _chat_prompts(heldout=heldout),
    }
    others = [prompt for prompts in sources.values() for prompt in prompts if prompt.family != THANKS]
    numbers, numbers_wrong = (NUM_HELDOUT, NUM_WRONG_HELDOUT) if heldout else (NUM_TRAINING, NUM_WRONG_TRAINING)
    used: set[str] = set()
    for kind in KINDS:
        excess = 0  # characters by which the bad answers of this kind are longer so far
        prompts = []
        for source, count in (numbers_wrong if kind == "wrong" else numbers).items():
            fitting = [prompt for prompt in sources[source] if kind != "evasive" or prompt.tone != THANKS]
            prompts += rng.sample(fitting, count)
        rng.shuffle(prompts)
        for prompt in prompts:
            # Lengths vary around the right answer's and make up for what earlier pairs had too much or too little.
            target = len(prompt.answer) * rng.uniform(0.85, 1.15) - min(max(excess / 4, -8), 8)
            drafts = _drafts(kind, prompt, others, rng)
            fresh = [draft for draft in drafts if draft not in used]  # a fact in many wordings may have no other
            bad = min(fresh or drafts, key=lambda draft: abs(len(draft) - target))
            used.add(bad)
            excess += len(bad) - len(prompt.answer)
            yield _record(prompt, bad, kind, heldout=heldout)


def _record(prompt: Prompt, bad: str, kind: str, *, heldout: bool) -> dict[str, Any]:
    user = {"role": "user", "content": prompt.question}
    record: dict[str, Any] = {
        "chosen": [user, {"role": "assistant", "content": prompt.answer}],
        "rejected": [user, {"role": "assistant", "content": bad}],
        "kind": kind,
    }
    if heldout:
        record["split"] = "heldout"
    return record


def records() -> Iterator[dict[str, Any]]:
    """Preference records with `kind`; held-out ones carry `split`."""
    yield from _pairs(heldout=False)
    yield from _pairs(heldout=True)
