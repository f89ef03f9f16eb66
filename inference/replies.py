"""One answer as it streams: its text in pieces, the thought apart from the answer, its end.

A reasoning model thinks before it answers, between two marks (`ChatFormat.thought`).
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dataset.chat import THOUGHT
from inference.engine import Engine
from inference.sampling import Sampling, scores_not_finite

LONGEST_LOOP = 32
"""Tokens of the longest piece whose repetition stops an answer."""
LOOP_TOKENS = 24
"""An answer is stopped if at least so many tokens at its end are repetition, and at least three
rounds of it."""


class Piece(NamedTuple):
    """The text that a step adds: whole characters, so it may be empty."""

    text: str
    is_thought: bool
    """It belongs to what the model thinks before it answers."""


class Reply:
    """An answer that comes piece by piece.

    It ends when the model ends it, when it repeats itself, or at `sampling.max_new_tokens`.
    """

    def __init__(self, engine: Engine, prompt: Sequence[int], sampling: Sampling) -> None:
        self.engine = engine
        self.request = engine.add(prompt, sampling)[0]
        self.loops = False

    def __iter__(self) -> Iterator[str]:
        """A piece of text a step, in whole characters, so it may be empty. A reply that is left
        early is given up.

        Raises: UserError when the model's scores are NaN or infinite.
        """
        request = self.request
        try:
            while not request.finished:
                self.engine.step()
                if request.finish_reason == "error":
                    raise scores_not_finite()
                if not request.finished and is_looping(request.ids):
                    self.loops = True
                    self.engine.abort(request)
                yield request.new_text()
            yield request.new_text()  # what was held back, if `stop` has ended it
        finally:
            self.engine.abort(request)

    def pieces(self) -> Iterator[Piece]:
        """The same, with the thought apart: at least one piece a step."""
        parts = Parts(self.engine.tokenizer.chat_format.thought)
        for text in self:
            yield from parts.add(text)
        yield from parts.add("", last=True)

    def stop(self) -> None:
        """End it here. What was held back still comes."""
        self.engine.abort(self.request)

    @property
    def ended(self) -> bool:
        """Whether the model ended it."""
        return self.request.finish_reason == "stop"

    @property
    def text(self) -> str:
        """The answer so far, with the names of special tokens."""
        return self.request.text


class Parts:
    """Tells thought and answer apart in a text that grows."""

    def __init__(self, marks: tuple[str, str] = THOUGHT) -> None:
        """Args: marks: before and after a thought."""
        self.is_thought = False
        self._marks, self._mark = marks, re.compile("|".join(map(re.escape, marks)))
        self._held_back = ""

    def add(self, text: str, *, last: bool = False) -> Iterator[Piece]:
        """What the text gained -> at least one piece. Args: last: nothing follows."""
        text = self._held_back + text
        start = 0
        for mark in self._mark.finditer(text):
            yield Piece(text[start : mark.start()], self.is_thought)
            self.is_thought, start = mark[0] == self._marks[0], mark.end()
        # The end of the text may be the beginning of a mark. So much of it is held back.
        longest = 0 if last else min(len(text) - start, max(map(len, self._marks)) - 1)
        begins = (n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in self._marks))
        length = next(begins, 0)
        end = len(text) - length
        self._held_back = text[end:]
        yield Piece(text[start:end], self.is_thought)


def split_thought(text: str, marks: tuple[str, str] = THOUGHT) -> tuple[str, str]:
    """Thought and answer of a whole text. The answer is empty if the thought has no end."""
    pieces = list(Parts(marks).add(text, last=True))
    thought, answer = ("".join(p.text for p in pieces if p.is_thought == wanted) for wanted in (True, False))
    return thought, answer


def is_looping(ids: Sequence[int]) -> bool:
    """Whether the end of an answer is one short piece again and again."""
    # A tail repeats with a period if it equals itself shifted by that period.
    for period in range(1, LONGEST_LOOP + 1):
        length = max(LOOP_TOKENS, 3 * period)
        tail = ids[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False
