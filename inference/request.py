"""One answer that is being made: its tokens, its text as it may be shown, and why it ended."""

import codecs
from collections.abc import Sequence
from typing import Literal

from dataset.tokenizer import RustBPETokenizer
from inference.sampling import Row, Sampling, TokenLogprob

FinishReason = Literal["stop", "length", "abort", "error"]
"""`stop`: the model ended it, or a stop string came. `length`: the limit. `abort`: nobody wants it
any more. `error`: the model's scores were not finite."""


class GrowingText:
    """Tokens -> text, in whole characters and without a stop string.

    A token may end within a character, and a stop string may begin in one token and end in the
    next. What may still become part of a stop string is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = stop
        self.stopped = False
        """Whether a stop string has come. The text ends before it."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoded = ""
        self._shown = 0

    @property
    def text(self) -> str:
        """What may be shown so far."""
        return self._decoded[: self._shown]

    def add(self, token: bytes, *, last: bool = False) -> None:
        """Add the bytes of the next token. Args: last: nothing follows, so nothing is held back."""
        known = len(self._decoded)
        self._decoded += self._decoder.decode(token, last)
        # A stop string that is complete now may begin before what is new.
        found = [self._decoded.find(stop, max(0, known - len(stop))) for stop in self.stop]
        places = [place for place in found if place >= 0]
        if places:
            self.stopped, self._shown = True, min(places)
        else:
            self._shown = len(self._decoded) - (0 if last else self._held_back())

    def _held_back(self) -> int:
        """Characters at the end that begin a stop string."""
        longest = max(map(len, self.stop), default=0) - 1
        for length in range(min(longest, len(self._decoded)), 0, -1):
            end = self._decoded[-length:]
            if any(stop.startswith(end) for stop in self.stop):
                return length
        return 0


class Request:
    """One answer, made by an engine. The caller reads it; only the engine writes."""

    def __init__(
        self, tokenizer: RustBPETokenizer, prompt: Sequence[int], sampling: Sampling, end_ids: frozenset[int]
    ) -> None:
        """Args: end_ids: tokens that end an answer. They are not part of it."""
        self.prompt, self.sampling = list(prompt), sampling
        self.ids: list[int] = []
        """Tokens so far, without the one that ended it."""
        self.logprobs: list[TokenLogprob] = []
        """One for each of `ids`, if the sampling asks for them."""
        self.end_id: int | None = None
        """The token that ended it, which is not in `ids`. None: none has."""
        self.end_logprob: TokenLogprob | None = None
        """That token's own."""
        self.finish_reason: FinishReason | None = None
        """None: it is not finished."""
        self.cached_tokens = 0
        """Tokens of the prompt that were in the cache already."""
        self.row = Row(sampling, self.prompt, self.ids)
        """What the choice of the next token depends on; it has its own random numbers."""
        self.followers: list[Request] = []
        """Other samples of the same prompt, until this one has read it for all."""
        self._end_ids = end_ids | frozenset(sampling.stop_token_ids)
        self._tokenizer = tokenizer
        self._text = GrowingText(sampling.stop)
        self._taken = 0

    @property
    def text(self) -> str:
        """The answer so far, as far as it may be shown."""
        return self._text.text

    @property
    def finished(self) -> bool:
        """Whether nothing will come any more."""
        return self.finish_reason is not None

    def new_text(self) -> str:
        """What `text` has gained since the last call."""
        text = self.text
        new, self._taken = text[self._taken :], len(text)
        return new

    def append(self, token: int, logprob: TokenLogprob | None) -> None:
        """The next token, which may end the answer."""
        if token in self._end_ids:
            self.end_id, self.end_logprob = token, logprob
            self.finish("stop")
            return
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        self._text.add(self._tokenizer.decode_bytes([token]))
        if self._text.stopped:
            self.finish_reason = "stop"
        elif len(self.ids) == self.sampling.max_new_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """Nothing follows: show what was held back."""
        self._text.add(b"", last=True)
        self.finish_reason = reason
