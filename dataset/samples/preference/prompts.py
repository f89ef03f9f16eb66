"""The questions of the preference pairs: single questions of the chat samples, with their answers.

They come from the chat samples, so a new relation, topic or feeling there is used here too.
Held-out pairs use held-out questions, about facts and topics that no training pair asks about.
"""

import itertools
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from dataset.records.keys import normalised
from dataset.samples.dialogue import everyday
from dataset.samples.generators import generated
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.tables import yaml_table

WORDINGS_FILE = Path(__file__).with_name("wordings.yaml")

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = get_args(Side)
HALVES = SIDES[1:]

HELDOUT_SHARE, HELDOUT_FEELINGS_SHARE = 0.3, 0.5
"""Share of the facts and topics that pairs hold out, and of the feelings, which are few."""
MOST_NEIGHBOURS = 2000
"""The most questions that are searched for similar ones."""
GENERATORS = (
    "knowledge.questions",
    "unknown.questions",
    "arithmetic.questions",
    "dialogue.everyday",
    "limits.questions",
    "danger.conversations",
)
"""Chat samples whose questions are used."""

# Sources of questions. In those of the first group training and held-out records share facts and
# topics, so the pairs have to hold out some of them. In the second group they share nothing. Basic
# sums are for training only.
_SHARED = ("facts", "basics", "feelings", "harmless", "chat", "limits", "everyday")
_APART = ("sums", "stories", "steps", "beyond", "unknown", "danger")
_SUM_KINDS = {"": "sums", "basic": "basic sums", "times": "basic sums", "word": "stories", "steps": "steps"}
SOURCES = (*_SHARED, *_APART, "basic sums")

_EQUATION = re.compile(r"(\d+)([+×÷-])(\d+)=(-?\d+)")
_CANNOT = re.compile("我(看不到|查不到|听不到|没法|不能上网|不知道今天|不知道你在)")
"""How an answer begins that says what no such model can do."""
_GLAD = re.compile("恭喜|快乐|高兴|太棒|太好了|厉害|骄傲|享受|真好|放假|鼓掌|真有用|开心")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with its right answer."""

    source: str
    family: str
    """The relation, or the kind of everyday question, or the source."""
    question: str
    answer: str
    key: str
    """What it is about. Prompts with one key are on one side."""
    cluster: str
    """Prompts with one cluster count once in the interval of an accuracy."""
    topic: str
    about: str
    """What was asked, in a few words that a bad answer can repeat."""
    tone: str
    """Decides which bad answers fit."""
    right: frozenset[str]
    """All answers that are right."""
    fact: knowledge.Fact | None = None
    item: everyday.Item | None = None


def wordings() -> dict[str, Any]:
    """The table wordings.yaml: how a bad answer names the topic of its question, and which kinds of
    questions are alike."""
    return yaml_table(WORDINGS_FILE)


@cache
def prompts(side: Side) -> Mapping[str, tuple[Prompt, ...]]:
    """Source -> the questions of one side. No two sides share a question or a key."""
    found: dict[str, dict[str, Prompt]] = {source: {} for source in SOURCES}
    for prompt in _all(side):
        if prompt.source == "basic sums":
            wanted = side == "train"
        elif prompt.source in _SHARED:
            wanted = side == _homes().get(prompt.key, "train")
        else:
            wanted = True
        if wanted:
            found[prompt.source].setdefault(prompt.question, prompt)
    return {source: tuple(mine.values()) for source, mine in found.items()}


@cache
def _homes() -> dict[str, Side]:
    """Key that pairs hold out -> its half. That is the half with more questions about it."""
    asked: dict[str, Counter[Side]] = defaultdict(Counter)
    for half in HALVES:
        for prompt in _all(half):
            if prompt.source in _SHARED and _is_held_out(prompt):
                asked[prompt.key][half] += 1
    homes = {}
    for key, counts in asked.items():
        in_turn = HALVES if zlib.crc32(key.encode()) % 2 else HALVES[::-1]  # if both have as many, the hash decides
        homes[key] = max(in_turn, key=lambda half: counts[half])
    return homes


def _is_held_out(prompt: Prompt) -> bool:
    """Whether pairs hold out this prompt's key."""
    share = HELDOUT_FEELINGS_SHARE if prompt.source in ("feelings", "harmless") else HELDOUT_SHARE
    return zlib.crc32(f"pairs {prompt.key}".encode()) % 100 < 100 * share


