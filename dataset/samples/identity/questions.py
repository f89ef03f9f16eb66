"""Sample conversations about the model itself: its name, its maker, what it can and cannot do.

    python -m dataset.samples.identity.questions    # writes dataset/identity_cn_sample.jsonl anew

{{name}}, {{name_lower}} and {{author}} are filled in when the data is mixed. Each topic has one
answer. Its clauses, the wordings that ask for it, are divided in three sides, so that a held-out
question is a new wording and not an old one behind a new "hello". A neighbour's answer is right too
where it answers the very question that was asked.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import atomic_write
from configs.paths import IDENTITY_SAMPLE
from dataset.samples import frames
from dataset.samples.alternatives import wordings
from dataset.samples.exam import without_exam
from dataset.samples.limits import questions as limits
from dataset.samples.tables import yaml_table

WORDINGS_FILE = Path(__file__).with_name("wordings.yaml")
TRAINING, VALIDATION, TEST = SIDES = ("training", "validation", "test")

OWN_NAMES: frames.Choices = {"{{name}}": 7, "{{name_lower}}": 3}
"""How people type the model's name: as it is written, or all in lower case."""
MAIN_TOPICS = ("name", "who", "own", "maker", "what", "ai", "human", "other", "company", "ability", "intro")
"""Topics that nearly everyone asks about: in training their clauses are typed in more ways."""
NUM_TYPED, NUM_TYPED_MAIN, NUM_TYPED_SLOT = 1, 2, 2
"""Ways in which one training clause is typed; of the main topics; of clauses that name another
model or a person."""
NUM_TYPED_HELDOUT = 2
NUM_CHAINS = {TRAINING: 260, VALIDATION: 15, TEST: 15}
"""Conversations of two to four questions."""
_CHAIN_LENGTHS = (2, 2, 2, 3, 3, 4)
_OF_QUIZZES = ("考考你", "你知道吗")
"""Frames that fit a question about facts, but not one about whom one talks to."""
_ANY_CASE: frames.Choices = {"as written": 11, "lower": 8, "upper": 1}
"""How people type English words."""
_ENGLISH = re.compile(r"\{+\w+\}+|[A-Za-z]+")
_SLOT = re.compile(r"(?<!\{)\{([mcp])\}")


@dataclass(frozen=True, slots=True)
class Clause:
    """One wording without what people put around it. `form` says what can stand around it, as in
    `frames.Form`; "short" and "tell" take nothing but a mark."""

    text: str
    form: str

    @property
    def slot(self) -> str:
        """What a name is filled in for: m, c, p or nothing."""
        found = _SLOT.search(self.text)
        return found.group(1) if found else ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The answer of a neighbouring topic, or of something that no model can do, and the questions
    that it answers as a person would: those in which `asked` is found. `example` is one of them."""

    answer: str
    asked: re.Pattern[str]
    example: str


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing that users ask, its answer, answers that are right for all its questions,
    neighbours whose answers are right for some, and the clauses of each side."""

    name: str
    answer: str
    always: list[str]
    neighbours: list[Neighbour]
    clauses: dict[str, list[Clause]]

    def accepted(self, question: str) -> list[str]:
        """The further answers that are right for one question."""
        fitting = (one.answer for one in self.neighbours if one.asked.search(question.lower()))
        return [answer for answer in dict.fromkeys([*self.always, *fitting]) if answer != self.answer]


def normalised(question: str) -> str:
    """The question without case, spacing and punctuation: what counts as the same wording."""
    return "".join(filter(str.isalnum, question.lower()))


def _table() -> dict[str, Any]:
    return yaml_table(WORDINGS_FILE)


def topics() -> list[Topic]:
    """All topics of the table."""
    rows = _table()["topics"]
    found = []
    for name, row in rows.items():
        right = (rows[other]["answer"] for other in row.get("accepted", []))
        always = [answer for answer in dict.fromkeys(right) if answer != row["answer"]]
        neighbours = [_neighbour(cells, rows) for cells in row.get("neighbours", [])]
        clauses = {
            side: [Clause(text, form) for form, cell in row[side].items() for text in wordings(cell)] for side in SIDES
        }
        found.append(Topic(name, row["answer"], always, neighbours, clauses))
    return found


