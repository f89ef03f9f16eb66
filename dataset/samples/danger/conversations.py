"""Sample conversations in which a life is in danger, and harmless ones in nearly the same words.

A user who writes that somebody wants to die always gets the same answer. It takes the user
seriously, and says to talk to somebody near and which numbers to call. The border must be sharp:
累死了, 笑死我了 and 跳楼价 get other answers, and a question after such a turn is answered as
usual.

The wordings come from two tables, which also hold the held-out ones, and from `frames.yaml`. There
the same people, times, openings and ends are used for danger and for harmless turns, so that only
the rest of the sentence decides.
"""

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from dataset.records.keys import normalised
from dataset.samples import frames
from dataset.samples.alternatives import wordings
from dataset.samples.dialogue import everyday
from dataset.samples.exam import danger_words, user_turns

ANSWER = (
    "听你这么说，我很担心。请别一个人扛着，马上告诉身边信得过的人；"
    "有危险请立刻拨打120或110，也可以打心理援助热线12356。"
)
"""120: ambulance; 110: police; 12356: the national help line. They are the same in all of mainland
China."""

DANGER_FILE = Path(__file__).with_name("wordings.tsv")
HARMLESS_FILE = Path(__file__).with_name("harmless.tsv")
FRAMES_FILE = Path(__file__).with_name("frames.yaml")
TRAINING, VALIDATION, TEST = SIDES = ("training", "validation", "test")
DANGER, HARMLESS = KINDS = ("danger", "harmless")

NUM_CHATS: dict[str, dict[str, int]] = {
    TRAINING: {"danger_last": 240, "chat_last": 110, "harmless_last": 200, "harmless_after_danger": 70},
    VALIDATION: {"danger_last": 10, "chat_last": 0, "harmless_last": 8, "harmless_after_danger": 8},
    TEST: {"danger_last": 10, "chat_last": 0, "harmless_last": 8, "harmless_after_danger": 8},
}
"""Number of longer conversations of each side, by how they end."""
BEFORE_SHARE, AFTER_SHARE = 0.15, 0.06
"""How often one of the texts below is put before or after a statement. Both kinds get them, so that
they do not tell the kind."""
_BEFORE: frames.Choices = {"诶，": 1, "哎，": 2, "跟你说，": 2, "我跟你说，": 3, "说真的，": 2, "真的，": 2}
_AFTER: frames.Choices = {"，真的": 3, "……真的": 1}

_SLOT = re.compile(r"\{(\w+)\}")
TRIES = 20
"""A block of frames ends after this many tries for each sentence that is wanted."""

Turn = tuple[str, str]
"""(what the user says, what the assistant answers)."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What the user says, without what is put around it, and the answer to it."""

    text: str
    kind: str
    form: frames.Form
    answer: str

    def turn(self, rng: random.Random) -> Turn:
        """The wording as somebody may type it, with its answer."""
        text = self.text
        if self.form == "say" and rng.random() < BEFORE_SHARE:
            return frames.draw(_BEFORE, rng) + frames.marked(text, rng, "say"), self.answer
        if self.form == "say" and rng.random() < AFTER_SHARE:
            text += frames.draw(_AFTER, rng)
        return frames.framed(text, rng, self.form), self.answer


def _table(path: Path, kind: str) -> dict[str, list[Wording]]:
    """Side -> the wordings of one table. A row about danger has no answer of its own."""
    found: dict[str, list[Wording]] = {side: [] for side in SIDES}
    form: frames.Form = "say"
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            form = next(known for known in get_args(frames.Form) if known == line.strip("[]"))
        elif not line.startswith("#"):
            cells = line.split("\t")
            answer = ANSWER if kind == DANGER else cells.pop(0)
            for side, cell in zip(SIDES, cells, strict=True):
                found[side] += [Wording(text, kind, form, answer) for text in wordings(cell)]
    return found


def tables() -> dict[str, dict[str, list[Wording]]]:
    """Kind -> side -> wordings.

    A sentence of `frames.yaml` that contains a held-out wording of the tables is left out.
    """
    found = {DANGER: _table(DANGER_FILE, DANGER), HARMLESS: _table(HARMLESS_FILE, HARMLESS)}
    sides = {side: [normalised(one.text) for kind in KINDS for one in found[kind][side]] for side in SIDES}
    held = [*sides[VALIDATION], *sides[TEST]]
    taken = {*sides[TRAINING], *held}
    rng = random.Random(1236)
    for kind in KINDS:
        composed = _composed(kind, rng, taken)
        said = {one: normalised(one.text) + "真的" for one in composed}  # as `turn` may end it
        found[kind][TRAINING] += [one for one, text in said.items() if not any(part in text for part in held)]
    return found


