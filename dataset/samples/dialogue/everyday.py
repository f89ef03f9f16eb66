"""Sample everyday talk: feelings, small talk, everyday questions.

No answer is about the model's name or maker. Each topic has one good answer and many wordings.
Training never uses the wordings of the held-out halves, and the two halves share no topic. Jokes,
riddles and so on are in `series`. What users tell about themselves is in `remembering`. Long
conversations are in `medley`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

from dataset.samples.alternatives import expanded
from dataset.samples.frames import Form, bare, framed, in_earnest, marked
from dataset.samples.tables import cells, yaml_table

WORDINGS_FILE = Path(__file__).with_name("wordings.yaml")
ITEM_FILES = tuple(Path(__file__).with_name(f"items_{name}.tsv") for name in ("life", "words", "people"))
SMALLTALK_FILE = Path(__file__).with_name("smalltalk.tsv")
EVERYDAY_FILE = Path(__file__).with_name("everyday.tsv")
FEELINGS_FILE = Path(__file__).with_name("feelings.tsv")
TALKS_FILE = Path(__file__).with_name("talks.tsv")

Turn = tuple[str, str]
"""(what the user says, what the assistant answers)."""
Half = Literal["training", "validation", "test"]
HALVES: tuple[Half, ...] = ("validation", "test")
NUM_TYPED = 36
"""Training records of each feeling and each topic of small talk, all typed differently. A topic
with more wordings has more."""
NUM_TYPED_EVERYDAY = 18
"""The same for each topic of everyday talk. These are narrower: learning English, a haircut."""
NUM_BARE = 4
"""How many of those records have no mark. They use the first wordings of the list, which most
people type."""
TRIES = 4
"""A topic ends after this many tries for each record that is wanted."""
NUM_SINGLE = 4
"""Records of one turn for each everyday topic. One more record has two to four turns."""
ITEM_HELDOUT_EVERY = 2
"""Every second everyday topic has a held-out question."""


_TURNED = "煮洗炒包蒸切擦养泡折叠练背记做"
"""Verbs that may come after their object: 面条怎么煮."""
_ENDING = ("吗", "呢", "么", "啥", "了没")
_ASKING = ("吗", "什么", "啥", "哪", "怎么", "怎样", "如何", "咋", "谁", "多少", "有没有", "为何", "几点", "几号")
# No questions, although they have question words: 怎么也笑不出来.
_EXCLAIMING = ("怎么这么", "你怎么这么", "怎么也", "凭什么")
_NOT_ASKING = ("没", "不知道", "随便", "什么都", "怎么都", "天哪", "不怎么", *_EXCLAIMING)
_REQUESTING = tuple("讲说来给写作推背念出起取帮夸鼓教安表以用逗描形列举报拿把请造换")
_TELLING = ("我", "想", "不知道", "打算", "纠结", *_EXCLAIMING)


# --- records --------------------------------------------------------------------------------------


def record(turns: Sequence[Turn], **fields: Any) -> dict[str, Any]:
    """A chat record of these turns. Fields that are None are left out."""
    messages = []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"conversations": messages} | {name: value for name, value in fields.items() if value is not None}


def key(text: str) -> str:
    """The text without case, spacing and marks. Equal keys count as the same wording.

    A text of marks alone is its own key.
    """
    return "".join(filter(str.isalnum, text.lower())) or text


# --- wordings -------------------------------------------------------------------------------------


def spread(patterns: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Up to `count` wordings. The patterns take turns, so that each gives about as many."""
    queues = [rng.sample(wordings, len(wordings)) for wordings in map(expanded, patterns)]
    found: dict[str, str] = {}
    for wording in (wording for row in zip_longest(*queues) for wording in row if wording is not None):
        found.setdefault(key(wording), wording)
    return list(found.values())[:count]


# --- feelings and small talk ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Topic:
    """One answer, and the patterns of the turns that it answers."""

    answer: str
    form: Form
    training: tuple[str, ...]
    heldout: tuple[str, ...]


def asks(wording: str) -> bool:
    """Whether the wording is a question."""
    found = any(word in wording for word in _ASKING) or wording.endswith(_ENDING)
    return found and not wording.startswith(_NOT_ASKING)


def form_of(wording: str, default: Form) -> Form:
    """The form of a wording: that of a question, a request or something told; else `default`."""
    if asks(wording):
        return "wh" if default == "wh" else "ask"
    if default in ("say", "sad", "glad"):
        return default
    if wording.startswith(_REQUESTING):
        return "do"
    return "say" if wording.startswith(_TELLING) else default


def typed(wording: str, rng: random.Random, form: Form = "mark") -> str:
    """A turn as somebody may type it. A turn of marks alone (……) stays as it is."""
    if not key(wording).isalnum():
        return wording
    # A short question takes the marks of a question: 在吗？
    return marked(wording, rng) if form == "mark" and asks(wording) else in_earnest(wording, rng, form)


@cache
def topics(path: Path) -> tuple[Topic, ...]:
    """The topics of a table. A line [form] holds for the topics after it."""
    found: list[Topic] = []
    form = "mark"
    for answer, *sides in cells(path):
        if not sides:
            form = answer.strip("[]")
            continue
        training, heldout = (tuple(side.split("|")) if side else () for side in [*sides, ""][:2])
        found.append(Topic(answer, form, training, heldout))  # type: ignore[arg-type]
    return tuple(found)