@dataclass(frozen=True, slots=True)
class _Single:
    """A conversation of one turn, and the generator that it comes from."""

    generator: str
    record: Mapping[str, Any]
    question: str
    answer: str
    name: str
    """The question, normalised."""


@cache
def _singles() -> dict[Side, list[_Single]]:
    """The conversations of one turn of each side."""
    found: dict[Side, list[_Single]] = {side: [] for side in SIDES}
    for generator in GENERATORS:
        for record in generated(generator):
            if len(record["conversations"]) == 2:
                question, answer = (message["content"] for message in record["conversations"])
                found[_side(record)].append(_Single(generator, record, question, answer, normalised(question)))
    return found


def _side(record: Mapping[str, Any]) -> Side:
    """The side of a record."""
    split = record.get("split", "train")
    if split in SIDES:
        return split
    answer = record["conversations"][1]["content"]
    return HALVES[zlib.crc32(answer.encode()) % 2]  # held out without a half: the answer decides


@cache
def _all(side: Side) -> tuple[Prompt, ...]:
    """All questions of one side, before pairs hold out any key."""
    # For the mix 12+3 and 1+23 have the same key, so it puts them on the same side.
    elsewhere = {one.name for other in SIDES if other != side for one in _singles()[other]}
    found = (_prompt(one, _right_answers()[one.name]) for one in _singles()[side] if one.name not in elsewhere)
    return tuple(prompt for prompt in found if prompt is not None)


@cache
def _right_answers() -> dict[str, frozenset[str]]:
    """Normalised question -> all answers that are right in some record with this question."""
    found: dict[str, set[str]] = defaultdict(set)
    for one in itertools.chain.from_iterable(_singles().values()):
        found[one.name].update((one.answer, *one.record.get("accepted", ())))
    return {name: frozenset(answers) for name, answers in found.items()}


def _prompt(one: _Single, right: frozenset[str]) -> Prompt | None:
    """The prompt of a conversation; None if pairs can't use it. `right`: all right answers."""
    generator, record, question, answer = one.generator, one.record, one.question, one.answer
    kind = record.get("kind", "")

    def plain(source: str, *, tone: str = "ask", key: str = answer) -> Prompt:
        return Prompt(source, source, question, answer, key, key, "", "", tone, right)

    if generator == "knowledge.questions":
        fact = facts().get((record["relation"], answer))
        return _fact_prompt(fact, question, right) if fact else plain("basics")
    if generator == "unknown.questions":
        return plain("unknown", key=record.get("cluster", answer))
    if generator == "arithmetic.questions":
        if kind == "beyond":
            return plain("beyond", tone="sum", key=question)
        if kind not in _SUM_KINDS:
            return None
        return _sum_prompt(_SUM_KINDS[kind], question, answer, right, record.get("cluster", ""))
    if kind == "danger":
        return plain("danger", tone="share", key=question)  # one answer to all
    if kind == "harmless":
        return plain("harmless", tone="share")
    if kind == "limits" or (kind == "chat" and _CANNOT.match(answer)):
        return plain("limits")
    if kind == "feelings":
        return plain("feelings", tone="cheer" if _GLAD.search(answer) else "share")
    if kind == "chat":
        return plain("chat") if len(right) == 1 else None
    item = items().get(answer)
    return _item_prompt(item, question, right) if item else None


def _fact_prompt(fact: knowledge.Fact, question: str, right: frozenset[str]) -> Prompt:
    source = getattr(fact, "source", f"{fact.relation}:{fact.subject}")
    about = wordings()["facts"].get(fact.relation, wordings()["about"])
    return Prompt(
        source="facts",
        family=fact.relation,
        question=question,
        answer=fact.sentence,
        key=source.partition(":")[2],
        cluster=source,
        topic=fact.subject,
        about=about.format(s=fact.subject),
        tone="ask",
        right=right | {fact.sentence, *getattr(fact, "accepted", ())},
        fact=fact,
    )


