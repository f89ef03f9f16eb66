"""Contamination: which items of a benchmark stand in the training data.

An item is found if 13 characters in a row of it occur in a training text; letters and digits alone
count, in lower case (`normalised`). A shorter item is found if the whole of it occurs, from 8
characters on; below that it is not checkable, since so short a text may occur anywhere.

Runs of characters are compared by a hash of 64 bits that can be computed for all places of a text
at once, so the training data is read once and never held.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.progress import Progress
from dataset.records.keys import normalised
from evaluation.benchmarks.items import Item
from evaluation.benchmarks.prompts import lettered

RUN, LEAST = 13, 8
"""Characters in a row; the fewest of an item that is checked."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""An odd number with no pattern (2**64 over the golden ratio)."""
_BLOCK = 1_000_000
"""Characters of training text that are hashed at once."""
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Contamination:
    """What was found about each item."""

    found: list[bool]
    checkable: list[bool]

    def clean(self) -> list[int]:
        """Numbers of the items that are known not to stand in the training data."""
        return [n for n, (f, c) in enumerate(zip(self.found, self.checkable, strict=True)) if c and not f]


def texts_of(item: Item) -> list[str]:
    """The ways in which an item may have been written: question and options together, with and
    without their letters. Of a minimal pair the good sentence."""
    if not item.asked:
        return [normalised(item.options[item.answer])]
    with_letters = "".join(letter + text for letter, text in lettered(item.options))
    return list(dict.fromkeys((normalised(item.asked + "".join(item.options)), normalised(item.asked + with_letters))))


def contamination(items: Sequence[Item], training: Iterable[str], bar: Progress | None = None) -> Contamination:
    """Look for items in training texts."""
    wanted: dict[int, list[Hashes]] = {}  # length of a run -> hashes of items
    owners: dict[int, list[npt.NDArray[np.int64]]] = {}
    checkable = [False] * len(items)
    for number, item in enumerate(items):
        for text in texts_of(item):
            length = min(len(text), RUN)
            if length >= LEAST:
                checkable[number] = True
                hashes = run_hashes(text, length)
                wanted.setdefault(length, []).append(hashes)
                owners.setdefault(length, []).append(np.full(len(hashes), number))
    tables = {length: np.unique(np.concatenate(parts)) for length, parts in wanted.items()}
    hits = {length: np.zeros(len(table), bool) for length, table in tables.items()}
    for block in _blocks(training):
        for length, table in tables.items():
            hashes = run_hashes(block, length)
            places = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
            hits[length][places[table[places] == hashes]] = True
        if bar:
            bar.update(len(block))
    found = np.zeros(len(items), bool)
    for length, table in tables.items():
        hashes, numbers = np.concatenate(wanted[length]), np.concatenate(owners[length])
        found[numbers[hits[length][np.searchsorted(table, hashes)]]] = True
    return Contamination(found.tolist(), checkable)


def run_hashes(text: str, length: int) -> Hashes:
    """A hash of each run of so many characters; none for a shorter text.

    The sum of character * BASE ** place, modulo 2**64, then mixed so that near texts differ in all
    bits.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = len(codes) - length + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(length):
        total = total * _BASE + codes[place : place + count]
    total ^= total >> np.uint64(29)
    return total * np.uint64(0xBF58476D1CE4E5B9)


def _blocks(texts: Iterable[str]) -> Iterable[str]:
    """Normalised texts in blocks. A control character between two keeps runs apart: no normalised
    text has one."""
    parts: list[str] = []
    size = 0
    for text in texts:
        parts.append(normalised(text))
        size += len(parts[-1]) + 1
        if size >= _BLOCK:
            yield "\x1f".join(parts)
            parts, size = [], 0
    if parts:
        yield "\x1f".join(parts)
