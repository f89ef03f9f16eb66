"""Bad answers for the preference pairs: drafts of each kind.

`pairs.py` takes the draft of the best length. Most drafts are fluent and plausible: one thing is
wrong, and the rest reads like an answer of the samples. Each function of MAKERS gets a question and
the other questions of its side (`Others`). It returns drafts, none of which may be a right answer.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.arithmetic.problems import LIMIT, Problem
from dataset.samples.danger import conversations as danger
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.preference.prompts import Neighbours, Prompt, Side, core, equation, facts, prompts, wordings
from dataset.samples.tables import yaml_table

STYLES_FILE = Path(__file__).with_name("styles.yaml")
FLUENT_FILE = Path(__file__).with_name("fluent.yaml")

NUM_DRAFTS = 40
"""Drafts of a kind that draws its words."""
NUM_NEAREST = 8
"""How many similar questions give their answers as drafts."""
PLAIN_OFF_TOPIC_SHARE = 0.3
"""Share of the answers to something else that have no opening."""
GOOD_START_SHARE = 0.3
"""How often an answer that repeats itself begins well."""
WHOLE_LEAD_SHARE = 0.2
"""How often an evasive or rude answer begins with a whole clause of the table."""
LEAD_SHARE = 0.25
"""Share of the answers that are too long which begin with talk."""
BARE_SHARE = 0.35
"""Share of the impolite answers that do not answer the question."""
HONEST_SHARE = 0.5
"""Share of the refusals that use an honest line, which would be right for an untaught question."""
SLIPS = {1: 5, -1: 5, 10: 3, -10: 3, 2: 1, -2: 1}
"""Difference between a wrong result and the right one -> weight."""


def styles() -> dict[str, Any]:
    """Parts of evasive and rude answers."""
    return yaml_table(STYLES_FILE)


def fluent() -> dict[str, Any]:
    """Parts of the other bad answers."""
    return yaml_table(FLUENT_FILE)


class Others:
    """All questions of one side, arranged so that other answers are found fast."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.by_source = prompts(side)
        self.everything = [prompt for source in ("facts", "sums", "everyday") for prompt in self.by_source[source]]
        self.by_subject: dict[str, dict[str, knowledge.Fact]] = defaultdict(dict)
        keys = set()
        for prompt in self.by_source["facts"]:
            keys.add(prompt.key)
        for fact in knowledge.facts():
            if getattr(fact, "source", f":{fact.subject}").partition(":")[2] in keys:
                self.by_subject[fact.subject].setdefault(fact.relation, fact)
        self.by_family: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in (*self.by_source["facts"], *self.by_source["everyday"]):
            self.by_family[prompt.family].append(prompt)
        self.honest = Neighbours(self.by_source["unknown"])
        self.taught = Neighbours([*self.by_source["facts"], *self.by_source["basics"]])
        self.alike = {source: Neighbours(self.by_source[source]) for source in ("sums", "feelings", "chat")}


# --- wrong ----------------------------------------------------------------------------------------


