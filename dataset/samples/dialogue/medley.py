"""Sample conversations of many turns about anything, in any order, with turns that refer back.

A conversation is a row of blocks. A block is one unchanged training record of another sample: a
single turn, or turns that belong together (a joke and 再讲一个, a fact and 那德国呢？). So a
question gets the same answer in turn ten as alone. Between the blocks users tell something about
themselves and ask for it later, or ask to hear an answer again.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.dialogue import remembering
from dataset.samples.dialogue.everyday import HALVES, Half, Turn, key, record, typed
from dataset.samples.frames import bare
from dataset.samples.generators import generated
from dataset.samples.tables import yaml_table

TURNS_FILE = Path(__file__).with_name("medley.yaml")
SHARES = {
    "knowledge.questions": 28, "knowledge.claims": 5, "arithmetic.questions": 22, "arithmetic.claims": 3,
    "dialogue.everyday": 22, "dialogue.series": 14, "dialogue.flow": 4, "identity.questions": 12,
}  # fmt: skip
"""Generator -> weight of its blocks. The records of one generator are used equally often."""

NUM_LONG = 1_800
"""Long conversations for training."""
NUM_SHORT = 300
"""Training conversations of one block and a turn that refers back to it."""
NUM_HELDOUT = {"known": 40, "memory": 24, "short": 22}
"""Held-out conversations in each half, by the last turn: a known question, a question for something
told, a turn that refers back."""
MIN_TURNS, MAX_TURNS = 6, 13
"""Turns of a long conversation."""
MOST_TOKENS, ALL_TOKENS = 212, 225
"""The most tokens of four conversations in five, and of all. They have to fit into rows of 256."""
RESERVED_SHARE = 0.75
"""A block is taken only if enough tokens are left: for each turn to come at least this share of the
mean."""
NUM_LOOKS = 40
"""How many blocks of a generator are tried to find one that fits."""
CHARACTERS_A_TOKEN = 1.37
"""Characters in a token, on average."""
MARKS_A_TURN = 7
"""Tokens that a turn adds to its text, estimated."""
FOLLOW_UP_SHARE = 0.12
"""How often a turn that refers back to its answer follows a block."""
MEMORY_COUNTS = {0: 3, 1: 5, 2: 3}
"""How many things a user tells in a conversation -> weight."""
FARTHEST_BACK = 6
"""The most turns between telling and asking."""
UNTOLD_SHARE = 0.08
"""How often the user asks for something that was not told."""
LONGEST_REPEATED = 34
"""The most characters of an answer that is repeated."""

Block = tuple[Turn, ...]
"""Turns that stay together."""
_NOT_QUOTED = set("，,：: ？?谢请好诉帮说问")


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A turn that refers back, such as a wish to hear the answer again."""

    after: frozenset[str]
    """The generators whose blocks it may follow."""
    holds: str
    """What the answer before it must contain."""
    answer: str
    """{a} stands for the answer before it, {q} for the question."""
    wordings: dict[Half, tuple[str, ...]]

    def fits(self, module: str, block: Block) -> bool:
        """Whether it may come after this block. `module`: the generator of the block."""
        # Only a short question without words around it sounds right as a quotation.
        question, answer = block[-1]
        quoted = "{q}" not in self.answer or (len(bare(question)) <= 14 and not _NOT_QUOTED & set(bare(question)))
        return module in self.after and self.holds in answer and len(answer) <= LONGEST_REPEATED and quoted

    def turn(self, block: Block, half: Half, rng: random.Random) -> Turn:
        """The turn, as somebody may type it after this block, with its answer."""
        question, answer = block[-1]
        asked = typed(rng.choice(self.wordings[half]), rng, "mark")
        return asked, self.answer.format(a=answer, q=bare(question))


@cache
def follow_ups() -> tuple[FollowUp, ...]:
    """All turns that refer back."""
    table = yaml_table(TURNS_FILE)
    return tuple(
        FollowUp(
            frozenset(entry["after"]),
            entry.get("holds", ""),
            entry["answer"],
            {"training": tuple(entry["ask"]), **{half: tuple(entry[half]) for half in HALVES}},
        )
        for entry in table.values()
    )


