"""One answer as a stream of tokens, which stops when the model ends it or repeats itself."""

from collections.abc import Iterator, Sequence

from dataset.tokenizer import RustBPETokenizer
from inference.generate import generate, stop_ids
from inference.sampling import Sampling
from model.model_minillm import MiniLLM

LONGEST_LOOP = 32
"""Tokens of the longest piece whose repetition stops an answer."""
LOOP_TOKENS = 24
"""An answer is stopped if at least so many tokens at its end are repetition, and at least three
rounds of it."""


class Reply:
    """An answer that comes token by token.

    It ends when the model ends it, when it repeats itself, or at `sampling.max_new_tokens`.
    """

    def __init__(self, model: MiniLLM, tokenizer: RustBPETokenizer, prompt: list[int], sampling: Sampling) -> None:
        self.model, self.tokenizer, self.prompt, self.sampling = model, tokenizer, prompt, sampling
        self.ids: list[int] = []
        self.ended = self.loops = False

    def __iter__(self) -> Iterator[int]:
        stops = stop_ids(self.tokenizer)
        for column in generate(self.model, [self.prompt], stops, self.sampling):
            token = int(column[0])
            if token in stops:
                self.ended = True
                return
            self.ids.append(token)
            yield token
            if is_looping(self.ids):
                self.loops = True
                return

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.tokenizer.decode(self.ids)


def is_looping(ids: Sequence[int]) -> bool:
    """Whether the end of an answer is one short piece again and again."""
    # A tail repeats with a period if it equals itself shifted by that period.
    for period in range(1, LONGEST_LOOP + 1):
        length = max(LOOP_TOKENS, 3 * period)
        tail = ids[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False
