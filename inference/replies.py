"""One answer as it streams: its text in pieces, its parts, its end."""

from collections.abc import Iterator, Sequence

from inference.engine import Engine
from inference.parts import Part, Splitter, marks_of, opens_thought, split
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

    def parts(self) -> Iterator[list[Part]]:
        """The same, with thought and answer apart: the parts that each step adds."""
        marks = marks_of(self.engine.tokenizer.chat_format)
        splitter = Splitter(marks, begins_with_thought=self.begins_with_thought)
        for text in self:
            yield list(splitter.add(text))
        yield list(splitter.add("", last=True))

    def stop(self) -> None:
        """End it here. What was held back still comes."""
        self.engine.abort(self.request)

    @property
    def ended(self) -> bool:
        """Whether the model ended it."""
        return self.request.finish_reason == "stop"

    @property
    def begins_with_thought(self) -> bool:
        """Whether the prompt has opened a thought."""
        return opens_thought(self.request.prompt, self.engine.tokenizer)

    @property
    def thought_and_answer(self) -> tuple[str, str]:
        """Both so far. The answer is empty until the thought has ended."""
        return split(self.text, self.engine.tokenizer.chat_format, begins_with_thought=self.begins_with_thought)

    @property
    def text(self) -> str:
        """The answer so far, with the names of special tokens."""
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
