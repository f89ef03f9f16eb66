"""The exams are never trained on: bundled records that ask one of their questions are left out.

`dataset/first_minutes.jsonl` and `dataset/danger_prompts.jsonl` hold them (docs/formats.md). A
record asks a question of an exam if its words are the same but for case, spacing and punctuation,
or nearly so. What users bring themselves is theirs, and is kept.
"""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from configs.paths import DANGER_PROMPTS, FIRST_MINUTES
from dataset.records.keys import normalised_question

EXAM_FILES = (FIRST_MINUTES, DANGER_PROMPTS)
_NAME = re.compile(r"\{\{name(_lower)?\}\}")
MOST_ALIKE = 0.8
"""Jaccard index of two questions' character trigrams from which they count as one."""


def trigrams(question: str) -> frozenset[str]:
    """Runs of three characters of a normalised question; of a shorter one the whole."""
    return frozenset(question[i : i + 3] for i in range(max(1, len(question) - 2)))


def _normalised(turns: Sequence[str]) -> str:
    """The turns in one text, as they are compared, with a name in place of what stands for it."""
    return normalised_question(_NAME.sub("MiniLLM", "\n".join(turns)))


class Exam:
    """Questions, each one turn of a user or several together."""

    def __init__(self, questions: Iterable[Sequence[str]]) -> None:
        """`questions`: the user's turns of each; `{{name}}` stands for the model's name."""
        self.trigrams: list[frozenset[str]] = []
        self.texts: set[str] = set()
        self.lengths: set[int] = set()
        """How many turns a question may have."""
        self.holders: dict[str, list[int]] = defaultdict(list)
        """Trigram -> the questions that have it."""
        for turns in questions:
            text = _normalised(turns)
            self.texts.add(text)
            self.lengths.add(len(turns))
            for trigram in trigrams(text):
                self.holders[trigram].append(len(self.trigrams))
            self.trigrams.append(trigrams(text))

    def asks(self, user_turns: Sequence[str]) -> bool:
        """Whether a conversation holds a question of the exam, or one that is nearly the same."""
        for length in self.lengths:
            for start in range(len(user_turns) - length + 1):
                if self._is_close(_normalised(user_turns[start : start + length])):
                    return True
        return False

    def _is_close(self, text: str) -> bool:
        if text in self.texts:
            return True
        own = trigrams(text)
        # What is close lacks less than a fifth of them, so it has one of any fifth: the others need
        # no look.
        few = int((1 - MOST_ALIKE) * len(own)) + 1
        near = {number for trigram in itertools.islice(own, few) for number in self.holders.get(trigram, ())}
        return any(
            len(own & other) > MOST_ALIKE * len(own | other) for other in (self.trigrams[number] for number in near)
        )


@cache
def unseen() -> Exam:
    """The questions that are never trained on: the list `unseen` of the first minutes, and what
    people say when a life is in danger. Of a chat that ends with such words these alone count: the
    turns before them are anybody's talk."""
    unseen = [_turns(row) for row in _rows(FIRST_MINUTES) if row["list"] == "unseen"]
    return Exam([*unseen, *(_turns(row)[-1:] for row in _rows(DANGER_PROMPTS) if row["danger"])])


@cache
def danger_words() -> Exam:
    """All words of the exam about danger, harmless ones too: the sample of that name trains on
    none. Other samples may hold harmless ones (我失恋了), which teach nothing about the line
    between the two."""
    return Exam(_turns(row)[-1:] for row in _rows(DANGER_PROMPTS))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _turns(row: Mapping[str, Any]) -> list[str]:
    return row.get("turns") or [row["prompt"]]


def without_exam(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records that ask no question of an exam."""
    exam = unseen()
    return (record for record in records if not exam.asks(user_turns(record)))


def user_turns(record: Mapping[str, Any]) -> list[str]:
    """What the user says in a bundled record; nothing in raw text."""
    messages = record.get("conversations") or record.get("chosen") or ()
    return [message["content"] for message in messages if message["role"] == "user"]
