"""The table of all records: category, own split, and the key that decides the side of a record.

The table has a row for each record, in the order of the sources.

Shapes: N records (rejected ones included), Q user turns, G records with a `group`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from configs.messages import both
from configs.schema import CATEGORIES
from dataset.mix.scan import Hashes, OwnSplit, Scan
from dataset.mix.sources import Source

LARGEST_KEY = 0.02
"""One key may take at most this share of a category's records to the held-out side. One record is
always allowed."""
SHARED_TURN = {True: 3, False: 20}
"""Whether a turn is short -> the turn is common if more conversations than this contain it."""

Flags = npt.NDArray[np.bool_]
"""Which records (or keys, or turns) have a property."""
Sides = npt.NDArray[np.uint8]
"""(N,), each a `Side`."""


class Side(IntEnum):
    """What the mix decides for a record. The held-out sides have the largest numbers."""

    DROPPED = 0
    TRAIN = 1
    VALIDATION = 2
    TEST = 3


def is_training(sides: Sides) -> Flags:
    """Which records are trained on."""
    return sides == int(Side.TRAIN)


def is_heldout(sides: Sides) -> Flags:
    """Which records are held out."""
    return sides >= int(Side.VALIDATION)


@dataclass(slots=True)
class Table:
    """The columns that the split needs. Each column is (N,) if nothing else is said."""

    keys: Hashes
    """Hash of the key. Records with equal keys are on the same side."""
    contents: Hashes
    """Hash of the content. Records with equal contents are duplicates."""
    splits: npt.NDArray[np.uint8]
    """Each entry is an `OwnSplit`."""
    category: npt.NDArray[np.uint8]
    """Index into CATEGORIES."""
    own: Flags
    """True: the record is from a file of the user. False: it is a bundled sample."""
    readable: Flags
    first: Flags
    """Whether this is the first readable record with its content. Only such records are counted."""
    asks_last: Flags
    """True: the question of the record is its last user turn. False: its first (see `is_key`)."""
    sizes: npt.NDArray[np.int64]
    """Records of each category, (categories,). If the user has some, only the user's count."""

    def largest(self, category: int) -> int:
        """The most records of a category that one key may take to the held-out side."""
        return max(1, int(LARGEST_KEY * self.sizes[category]))

    def of(self, name: str) -> Flags:
        """Which records belong to a category, (N,)."""
        return self.category == CATEGORIES.index(name)

    def used(self) -> list[int]:
        """The categories that have records, as indices into CATEGORIES."""
        return [index for index in range(len(CATEGORIES)) if self.sizes[index]]


def table_of(scan: Scan, sources: Sequence[Source]) -> Table:
    """The table of a scan. The key of each record is still its first question, or its text."""
    splits = np.frombuffer(scan.splits, dtype=np.uint8)
    contents = np.frombuffer(scan.contents, dtype="<u8")
    keys = np.frombuffer(scan.keys, dtype="<u8").copy()  # a copy, because two functions below change it
    category = np.repeat(np.array([CATEGORIES.index(s.category) for s in sources], dtype=np.uint8), scan.counts)
    own = np.repeat(np.array([not source.is_sample for source in sources], dtype=np.bool_), scan.counts)
    readable = splits != int(OwnSplit.REJECTED)

    # `np.unique` gives the first index of each content among the readable records. `members` turns
    # this index into a row of the table.
    members = np.flatnonzero(readable)
    first = np.zeros(len(splits), dtype=np.bool_)
    first[members[np.unique(contents[members], return_index=True)[1]]] = True

    sizes, own_sizes = (np.bincount(category[part], minlength=len(CATEGORIES)) for part in (first, first & own))
    return Table(
        keys=keys,
        contents=contents,
        splits=splits,
        category=category,
        own=own,
        readable=readable,
        first=first,
        asks_last=np.zeros(len(splits), dtype=np.bool_),
        sizes=np.where(own_sizes, own_sizes, sizes),
    )


# --- keys -----------------------------------------------------------------------------------------


