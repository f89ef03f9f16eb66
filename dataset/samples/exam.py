"""The exams are never trained on: bundled records that ask one of their questions are left out.

The exams are `dataset/first_minutes.jsonl` and `dataset/danger_prompts.jsonl` (docs/formats.md). A
record asks a question of an exam if its words are the same or nearly the same. Case, spaces and
punctuation do not count. Records of the user's are never left out.
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
"""Two questions are nearly the same if the Jaccard index of their trigrams is above this."""


def trigrams(question: str) -> frozenset[str]:
    """All runs of three characters in a normalised question. A shorter question is one run."""
    return frozenset(question[i : i + 3] for i in range(max(1, len(question) - 2)))


def _normalised(turns: Sequence[str]) -> str:
    """The turns as one normalised text, with a name instead of the placeholder."""
    return normalised_question(_NAME.sub("MiniLLM", "\n".join(turns)))


class Exam:
    """Questions of an exam. Each is one turn of a user, or several turns together."""

    def __init__(self, questions: Iterable[Sequence[str]]) -> None:
        """`questions`: the user's turns of each. `{{name}}` stands for the model's name."""
        self.trigrams: list[frozenset[str]] = []
        self.texts: set[str] = set()
        self.lengths: set[int] = set()
        """The numbers of turns that questions have."""
        self.holders: dict[str, list[int]] = defaultdict(list)
        """Trigram -> the numbers of the questions that have it."""
        for turns in questions:
            text = _normalised(turns)
            self.texts.add(text)
            self.lengths.add(len(turns))
            for trigram in trigrams(text):
                self.holders[trigram].append(len(self.trigrams))
            self.trigrams.append(trigrams(text))

    def asks(self, user_turns: Sequence[str]) -> bool:
        """Whether a conversation has a question of the exam, or one that is nearly the same."""
        for length in self.lengths:
            for start in range(len(user_turns) - length + 1):
                if self._is_close(_normalised(user_turns[start : start + length])):
                    return True
        return False

    def _is_close(self, text: str) -> bool:
        """Whether a normalised text is a question of the exam, or nearly so."""
        if text in self.texts:
            return True
        own = trigrams(text)
        # A close question lacks less than a fifth of our trigrams. So of any fifth of them, plus
        # one, it has at least one. It is enough to compare the questions that hold one of those.
        few = int((1 - MOST_ALIKE) * len(own)) + 1
        near = {number for trigram in itertools.islice(own, few) for number in self.holders.get(trigram, ())}
        return any(
            len(own & other) > MOST_ALIKE * len(own | other) for other in (self.trigrams[number] for number in near)
        )


@cache
def unseen() -> Exam:
    """The questions that no bundled record asks.

    They are the list `unseen` of the first minutes, and what people say when a life is in danger.
    If such words end a longer chat, only the last turn counts: the turns before it are small talk.
    """
    unseen = [_turns(row) for row in _rows(FIRST_MINUTES) if row["list"] == "unseen"]
    return Exam([*unseen, *(_turns(row)[-1:] for row in _rows(DANGER_PROMPTS) if row["danger"])])


@cache
def danger_words() -> Exam:
    """All questions of the exam about danger, also the harmless ones.

    The sample `danger` trains on none of them. Other samples may hold the harmless ones (我失恋了),
    because there they do not teach where danger begins.
    """
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
    """The user's turns in a bundled record; none in raw text."""
    messages = record.get("conversations") or record.get("chosen") or ()
    return [message["content"] for message in messages if message["role"] == "user"]