def wrong_fact(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """The right sentence, with the answer of another fact."""
    if prompt.fact is None:
        return []
    sentence = knowledge.relations()[prompt.fact.relation].sentence
    answers = knowledge.wrong_answers(prompt.fact)
    return [sentence.format(s=prompt.fact.subject, a=answer) for answer in rng.sample(answers, len(answers))]


def wrong_sum(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """The equation with a wrong result: a little off, with swapped digits, or of another sign."""
    found = equation(prompt.answer)
    if found is None:
        return []
    if prompt.source == "steps":
        start, _, last = prompt.answer.rstrip("。").rpartition("=")
        return [f"{start}={wrong}。" for wrong in _misses(int(last), rng)]
    a, sign, b, result = found
    head, tail = f"{a}{sign}{b}=", prompt.answer.partition("=")[2].removeprefix(str(result))
    drafts = [f"{head}{wrong}{_with_result(tail, result, wrong)}" for wrong in _misses(result, rng, a, sign, b)]
    if prompt.source == "stories":  # a wrong sign for the story, with its right result
        for other in {"+": "-×", "-": "+", "×": "+", "÷": "-"}[sign]:
            wrong = Problem(a, other, b).result
            if wrong >= 0 and wrong != result and max(a, b, wrong) <= 100:
                drafts += [f"{a}{other}{b}={wrong}{_with_result(tail, result, wrong)}"] * 2
        rng.shuffle(drafts)
    return drafts


def _misses(result: int, rng: random.Random, a: int = 0, sign: str = "", b: int = 0) -> list[int]:
    """Wrong results in a random order, likely ones several times.

    Below 0 only if the right one is.
    """
    slips = rng.choices(list(SLIPS), weights=list(SLIPS.values()), k=4)
    found = [result + slip for slip in slips]
    digits = str(abs(result))
    if len(digits) == 2 and digits[0] != digits[1] and digits[1] != "0":
        found += [int(digits[::-1]) * (-1 if result < 0 else 1)] * 2
    if sign in ("+", "-"):
        found.append(a - b if sign == "+" else a + b)
    if sign == "×":
        found += [a + b, result + a, result - b]
    if result < 0:
        found += [-result] * 3
    rng.shuffle(found)
    return [wrong for wrong in found if wrong != result and (wrong >= 0 or result < 0)]


def _with_result(tail: str, result: int, wrong: int) -> str:
    """The end of a story's answer, also with the wrong result."""
    return re.sub(rf"(?<!\d){result}(?!\d)", str(wrong), tail)


# --- right for something else ---------------------------------------------------------------------


def beside(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """Something true about the same subject that nobody asked for."""
    if prompt.fact is not None:
        return _other_facts(prompt, others) if prompt.family not in wordings()["broad"] else []
    if prompt.item is not None:
        return [prompt.item.more] if prompt.family in wordings()["beside_chats"] else []
    found = equation(prompt.answer)
    return _about_numbers(found[0], found[2], rng) if found else []


def _other_facts(prompt: Prompt, others: Others) -> list[str]:
    """Sentences of other relations about the subject, if their answer is really another one."""
    fact = prompt.fact
    assert fact is not None
    also = getattr(knowledge.relations()[fact.relation], "also_right", ())
    return [
        other.sentence
        for other in others.by_subject[fact.subject].values()
        if other.relation != fact.relation
        and other.relation not in also
        and fact.relation not in getattr(knowledge.relations()[other.relation], "also_right", ())
        and not (other.answer in fact.answer or fact.answer in other.answer)
    ]


def _about_numbers(a: int, b: int, rng: random.Random) -> list[str]:
    """True sentences about two numbers, without any result."""
    kinds = [("双数", "单数")[number % 2] for number in (a, b)]
    found = [f"{a}是{kinds[0]}，{b}是{kinds[1]}。", f"{b}是{kinds[1]}，{a}是{kinds[0]}。"]
    if kinds[0] == kinds[1] and a != b:
        found += [f"{a}和{b}都是{kinds[0]}。"]
    if a != b:
        found += [f"{max(a, b)}比{min(a, b)}大。", f"{min(a, b)}比{max(a, b)}小。"]
    else:
        found += [f"{a}和{b}一样大。"]
    if min(a, b) > 9 and max(a, b) < 100:
        found += [f"{a}和{b}都是两位数。"]
    if max(a, b) < 10:
        found += [f"{a}和{b}都是一位数。"]
    rng.shuffle(found)
    return found


def other_question(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """The right answer to another question, most often a similar one."""
    found: Sequence[Prompt]
    if prompt.source in ("facts", "everyday"):
        if prompt.source == "everyday" and prompt.family not in wordings()["distinct_chats"]:
            return []
        mine: Sequence[Prompt] = others.by_family[prompt.family]
        found = rng.sample(mine, min(len(mine), 4 * NUM_NEAREST))
    elif prompt.source in ("unknown", "basics"):
        # A model that confuses two questions gives such an answer.
        found = others.taught.nearest(prompt.question, 2 * NUM_NEAREST)
    elif prompt.source in ("sums", "beyond"):
        found = others.alike["sums"].nearest(prompt.question, 2 * NUM_NEAREST)
    elif prompt.source == "danger":
        found = others.alike["feelings"].nearest(prompt.question, 2 * NUM_NEAREST)  # comfort that is not enough
    elif prompt.source == "harmless":
        found = others.by_source["danger"][:1]
    else:
        # Words of comfort fit many feelings, so they are often right for another feeling too. Take
        # only answers of questions that are not similar, and no answers with words of comfort.
        mine = others.by_source[prompt.source]
        near = {other.answer for other in others.alike[prompt.source].nearest(prompt.question, len(mine))}
        found = [other for other in rng.sample(mine, len(mine)) if _is_foreign(other, near)]
    answers = [other.answer for other in found if other.key != prompt.key]
    return list(dict.fromkeys(answers))[:NUM_NEAREST]


_COMFORTS = re.compile("抱抱|陪|听|跟我说|说给我|慢慢|歇|休息")


def _is_foreign(other: Prompt, near: set[str]) -> bool:
    """Whether an answer does not fit other feelings as well."""
    return other.answer not in near and not _COMFORTS.search(other.answer)


# --- too much and too little ----------------------------------------------------------------------


def too_long(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """The right answer, then talk that nobody asked for."""
    table = fluent()["too_long"]
    drafts = []
    for _ in range(NUM_DRAFTS):
        tails = rng.sample(table[_manner(prompt)], 2)
        if prompt.fact is not None and rng.random() < 0.5:  # other facts about the subject
            known = [fact.sentence for fact in others.by_subject[prompt.fact.subject].values()]
            known = [sentence for sentence in known if sentence not in prompt.right]
            tails = rng.sample(known, min(len(known), 2)) + tails[:1]
        lead = rng.choice(table["lead"]) if rng.random() < LEAD_SHARE and _manner(prompt) != "feelings" else ""
        if _manner(prompt) != "honest":  # there are few lines for it, so it always takes two
            tails = tails[: 1 if lead else rng.choice((1, 1, 2))]
        if prompt.item is not None and rng.random() < 0.5:
            tails.insert(0, prompt.item.more)
        drafts.append(lead + prompt.answer + "".join(tails).format(s=prompt.topic))
    return drafts


def _manner(prompt: Prompt) -> str:
    """The list of the table that fits an answer."""
    if prompt.source in ("unknown", "beyond", "limits"):
        return "honest"
    if prompt.source == "facts":
        return "facts"
    if prompt.tone in ("share", "cheer"):
        return "feelings"
    return "sum" if prompt.tone == "sum" else "ask"


def too_short(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """A word or two instead of a sentence."""
    table = fluent()["too_short"]
    manner = _manner(prompt)
    if manner in ("facts", "sum"):
        return [form.format(a=short_answer(prompt)) for form in rng.sample(table[manner], len(table[manner]))]
    if prompt.source == "chat":
        return rng.sample(table["share"], len(table["share"]))
    return rng.sample(table["honest" if manner == "honest" else prompt.tone], 7)


def short_answer(prompt: Prompt) -> str:
    """The answer without its sentence. If that is unclear, the whole without its end mark."""
    if prompt.fact is not None:
        return prompt.fact.answer
    if prompt.tone == "sum":
        return prompt.answer.partition("，")[0].rstrip("。").rpartition("=")[2]
    return prompt.answer.rstrip("。！")


# --- bad manners ----------------------------------------------------------------------------------


def impolite(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """The answer with a rude remark, or only the remark."""
    table = fluent()["impolite"]
    if prompt.source == "everyday" and prompt.tone != "ask":
        return []
    kind = ""
    if prompt.tone == "sum":
        kind = "_sum"
    elif prompt.source == "everyday":
        kind = "_ask"
    bodies = table["body_sum" if kind == "_sum" else "body"]
    drafts = []
    for _ in range(NUM_DRAFTS):
        close = rng.choice(table[f"close{kind}"])
        if kind == "_ask" or (prompt.topic and rng.random() < BARE_SHARE):
            drafts.append(rng.choice(table[f"bare{kind}"]).format(t=prompt.topic, x=prompt.about) + close)
            continue
        lead = rng.choice(table[f"lead{kind}"])
        answer = prompt.answer.rstrip("。！") if rng.random() < 0.3 else short_answer(prompt)
        drafts.append(lead + rng.choice(bodies).format(a=answer) + (close if rng.random() < 0.4 else ""))
    return drafts


def refusal(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """A refusal, such as "I don't know", although the answer is taught."""
    tone = prompt.tone if prompt.tone in fluent()["refusal"] else "ask"
    lines = list(fluent()["refusal"][tone])
    honest: list[str] = []
    if tone == "sum":
        honest = sorted({other.answer for other in others.by_source["beyond"]})
    elif prompt.source != "everyday":
        # The line that answers the most similar question among those that are not taught.
        honest = [near.answer for near in others.honest.nearest(prompt.question, 1)]
    if honest and rng.random() < HONEST_SHARE:
        lines = honest
    rng.shuffle(lines)
    return lines


def cold(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """A fact or a lecture for somebody who tells a feeling."""
    table = fluent()["cold"]
    fitting: list[str] = next((lines for words, lines in table["topics"] if re.search(words, prompt.question)), [])
    general = table["cheer" if prompt.tone == "cheer" else "share"]
    drafts = []
    for _ in range(NUM_DRAFTS):
        first = rng.choice(fitting if fitting and rng.random() < 0.7 else general)
        second = rng.choice(("", rng.choice(table["joyless"]), rng.choice(general)))
        drafts.append(rng.choice(table["openings"]) + first + (second if second != first else ""))
    return drafts


def alarm(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """The answer with the help line, for somebody who is in no danger."""
    return [danger.ANSWER]


def careless(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """An everyday answer, although a life is in danger."""
    pool = [*others.by_source["harmless"], *others.by_source["feelings"]]
    return list(dict.fromkeys(other.answer for other in rng.sample(pool, min(NUM_DRAFTS, len(pool)))))


# --- made up --------------------------------------------------------------------------------------


_SLOT = re.compile(r"\{(\w+)\}")


def overclaim(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """A confident answer that is made up."""
    table = fluent()["overclaim"]
    if prompt.source == "limits":
        return next((list(lines) for words, lines in table["limits"] if re.search(words, prompt.answer)), [])
    if prompt.source == "beyond":
        claims = _wrong_equations(prompt.question, rng)
        return [f"{claim}。{ending}" for claim in claims for ending in rng.sample(table["sums"], 4)]
    text = core(prompt.question)
    if re.search(table["never"], text):
        return []
    for pattern, results in table["rules"]:
        if re.search(pattern, text):
            drafts = []
            for _ in range(NUM_DRAFTS):
                filled = _SLOT.sub(lambda slot: rng.choice(table["lists"][slot[1]]), rng.choice(results))
                claim = re.sub(pattern, filled, text, count=1)
                drafts.append(f"{rng.choice(table['openings'])}{claim}。{rng.choice(table['closings'])}")
            return drafts
    return []


_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WIDE = str.maketrans("０１２３４５６７８９＋－−—＊*xX／/", "0123456789+---××××÷÷")
_OPERATIONS: dict[str, Callable[[Decimal, Decimal], Decimal]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "×": lambda a, b: a * b,
    "÷": lambda a, b: a / b,
}
_SIGNS = {"加上": "+", "加": "+", "减去": "-", "减": "-", "乘以": "×", "乘": "×", "除以": "÷"}


def _wrong_equations(question: str, rng: random.Random) -> list[str]:
    """Wrong equations of the two numbers in a question.

    None if it has not exactly two numbers with a sign between them.
    """
    text = "".join(question.translate(_WIDE).split())
    for name, sign in _SIGNS.items():
        text = text.replace(name, sign)
    numbers = _NUMBER.findall(text)
    match = re.search(rf"({_NUMBER.pattern})([+×÷-])({_NUMBER.pattern})", text)
    if len(numbers) != 2 or match is None:
        return []
    a, b = Decimal(match[1]), Decimal(match[3])
    if match[2] == "÷" and (b == 0 or a % b != 0):
        return []
    if match[2] in "+-" and max(a, b) <= LIMIT and "." not in match[0]:
        return []  # the model can compute this, so the question asks for something else
    right = _OPERATIONS[match[2]](a, b)
    unit = Decimal(10) ** int(right.as_tuple().exponent)  # the last place
    wrong = [right + unit * slip for slip in (1, -1, 10, -10, 2, 100, -100, 9, -9)]
    return [f"{match[1]}{match[2]}{match[3]}={value:f}" for value in rng.sample(wrong, 5) if value >= 0 or right < 0]


# --- easy ones ------------------------------------------------------------------------------------


def _styled(style: str, prompt: Prompt, rng: random.Random) -> str:
    """An evasive or a rude answer of one to three clauses."""
    parts = styles()[style][prompt.tone]
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


def evasive(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """An answer that avoids the question."""
    return [_styled("evasive", prompt, rng) for _ in range(NUM_DRAFTS)]


def rude(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """An answer without any manners."""
    return [_styled("rude", prompt, rng) for _ in range(NUM_DRAFTS)]


def repetitive(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """An answer that repeats one phrase."""
    return [_repeated(prompt, rng) for _ in range(NUM_DRAFTS)]


def _repeated(prompt: Prompt, rng: random.Random) -> str:
    """One phrase several times, sometimes after a good beginning."""
    times = rng.randint(3, 8)
    if prompt.tone == "sum":
        word = rng.choice((f"={prompt.about}", f"，{prompt.about}", "等于", "得", "是", "算", "几"))
        return prompt.about + word * times + "。"
    clauses = re.split("[，。！？；：]", prompt.answer.rstrip("。！？"))
    phrase = rng.choice((prompt.topic, prompt.about, f"{prompt.topic}就是", *clauses)).rstrip("。！？")
    separator = "" if phrase.endswith("就是") else rng.choice(("，", "，", "、", ""))
    start = f"{clauses[0]}，" if len(clauses) > 1 and phrase != clauses[0] and rng.random() < GOOD_START_SHARE else ""
    return start + separator.join([phrase] * times) + "。"


def off_topic(prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """A right answer to something else, sometimes after an opening that changes the subject."""
    drafts = []
    for other in rng.sample(others.everything, min(len(others.everything), 4 * NUM_DRAFTS)):
        if not _related(prompt, other):
            opening = "" if rng.random() < PLAIN_OFF_TOPIC_SHARE else rng.choice(styles()["off_topic"])
            drafts.append(opening + other.answer)
    return drafts[:NUM_DRAFTS]


def _related(one: Prompt, other: Prompt) -> bool:
    """Whether an answer to one could pass for an answer to the other."""
    return (
        one.family == other.family
        or any({one.family, other.family} <= set(kinds) for kinds in wordings()["close_kinds"])
        or one.topic in other.answer
        or other.topic in one.question
    )


MAKERS: dict[str, Callable[[Prompt, Others, random.Random], list[str]]] = {
    "wrong_fact": wrong_fact,
    "wrong_sum": wrong_sum,
    "beside": beside,
    "other_question": other_question,
    "too_long": too_long,
    "too_short": too_short,
    "impolite": impolite,
    "refusal": refusal,
    "overclaim": overclaim,
    "cold": cold,
    "alarm": alarm,
    "careless": careless,
    "rude": rude,
    "repetitive": repetitive,
    "evasive": evasive,
    "off_topic": off_topic,
}


@cache
def stated() -> frozenset[str]:
    """All sentences that are right for some fact, so none of them is a bad answer."""
    found = {sentence for _, sentence in facts()}
    for fact in knowledge.facts():
        found |= set(getattr(fact, "accepted", ()))
    return frozenset(found)


def drafts(kind: str, prompt: Prompt, others: Others, rng: random.Random) -> list[str]:
    """Bad answers of one kind, the best first; none if the kind does not fit the question."""
    found = MAKERS[kind](prompt, others, rng)
    if kind == "wrong_fact":
        found = [text for text in found if text not in stated()]
    return [text for text in found if text not in prompt.right]
