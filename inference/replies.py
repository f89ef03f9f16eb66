"""One answer as it streams: its text in pieces, the thought apart from the answer, its end.

A reasoning model thinks between `<|think_start|>` and `<|think_end|>` before it answers.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from inference.engine import Engine
from inference.sampling import Sampling, scores_not_finite

THINK_START, THINK_END = "<|think_start|>", "<|think_end|>"
MARK = re.compile(re.escape(THINK_START) + "|" + re.escape(THINK_END))
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
        parts = Parts()
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

    def __init__(self) -> None:
        self.is_thought = False
        self._held_back = ""

    def add(self, text: str, *, last: bool = False) -> Iterator[Piece]:
        """What the text gained -> at least one piece. Args: last: nothing follows."""
        text = self._held_back + text
        start = 0
        for mark in MARK.finditer(text):
            yield Piece(text[start : mark.start()], self.is_thought)
            self.is_thought, start = mark[0] == THINK_START, mark.end()
        # The end of the text may be the beginning of a mark. So much of it is held back.
        lengths = range(0 if last else min(len(text) - start, len(THINK_START) - 1), 0, -1)
        length = next((n for n in lengths if (THINK_START.startswith(text[-n:]) or THINK_END.startswith(text[-n:]))), 0)
        end = len(text) - length
        self._held_back = text[end:]
        yield Piece(text[start:end], self.is_thought)


def split_thought(text: str) -> tuple[str, str]:
    """Thought and answer of a whole text. The answer is empty if the thought has no end."""
    pieces = list(Parts().add(text, last=True))
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