def _sum_prompt(source: str, question: str, answer: str, right: frozenset[str], cluster: str) -> Prompt:
    expression = answer.partition("=")[0]
    # A sum and a difference of the same two numbers have one key. A product has another.
    is_pair = not re.search("[×÷]", expression)
    key = ",".join(map(str, sorted(map(int, re.findall(r"\d+", expression))))) if is_pair else expression
    return Prompt(source, source, question, answer, key, cluster or key, expression, expression, "sum", right)


def _item_prompt(item: everyday.Item, question: str, right: frozenset[str]) -> Prompt:
    entry = wordings()["chats"].get(item.kind, {})
    # A bad answer speaks to the user, so "I" becomes "you".
    topic, about = (text.format(t=item.topic).replace("我", "你") for text in ("{t}", entry.get("about", "{t}")))
    return Prompt(
        source="feelings" if item.kind in ("sad", "happy") else "everyday",
        family=item.kind,
        question=question,
        answer=item.answer,
        key=item.answer,
        cluster=f"{item.kind}:{item.topic}",
        topic=topic,
        about=about,
        tone=entry.get("tone", "ask"),
        right=right,
        item=item,
    )


@cache
def facts() -> dict[tuple[str, str], knowledge.Fact]:
    """(relation, sentence) -> the fact that it states."""
    return {(fact.relation, fact.sentence): fact for fact in knowledge.facts()}


@cache
def items() -> dict[str, everyday.Item]:
    """Answer -> the everyday topic that it belongs to."""
    return {item.answer: item for item in everyday.items()}


def equation(answer: str) -> tuple[int, str, int, int] | None:
    """The first equation of two numbers in an answer, as (a, sign, b, result); None without one."""
    match = _EQUATION.search(answer)
    return (int(match[1]), match[2], int(match[3]), int(match[4])) if match else None


# --- questions that are like others ---------------------------------------------------------------


_FRAME = re.compile(
    "^(?:你好|您好|请问|请|嗯|那个|那么|那|问一下|问下|想问一下|想问下|我想问一下|我想问|问个问题|问你个问题|对了|话说|诶|考考你|顺便|"
    "麻烦问一下|我想知道|我想了解|告诉我|你知道|知道|能告诉我|你了解|你听说过|听说过|嗨|哈喽|一下)[，, ]*"
)
_END = re.compile(r"(?:[？?。！!~…，, ]|谢谢你?啦?|多谢|呢|啊|呀)+$")


def core(question: str) -> str:
    """The question without greeting, marks and thanks."""
    text = _END.sub("", question)
    while match := _FRAME.match(text):
        if match.end() == len(text):
            break
        if match[0].rstrip("，, ") in ("你知道", "知道", "能告诉我", "你了解", "你听说过", "听说过"):
            text = text.removesuffix("吗")
        text = text[match.end() :]
    return text


def pairs_of_characters(text: str) -> frozenset[str]:
    """All runs of two characters in the core of a question, normalised."""
    plain = normalised(core(text))
    return frozenset(plain[i : i + 2] for i in range(max(1, len(plain) - 1)))


class Neighbours:
    """Finds the questions of a pool that share most pairs of characters with a given one.

    Of a large pool only every so many questions are searched (MOST_NEIGHBOURS).
    """

    def __init__(self, pool: Sequence[Prompt]) -> None:
        step = -(-len(pool) // MOST_NEIGHBOURS) or 1
        self.pool = pool[::step]
        self.pairs = [pairs_of_characters(prompt.question) for prompt in self.pool]
        self.holders: dict[str, list[int]] = defaultdict(list)
        for number, pairs in enumerate(self.pairs):
            for pair in pairs:
                self.holders[pair].append(number)

    def nearest(self, question: str, count: int) -> list[Prompt]:
        """The `count` most similar ones by Jaccard index, without those that share nothing."""
        own = pairs_of_characters(question)
        shared: dict[int, int] = defaultdict(int)
        for pair in own:
            for number in self.holders.get(pair, ()):
                shared[number] += 1
        ranked = sorted(shared, key=lambda n: (-shared[n] / (len(own) + len(self.pairs[n]) - shared[n]), n))
        return [self.pool[number] for number in ranked[:count]]