def use_groups(table: Table, scan: Scan, sources: Sequence[Source], notes: list[str]) -> None:
    """Make `group` the key of the records that have one.

    If one group of a user's file is too large a part of its category, the groups of this file are
    ignored.
    """
    groups = np.frombuffer(scan.groups, dtype="<u8")
    groupers = np.frombuffer(scan.groupers, dtype=np.uint32).astype(np.intp)  # (G,), the record of each group
    source_of = np.searchsorted(np.cumsum(scan.counts), groupers, side="right")
    taken = np.ones(len(groups), dtype=np.bool_)
    for index in table.used():
        # The size of each group of this category, in distinct records of the user. Samples do not
        # count, because their groups were made for holding out.
        mine = np.flatnonzero(table.category[groupers] == index)
        counted = (table.first & table.own)[groupers[mine]]
        _, group_of = np.unique(groups[mine], return_inverse=True)
        sizes = np.bincount(group_of[counted], minlength=int(group_of.max(initial=-1)) + 1)
        limit = table.largest(index)
        for number, source in enumerate(sources):
            # Ignore the groups of a file only if the file has records of a group that is too large.
            of_source = source_of[mine] == number
            biggest = int(sizes[group_of[of_source]].max(initial=0))
            if source.is_sample or biggest <= limit:
                continue
            taken[mine[of_source]] = False
            notes.append(
                both(
                    f"{source.path.name}: its `group` is ignored: one group has {biggest:,} of the {table.sizes[index]:,} "
                    f"records of {source.category}, and at most {limit:,} may be held out together",
                    f"group 不予采用：最大的一组有 {biggest:,} 条，一组最多 {limit:,} 条",
                )
            )
    table.keys[groupers[taken]] = groups[taken]
    table.asks_last[groupers[taken]] = True


def rekey_shared_openings(table: Table, scan: Scan, notes: list[str]) -> None:
    """Give a new key to a conversation if too many other conversations begin with its first turn.

    The new key is everything that the user says. With the old key, all conversations that begin
    with the same words (在吗) would get the same side.
    """
    questions, askers = scan.turns()
    if not len(askers):
        return
    # The turns of one record are neighbours. `starts`: the first turn of each record. `turns`: how
    # many turns each record has.
    starts = np.flatnonzero(np.concatenate(([True], askers[1:] != askers[:-1])))
    turns = np.diff(starts, append=len(askers))
    candidates = table.own & table.readable & ~table.asks_last
    several = candidates[askers[starts]] & (turns > 1)
    if not several.any():
        return
    several &= _with_shared_opening(table, candidates)[askers[starts]]
    if not several.any():
        return
    records = askers[starts[several]]
    table.keys[records] = _all_that_is_said(questions, starts, turns)[several]
    table.asks_last[records] = True
    notes.append(
        both(
            f"{len(records):,} conversations open with a turn that more than {LARGEST_KEY:.0%} of their category share: "
            "all that the user says decides their side, not the opening alone",
            f"{len(records):,} 段对话的开头相同，按用户的全部发言划分留出",
        )
    )


def _with_shared_opening(table: Table, candidates: Flags) -> Flags:
    """Which candidates have a key that too many candidates of the category have, (N,)."""
    shared = np.zeros(len(table.keys), dtype=np.bool_)
    for index in table.used():
        mine = np.flatnonzero(candidates & (table.category == index))
        distinct, key_of = np.unique(table.keys[mine], return_inverse=True)
        counts = np.bincount(key_of[table.first[mine]], minlength=len(distinct))
        shared |= candidates & np.isin(table.keys, distinct[counts > max(SHARED_TURN[True], table.largest(index))])
    return shared


def _all_that_is_said(questions: Hashes, starts: npt.NDArray[np.intp], turns: npt.NDArray[np.intp]) -> Hashes:
    """For each record a hash of all its questions in their order.

    Args: starts, turns: the first turn of each record, and the number of its turns.
    """
    # The hash of a record is a sum, and a sum does not depend on the order. So we first mix the
    # place of each turn into the turn's own hash. The sum may overflow 64 bits, which is fine for a
    # hash.
    place = np.arange(len(questions), dtype=np.uint64) - np.repeat(starts, turns).astype(np.uint64)
    with np.errstate(over="ignore"):
        said: Hashes = np.add.reduceat(mixed(questions ^ mixed(place, 1), 2), starts)
    return said


def mixed(values: Hashes, seed: int) -> Hashes:
    """A pseudo-random number of 64 bits for each value. It depends on the value and on the seed.

    These are the last steps of SplitMix64 (Steele, Lea and Flood 2014). The products overflow on
    purpose.
    """
    with np.errstate(over="ignore"):
        z: Hashes = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
