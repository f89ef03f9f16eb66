"""A character bigram: the simplest model of a text, counted on what the weights were trained on.

It knows which character follows which, and nothing else. A language model that is not above it has
not shown that it knows more.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evaluation.benchmarks.prompts import Prompt

BORDER = "\n"
"""Stands before a text, so that its first character is predicted too."""
DISCOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
Smoothing = tuple[str, float]
"""`kneser_ney` with its discount, or `dirichlet` with the weight of the single characters."""
SMOOTHINGS: tuple[Smoothing, ...] = (
    *(("kneser_ney", d) for d in DISCOUNTS),
    *(("dirichlet", w) for w in WEIGHTS),
)
_SHIFT = 21
"""Bits of a character: U+10FFFF is the last one."""
_BLOCK = 4_000_000
"""Characters that are counted at once."""


class Bigram:
    """Counts of characters and of pairs of them."""

    def __init__(self, texts: Iterable[str]) -> None:
        pairs: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        for block in _blocks(texts):
            codes = np.frombuffer(block.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
            found, number = np.unique((codes[:-1] << _SHIFT) | codes[1:], return_counts=True)
            merged, places = np.unique(np.concatenate((pairs, found)), return_inverse=True)
            counts = np.bincount(places, weights=np.concatenate((counts, number))).astype(np.int64)
            pairs = merged
        first, second = pairs >> _SHIFT, pairs & ((1 << _SHIFT) - 1)
        self.pairs = dict(zip(pairs.tolist(), counts.tolist(), strict=True))
        self.after = _sums(first, counts)
        """Character -> how often something follows it."""
        self.kinds_after = _sums(first, np.ones_like(counts))
        """Character -> how many different ones follow it."""
        self.kinds_before = _sums(second, np.ones_like(counts))
        """Character -> how many different ones it follows."""
        self.single = _sums(second, counts)
        self.num_characters = int(counts.sum())
        self.smoothing: Smoothing = SMOOTHINGS[0]

    def fit(self, texts: Sequence[str]) -> float:
        """Take the smoothing that predicts these texts best. Returns: its nats a character."""
        scores = {}
        for smoothing in SMOOTHINGS:
            self.smoothing = smoothing
            scores[smoothing] = -sum(self.nats(BORDER, text) for text in texts) / max(1, sum(map(len, texts)))
        self.smoothing = min(scores, key=lambda one: scores[one])
        return scores[self.smoothing]

    def nats(self, before: str, text: str) -> float:
        """Log-probability of a text after another one, whose last character alone counts."""
        total, last = 0.0, ord((before or BORDER)[-1])
        for character in map(ord, text):
            total += math.log(self.probability(last, character))
            last = character
        return total

    def probability(self, last: int, character: int) -> float:
        """How likely a character is after another."""
        kind, strength = self.smoothing
        seen, total = self.pairs.get((last << _SHIFT) | character, 0), self.after.get(last, 0)
        if kind == "kneser_ney":
            # Interpolated, Kneser and Ney 1995: a character that follows many kinds is likelier
            # after a new one than a frequent character that follows one kind.
            alone = (self.kinds_before.get(character, 0) + 1) / (len(self.pairs) + len(self.single) + 1)
            if not total:
                return alone
            return (max(seen - strength, 0.0) + strength * self.kinds_after[last] * alone) / total
        alone = (self.single.get(character, 0) + 1) / (self.num_characters + len(self.single) + 1)
        return (seen + strength * alone) / (total + strength)

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[str]) -> list[list[float]]:
        """Scores of continuations (evaluation/benchmarks/scorers.py)."""
        return [[self.nats(prompt.context, text) for text in prompt.continuations] for prompt in prompts]


def record_texts(path: Path) -> Iterator[str]:
    """All texts of a file that the mix has written: of documents, conversations and pairs."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if isinstance(text := record.get("text"), str):
                yield text
            for name in ("conversations", "chosen", "rejected"):
                for message in record.get(name) or ():
                    yield str(message.get("content", ""))


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """The texts one after another, each with a border before it, in blocks."""
    parts: list[str] = []
    size = 0
    for text in texts:
        parts += [BORDER, text]
        size += len(text) + 1
        if size >= _BLOCK:
            yield "".join(parts)
            parts, size = [], 0
    if parts:
        yield "".join(parts)


def _sums(keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> dict[int, int]:
    """Key -> the sum of its counts."""
    found, places = np.unique(keys, return_inverse=True)
    return dict(zip(found.tolist(), np.bincount(places, weights=counts).astype(np.int64).tolist(), strict=True))