# --- blocks ---------------------------------------------------------------------------------------


def training_blocks(records: Iterable[dict[str, Any]]) -> list[Block]:
    """The turns of each training record, as a block.

    Records in which users tell something about themselves are left out, because each conversation
    gets its own from `remembering`.
    """
    blocks = []
    for one in records:
        said = [message["content"] for message in one["conversations"]]
        block = tuple(zip(said[::2], said[1::2], strict=True))
        if one.get("split") in (None, "", "train") and not any(map(remembering.is_told, block)):
            blocks.append(block)
    return blocks


@cache
def blocks() -> dict[str, list[Block]]:
    """Generator -> its blocks."""
    return {name: training_blocks(generated(name)) for name in SHARES}


class Deck:
    """Deals the blocks of all generators like cards. A dealt block comes again only when nearly all
    blocks of its generator were dealt, so that all are used equally often."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.piles: dict[str, list[Block]] = {name: [] for name in SHARES}

    def deal(self, fits: Callable[[str, Block], bool]) -> tuple[str, Block] | None:
        """A drawn generator, and one of its blocks that fits; None if NUM_LOOKS blocks do not."""
        name = self.rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
        pile = self.piles[name]
        if len(pile) < NUM_LOOKS:
            pile += blocks()[name]
        for _ in range(NUM_LOOKS):
            index = self.rng.randrange(len(pile))
            if fits(name, pile[index]):
                pile[index], pile[-1] = pile[-1], pile[index]
                return name, pile.pop()
        return None


def num_tokens(turns: Iterable[Turn]) -> int:
    """About how many tokens the turns have, marks included."""
    return sum(round((len(user) + len(answer)) / CHARACTERS_A_TOKEN) + MARKS_A_TURN for user, answer in turns)


# --- conversations --------------------------------------------------------------------------------


def _string(deck: Deck, num_turns: int, budget: int, asked: set[str], rng: random.Random) -> list[Block]:
    """Blocks of about `num_turns` turns with at most `budget` tokens.

    No question comes twice, and none of `asked`, which grows.
    """
    strung: list[Block] = []
    reserve = RESERVED_SHARE * budget / max(num_turns, 1)
    turns, tokens = 0, 0  # so far

    def fits(_: str, block: Block) -> bool:
        turns_left = num_turns - turns - len(block)
        tokens_left = budget - tokens - num_tokens(block)
        roomy = turns_left >= -1 and tokens_left >= max(turns_left, 0) * reserve
        return roomy and asked.isdisjoint(key(user) for user, _ in block)

    while turns < num_turns:
        dealt = deck.deal(fits)
        if dealt is None:
            num_turns -= 1  # no block is short enough for so many turns
            continue
        module, block = dealt
        following = [one for one in follow_ups() if one.fits(module, block)]
        if following and rng.random() < FOLLOW_UP_SHARE:
            longer = (*block, rng.choice(following).turn(block, "training", rng))
            block = longer if fits(module, longer) else block
        strung.append(block)
        turns, tokens = turns + len(block), tokens + num_tokens(block)
        asked |= {key(user) for user, _ in block}
    return strung


def _with_memory(strung: list[Block], memory: remembering.Memory, rng: random.Random) -> list[Block]:
    """The blocks, with a turn that tells something and one that asks for it among them.

    At most FARTHEST_BACK turns are between the two.
    """
    told = rng.randrange(len(strung))
    reach = told + 1
    while reach < len(strung) and sum(map(len, strung[told : reach + 1])) <= FARTHEST_BACK and rng.random() < 0.75:
        reach += 1
    return [*strung[:told], (memory.told,), *strung[told:reach], (memory.asked,), *strung[reach:]]


def _memories(rng: random.Random) -> list[remembering.Memory]:
    """The things that a user tells in one conversation, all different."""
    count = rng.choices(list(MEMORY_COUNTS), weights=list(MEMORY_COUNTS.values()))[0]
    found = {memory.subject: memory for memory in (remembering.drawn("training", rng) for _ in range(count))}
    return list(found.values())


def _untold(known: Sequence[remembering.Memory], rng: random.Random) -> Turn:
    """A question for something that the user has not told, with the answer that says so."""
    subject = rng.choice([name for name in remembering.subjects() if name not in {m.subject for m in known}])
    table = remembering.table()
    return typed(rng.choice(table[subject]["ask"]), rng, "ask"), table["untold"]["answer"]


def long_conversation(deck: Deck, rng: random.Random) -> list[Turn]:
    """A conversation of about MIN_TURNS to MAX_TURNS turns; empty if too few blocks fit."""
    budget = MOST_TOKENS if rng.random() < 0.8 else ALL_TOKENS
    memories = _memories(rng)
    extra = [turn for memory in memories for turn in (memory.told, memory.asked)]
    if rng.random() < UNTOLD_SHARE:
        extra.append(_untold(memories, rng))
    num_turns = max(rng.randint(MIN_TURNS, MAX_TURNS), rng.randint(MIN_TURNS, MAX_TURNS)) - len(extra)
    asked = {key(user) for user, _ in extra}
    strung = _string(deck, max(num_turns, 2), budget - num_tokens(extra), asked, rng)
    if len(strung) < 2:
        return []  # a single block is a record of its own already
    for memory in memories:
        strung = _with_memory(strung, memory, rng)
    if len(extra) % 2:
        strung.insert(rng.randint(0, len(strung)), (extra[-1],))
    return [turn for block in strung for turn in block]


def _long(rng: random.Random) -> Iterator[dict[str, Any]]:
    """The long training conversations."""
    deck = Deck(rng)
    made = 0
    while made < NUM_LONG:
        turns = long_conversation(deck, rng)
        if MIN_TURNS <= len(turns) <= MAX_TURNS:
            made += 1
            yield record(turns, split="train", kind="turns")


def _short(rng: random.Random) -> Iterator[dict[str, Any]]:
    """The training conversations of one block and a turn that refers back to it."""
    deck = Deck(rng)
    made = 0
    while made < NUM_SHORT:
        one = follow_ups()[made % len(follow_ups())]
        if dealt := deck.deal(one.fits):
            made += 1
            yield record([*dealt[1], one.turn(dealt[1], "training", rng)], split="train", kind="turns")


def _last(deck: Deck, asked: set[str], follow_up: FollowUp | None) -> Block:
    """A block of one turn that is not in `asked`, and after which the follow-up may come."""
    while True:
        dealt = deck.deal(
            lambda name, block: (
                len(block) == 1 and key(block[0][0]) not in asked and (follow_up is None or follow_up.fits(name, block))
            )
        )
        if dealt:
            return dealt[1]


def _heldout(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Held-out conversations. In its first turn the user tells a name that training never uses.

    So the two halves share no opening, and training has none of them.
    """
    deck = Deck(rng)
    for half in HALVES:
        names = remembering.values(remembering.NAME, half)
        for kind, count in NUM_HELDOUT.items():
            for number in range(count):
                name = names[number % len(names)]
                memory = remembering.remembered(remembering.NAME, name, half, rng)
                asked = {key(memory.asked[0])}
                length = 0
                if kind == "memory":
                    length = rng.randint(1, 5)
                elif kind == "known":
                    length = rng.randint(5, 9)
                turns = [turn for block in _string(deck, length, MOST_TOKENS - 70, asked, rng) for turn in block]
                if kind == "memory":
                    turns.append(memory.asked)
                    cluster = f"name:{name}"
                else:
                    follow_up = follow_ups()[number % len(follow_ups())]
                    block = _last(deck, asked, follow_up if kind == "short" else None)
                    turns += block
                    cluster = f"{kind}:{block[0][0]}"
                    if kind == "short":
                        turns.append(follow_up.turn(block, half, rng))
                group = f"medley:{half}:{kind}:{number}"
                yield record([memory.told, *turns], split=half, kind="turns", cluster=cluster, group=group)


def records() -> Iterator[dict[str, Any]]:
    """Conversations of kind `turns`. The mix fills in {{name}} and {{author}}."""
    rng = random.Random(4127)
    yield from _short(rng)
    yield from _long(rng)
    yield from _heldout(rng)
