"""An item of a public benchmark: a question with options, a minimal pair, or a problem."""

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One thing that a benchmark asks."""

    group: str
    """Its subject, phenomenon, grade: what a table has a row for."""
    question: str
    """What stands before the options. Empty for a minimal pair: its sentences stand alone."""
    options: tuple[str, ...] = ()
    """Texts of which one is right; none for a problem, whose answer is generated."""
    answer: int = -1
    """Which option is right, from 0."""
    golden: str = ""
    """The right answer of a problem."""
    cluster: Hashable = None
    """Items of one cluster (questions about one passage) count once in an interval; None: each
    item counts."""
    passage: str = ""
    """The text that the question is about."""

    @property
    def asked(self) -> str:
        """Passage and question, as a prompt shows them."""
        return f"{self.passage}\n{self.question}" if self.passage else self.question


@dataclass(frozen=True)
class Items:
    """The items of a part of a benchmark."""

    items: tuple[Item, ...]
    left_out: dict[str, int]
    """Why records have no item -> how many. They count nowhere."""
    sha256: str
    """Hash of all files that were read, with their names."""