def _topic_records(path: Path, kind: str, num_typed: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """The records of each topic. Topics with held-out wordings go alternately to the two halves."""
    num_heldout = 0
    for topic in topics(path):
        count = max(num_typed, len(topic.training) + NUM_BARE)
        wordings = spread(topic.training, count - NUM_BARE, rng)
        asked = dict.fromkeys(map(bare, wordings[:NUM_BARE]))
        for wording in islice(cycle(wordings), TRIES * count):
            if len(asked) < count:
                asked[typed(wording, rng, topic.form if topic.form == "mark" else form_of(wording, topic.form))] = None
        for question in asked:
            yield record([(question, topic.answer)], kind=kind)
        if topic.heldout:
            half = HALVES[num_heldout % 2]
            num_heldout += 1
            for wording in spread(topic.heldout, len(topic.heldout), rng):
                question = typed(wording, rng)
                yield record([(question, topic.answer)], kind=kind, split=half, cluster=f"{kind}:{topic.answer}")


# --- everyday questions ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One everyday topic with its answer."""

    kind: str
    topic: str
    answer: str
    more: str
    """The answer to a follow-up question."""
    names: tuple[str, ...] = ()
    """All names of the topic, `topic` included."""


@dataclass(frozen=True, slots=True)
class Wordings:
    """How people ask about one kind of topic, by side; how they ask for more; how they end."""

    form: Form
    training: list[str]
    validation: list[str]
    test: list[str]
    more: list[str]
    closings: list[Turn]


def items() -> list[Item]:
    """The everyday topics of all tables."""
    found = []
    for path in ITEM_FILES:
        kind = ""
        for topic, *answers in cells(path):
            if not answers:
                kind = topic.strip("[]")
                continue
            answer, more = answers
            names = tuple(topic.split("/"))
            found.append(Item(kind, names[0], answer, more, names))
    return found


def _wordings(table: dict[str, Any]) -> dict[str, Wordings]:
    """Kind of topic -> its wordings."""
    by_kind = {}
    for closing in table["closings"].values():
        turns = [(user, assistant) for user, assistant in closing["turns"]]
        for kind in closing["kinds"]:
            entry = table[kind]
            by_kind[kind] = Wordings(
                entry["form"], entry["ask"], entry["validation"], entry["test"], entry["more"], turns
            )
    return by_kind


def _longer(item: Item, first: Turn, wordings: Wordings, openings: list[Turn], rng: random.Random) -> list[Turn]:
    """A conversation of two to four turns about one topic."""
    more: Turn = (typed(rng.choice(wordings.more), rng), item.more)
    closing, opening = rng.choice(wordings.closings), rng.choice(openings)
    shapes = ([first, more], [first, more, closing], [first, closing], [opening, first, more])
    return rng.choices(shapes, weights=(8, 6, 2, 2))[0]


def _name(item: Item, turn: int, rng: random.Random) -> str:
    """The name of the topic in a question. Its names take turns. Half of the time 三 is typed 3."""
    name = item.names[turn % len(item.names)]
    return "3" + name[1:] if name[0] == "三" and rng.random() < 0.5 else name


def _item_records(rng: random.Random) -> Iterator[dict[str, Any]]:
    """The records of everyday topics. Every second topic has a held-out question."""
    table = yaml_table(WORDINGS_FILE)
    by_kind = _wordings(table)
    openings: list[Turn] = [(user, assistant) for user, assistant in table["openings"]]
    num_heldout = 0
    for number, item in enumerate(items()):
        wordings = by_kind[item.kind]
        asks = rng.sample(wordings.training, NUM_SINGLE + 1)
        named = [ask.format(t=_name(item, turn, rng)) for turn, ask in enumerate(asks)]
        if item.kind == "howto" and item.topic[0] in _TURNED:
            named[0] = f"{item.topic[1:]}怎么{item.topic[0]}"
        asked = [framed(ask, rng, form_of(ask, wordings.form)) for ask in named]
        for question in asked[:NUM_SINGLE]:
            yield record([(question, item.answer)])
        yield record(_longer(item, (asked[NUM_SINGLE], item.answer), wordings, openings, rng))
        if number % ITEM_HELDOUT_EVERY == 0:
            half = HALVES[num_heldout % 2]
            num_heldout += 1
            ask = rng.choice(wordings.validation if half == "validation" else wordings.test)
            question = typed(ask.format(t=item.topic), rng)
            yield record([(question, item.answer)], split=half, cluster=f"{item.kind}:{item.topic}")


def _talk_records() -> Iterator[dict[str, Any]]:
    """Conversations that the table holds whole. The assistant asks back before it answers."""
    for said in cells(TALKS_FILE):
        yield record(list(zip(said[::2], said[1::2], strict=True)))


def records() -> Iterator[dict[str, Any]]:
    """Chat records, all different. Feelings and small talk have `kind`, held-out ones `split`."""
    rng = random.Random(4401)
    yield from _topic_records(FEELINGS_FILE, "feelings", NUM_TYPED, rng)
    yield from _topic_records(SMALLTALK_FILE, "chat", NUM_TYPED, rng)
    yield from _topic_records(EVERYDAY_FILE, "chat", NUM_TYPED_EVERYDAY, rng)
    yield from _item_records(rng)
    yield from _talk_records()
