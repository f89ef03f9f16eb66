"""Sample conversations about the model itself: its name, its maker, what it can and can't do.

    python -m dataset.samples.identity.questions    # writes dataset/identity_cn_sample.jsonl again

The mix fills in {{name}}, {{name_lower}} and {{author}}. Each topic has one answer and many
wordings that ask for it (clauses). The clauses are divided into three sides. So a held-out question
is really a new wording, not an old one with another "hello". The answer of a neighbouring topic is
also right if it answers exactly what was asked.
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
"""How people type the model's name: as it is, or all in lower case."""
MAIN_TOPICS = ("name", "who", "own", "maker", "what", "ai", "human", "other", "company", "ability", "intro")
"""Topics that nearly everyone asks about. In training their clauses are typed in more ways."""
NUM_TYPED, NUM_TYPED_MAIN, NUM_TYPED_SLOT = 1, 2, 2
"""Ways in which a training clause is typed: of most topics, of the main topics, and with the name
of another model or a person in it."""
NUM_TYPED_HELDOUT = 2
"""Ways in which a held-out clause is typed."""
NUM_CHAINS = {TRAINING: 260, VALIDATION: 15, TEST: 15}
"""Conversations of two to four questions."""
_CHAIN_LENGTHS = (2, 2, 2, 3, 3, 4)
_OF_QUIZZES = ("考考你", "你知道吗")
"""Words around a quiz question. They sound odd around a question about the model itself."""
_ANY_CASE: frames.Choices = {"as written": 11, "lower": 8, "upper": 1}
"""How people type English words."""
_ENGLISH = re.compile(r"\{+\w+\}+|[A-Za-z]+")
_SLOT = re.compile(r"(?<!\{)\{([mcp])\}")


@dataclass(frozen=True, slots=True)
class Clause:
    """One wording, without what people put around it."""

    text: str
    form: str
    """What may be put around it, as `frames.Form`; around "short" and "tell" nothing but a mark."""

    @property
    def slot(self) -> str:
        """The letter of the slot for a name: m, c or p; "" if there is none."""
        found = _SLOT.search(self.text)
        return found.group(1) if found else ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An answer of another topic that is also right for some questions of this topic."""

    answer: str
    asked: re.Pattern[str]
    """The answer is right for questions that contain this."""
    example: str
    """One such question."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing that users ask about, with its answer."""

    name: str
    answer: str
    always: list[str]
    """Other answers that are right for all its questions."""
    neighbours: list[Neighbour]
    clauses: dict[str, list[Clause]]
    """By side."""

    def accepted(self, question: str) -> list[str]:
        """The other answers that are right for one question."""
        fitting = (one.answer for one in self.neighbours if one.asked.search(question.lower()))
        return [answer for answer in dict.fromkeys([*self.always, *fitting]) if answer != self.answer]


def normalised(question: str) -> str:
    """The question without case, spacing and punctuation. Equal ones count as the same wording."""
    return "".join(filter(str.isalnum, question.lower()))


def _table() -> dict[str, Any]:
    """The topics and the slots."""
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
    """A neighbour from its row: a `topic` of this table, or a `limit` of `limits/wordings.yaml`."""
    answer = limits.answers()[cells["limit"]] if "limit" in cells else rows[cells["topic"]]["answer"]
    return Neighbour(answer, re.compile(cells["asked"]), cells["example"])


def fillings() -> dict[str, dict[str, list[str]]]:
    """Slot -> side -> names for the slot."""
    return {slot: {side: wordings(row[side]) for side in SIDES} for slot, row in _table()["slots"].items()}


def _cased(text: str, rng: random.Random) -> str:
    """The text with its English words in a drawn case. Placeholders stay as they are."""
    case = frames.draw(_ANY_CASE, rng)
    if case == "as written":
        return text
    return _ENGLISH.sub(lambda found: found[0] if found[0].startswith("{") else getattr(found[0], case)(), text)


def _typed(clause: Clause, names: dict[str, list[str]], rng: random.Random) -> str:
    """The clause as somebody may type it. `names`: slot -> names for it."""
    text = clause.text
    if clause.slot:
        text = text.replace(f"{{{clause.slot}}}", rng.choice(names[clause.slot]))
    text = _cased(text, rng).replace("{n}", frames.draw(OWN_NAMES, rng))
    if clause.form == "tell":
        return frames.marked(text, rng, "say")
    if clause.form == "short":
        return frames.marked(text, rng)
    form: frames.Form = "ask"
    if clause.form == "do":
        form = "do"
    elif clause.form == "wh":
        form = "wh"
    question = frames.framed(text, rng, form)
    while any(frame in question and frame not in text for frame in _OF_QUIZZES):
        question = frames.framed(text, rng, form)
    return question


def questions_of(
    clause: Clause, count: int, side: str, names: dict[str, dict[str, list[str]]], rng: random.Random
) -> list[str]:
    """Up to `count` ways to type one clause. A short clause has few of them."""
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


def record_of(turns: list[tuple[str, str]], topic: Topic, clause: Clause, side: str) -> dict[str, Any]:
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
    """Conversations about several topics, of somebody who wants to know the model."""
    for _ in range(NUM_CHAINS[side]):
        turns = []
        for topic in rng.sample(all_topics, rng.choice(_CHAIN_LENGTHS)):
            clause = rng.choice(topic.clauses[side])
            turns.append((questions_of(clause, 2, side, names, rng)[-1], topic.answer))
        yield record_of(turns, topic, clause, side)


def records() -> Iterator[dict[str, Any]]:
    """Chat records, each with its `topic`.

    Held-out ones have `split`, `cluster` (their clause) and `accepted`. No two records of one side
    consist of the same single question.
    """
    all_topics, names = topics(), fillings()
    rng = random.Random(3301)
    for side in SIDES:
        taken: set[str] = set()
        for topic in all_topics:
            for clause in topic.clauses[side]:
                count = NUM_TYPED_HELDOUT if side != TRAINING else _times_typed(topic, clause)
                for question in questions_of(clause, count, side, names, rng):
                    if question not in taken:
                        taken.add(question)
                        yield record_of([(question, topic.answer)], topic, clause, side)
        yield from _chains(all_topics, side, names, rng)


def sample_text() -> str:
    """The content of IDENTITY_SAMPLE."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in without_exam(records()))


def main() -> int:
    """Write IDENTITY_SAMPLE."""
    with atomic_write(IDENTITY_SAMPLE) as file:
        file.write(sample_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