def _composed(kind: str, rng: random.Random, taken: set[str]) -> Iterator[Wording]:
    """The training sentences of `frames.yaml`.

    Args: taken: normalised wordings that are used already; it grows.
    """
    blocks = yaml.safe_load(FRAMES_FILE.read_text(encoding="utf-8"))
    for block in blocks[kind]:
        slots = {
            name: values.split("|")
            for name, values in (blocks["shared"] | block).items()
            if name not in ("answer", "form", "count", "frames")
        }
        ways = block["frames"].splitlines()
        made = 0
        for way in itertools.islice(itertools.cycle(ways), block["count"] * TRIES):
            text = _filled(way, slots, rng)
            if normalised(text) not in taken:
                taken.add(normalised(text))
                made += 1
                yield Wording(text, kind, block["form"], block.get("answer", ANSWER))
            if made == block["count"]:
                break


def _filled(way: str, slots: Mapping[str, list[str]], rng: random.Random) -> str:
    """A frame with a drawn word in each slot."""
    return _SLOT.sub(lambda slot: rng.choice(slots[slot[1]]), way)


def _record(turns: list[Turn], kind: str, side: str, wording: Wording | None) -> dict[str, Any]:
    """A conversation. `kind`: that of its last turn. `wording`: that of its last turn, or None."""
    messages = []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    record: dict[str, Any] = {"conversations": messages, "kind": kind}
    if side != TRAINING and wording is not None:
        # A record without a group has its first turn as key. But the first turns of this record are
        # also in training samples, and the mix would hold those samples out too. So we set a group,
        # made of the last turn: then the group is the key.
        grouped = {"group": f"{kind}: {wording.text}"} if len(turns) > 1 else {}
        record |= {"split": side, "cluster": wording.text} | grouped
    return record


def _chats(
    by_kind: dict[str, dict[str, list[Wording]]], small_talk: list[Turn], side: str, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Longer conversations: small talk with one of our wordings in it or at its end."""

    def talk(lowest: int, highest: int) -> list[Turn]:
        return rng.sample(small_talk, rng.randint(lowest, highest))

    dangers, harmless = by_kind[DANGER][side], by_kind[HARMLESS][side]
    for ending, count in NUM_CHATS[side].items():
        for _ in range(count):
            danger, neighbour = rng.choice(dangers), rng.choice(harmless)
            if ending == "danger_last":
                between = [neighbour.turn(rng)] if rng.random() < 0.3 else talk(0, 1)
                yield _record([*talk(1, 3), *between, danger.turn(rng)], DANGER, side, danger)
            elif ending == "chat_last":
                yield _record([*talk(0, 2), danger.turn(rng), *talk(1, 2)], HARMLESS, side, None)
            elif ending == "harmless_last":
                yield _record([*talk(1, 3), neighbour.turn(rng)], HARMLESS, side, neighbour)
            else:
                yield _record([*talk(0, 1), danger.turn(rng), neighbour.turn(rng)], HARMLESS, side, neighbour)


def records() -> Iterator[dict[str, Any]]:
    """Chat records with `kind`, each once. Held-out ones have `split` and `cluster` (the wording).

    No training record asks a question of the exam about danger.
    """
    exam = danger_words()
    return (record for record in _all_records() if "split" in record or not exam.asks(user_turns(record)))


def _all_records() -> Iterator[dict[str, Any]]:
    """The records, also those that ask a question of the exam."""
    by_kind = tables()
    rng = random.Random(1235)
    said = [record["conversations"] for record in everyday.records() if record.get("split") in (None, "train")]
    small_talk = [(turns[0]["content"], turns[1]["content"]) for turns in said if len(turns) == 2]
    for side in SIDES:
        for kind in KINDS:
            for wording in by_kind[kind][side]:
                yield _record([wording.turn(rng)], kind, side, wording)
        yield from _chats(by_kind, small_talk, side, rng)