def _neighbour(cells: dict[str, str], rows: dict[str, Any]) -> Neighbour:
    """A neighbour as the table has it: `topic` of this table or `limit` of `limits/wordings.yaml`,
    `asked` and `example`."""
    answer = limits.answers()[cells["limit"]] if "limit" in cells else rows[cells["topic"]]["answer"]
    return Neighbour(answer, re.compile(cells["asked"]), cells["example"])


def _fillings() -> dict[str, dict[str, list[str]]]:
    """Slot -> side -> the names that are filled in there."""
    return {slot: {side: wordings(row[side]) for side in SIDES} for slot, row in _table()["slots"].items()}


def _cased(text: str, rng: random.Random) -> str:
    """The text with its English words in some case; placeholders stay as they are."""
    case = frames.draw(_ANY_CASE, rng)
    if case == "as written":
        return text
    return _ENGLISH.sub(lambda found: found[0] if found[0].startswith("{") else getattr(found[0], case)(), text)


def _typed(clause: Clause, names: dict[str, list[str]], rng: random.Random) -> str:
    """The clause as somebody may type it. `names`: slot -> what may be filled in."""
    text = clause.text
    if clause.slot:
        text = text.replace(f"{{{clause.slot}}}", rng.choice(names[clause.slot]))
    text = _cased(text, rng).replace("{n}", frames.draw(OWN_NAMES, rng))
    if clause.form == "tell":
        return frames.marked(text, rng, "say")
    if clause.form == "short":
        return frames.marked(text, rng)
    form: frames.Form = "do" if clause.form == "do" else "wh" if clause.form == "wh" else "ask"
    question = frames.framed(text, rng, form)
    while any(frame in question and frame not in text for frame in _OF_QUIZZES):
        question = frames.framed(text, rng, form)
    return question


def _questions(
    clause: Clause, count: int, side: str, names: dict[str, dict[str, list[str]]], rng: random.Random
) -> list[str]:
    """Up to `count` ways to type one clause; a short one has few of them."""
    allowed = {slot: by_side[side] for slot, by_side in names.items()}
    found: dict[str, str] = {}
    for _ in range(12 * count):
        question = _typed(clause, allowed, rng)
        # Held-out questions differ by more than their marks.
        found.setdefault(question if side == TRAINING else normalised(question), question)
        if len(found) == count:
            break
    return list(found.values())


def _times_typed(topic: Topic, clause: Clause) -> int:
    """How often a training clause is asked."""
    if clause.slot:
        return NUM_TYPED_SLOT
    return NUM_TYPED_MAIN if topic.name in MAIN_TOPICS else NUM_TYPED


def _record(turns: list[tuple[str, str]], topic: Topic, clause: Clause, side: str) -> dict[str, Any]:
    """A conversation whose last question is about `topic`."""
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    record: dict[str, Any] = {"conversations": messages, "topic": topic.name}
    if side != TRAINING:
        record |= {"split": side, "cluster": clause.text, "accepted": topic.accepted(turns[-1][0])}
    return record


def _chains(
    all_topics: list[Topic], side: str, names: dict[str, dict[str, list[str]]], rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Conversations about several topics, as someone asks who is getting to know the model."""
    for _ in range(NUM_CHAINS[side]):
        turns = []
        for topic in rng.sample(all_topics, rng.choice(_CHAIN_LENGTHS)):
            clause = rng.choice(topic.clauses[side])
            turns.append((_questions(clause, 2, side, names, rng)[-1], topic.answer))
        yield _record(turns, topic, clause, side)


def records() -> Iterator[dict[str, Any]]:
    """Chat records, each with its `topic`; held-out ones carry `split`, `cluster` (their clause)
    and `accepted`.

    No question stands twice alone.
    """
    all_topics, names = topics(), _fillings()
    rng = random.Random(3301)
    for side in SIDES:
        taken: set[str] = set()
        for topic in all_topics:
            for clause in topic.clauses[side]:
                count = NUM_TYPED_HELDOUT if side != TRAINING else _times_typed(topic, clause)
                for question in _questions(clause, count, side, names, rng):
                    if question not in taken:
                        taken.add(question)
                        yield _record([(question, topic.answer)], topic, clause, side)
        yield from _chains(all_topics, side, names, rng)


def sample_text() -> str:
    """The whole of IDENTITY_SAMPLE."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in without_exam(records()))


def main() -> int:
    with atomic_write(IDENTITY_SAMPLE) as file:
        file.write(sample_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
