"""One answer as a stream of text, which stops when the model ends it or repeats itself."""

from collections.abc import Iterator, Sequence

from inference.engine import Engine
from inference.sampling import Sampling, scores_not_finite

LONGEST_LOOP = 32
"""Tokens of the longest piece whose repetition stops an answer."""
LOOP_TOKENS = 24
"""An answer is stopped if at least so many tokens at its end are repetition, and at least three
rounds of it."""


class Reply:
    """An answer that comes piece by piece.

    It ends when the model ends it, when it repeats itself, or at `sampling.max_new_tokens`.
    """

    def __init__(self, engine: Engine, prompt: Sequence[int], sampling: Sampling) -> None:
        self.engine = engine
        self.request = engine.add(prompt, sampling)[0]
        self.loops = False

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, in whole characters. A reply that is left early is given up."""
        request = self.request
        try:
            while not request.finished:
                self.engine.step()
                if request.finish_reason == "error":
                    raise scores_not_finite()
                if is_looping(request.ids):
                    self.loops = True
                    self.engine.abort(request)
                if piece := request.new_text():
                    yield piece
        finally:
            self.engine.abort(request)

    @property
    def ended(self) -> bool:
        """Whether the model ended it."""
        return self.request.finish_reason == "stop"

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.request.text


def is_looping(ids: Sequence[int]) -> bool:
    """Whether the end of an answer is one short piece again and again."""
    # A tail repeats with a period if it equals itself shifted by that period.
    for period in range(1, LONGEST_LOOP + 1):
        length = max(LOOP_TOKENS, 3 * period)
        tail = ids[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False
