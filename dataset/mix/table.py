"""What the choice knows of each record, a row a record: its category, its own split, and the key that decides its side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.messages import both
from configs.schema import CATEGORIES
from dataset.mix.scan import REJECTED, Scan
from dataset.mix.sources import Source

Bits = npt.NDArray[np.uint64]
LARGEST_KEY = 0.02
"""No key takes more of a category's records than this to the held-out side, but one it may always take."""
SHARED_TURN = {True: 3, False: 20}
"""Whether a turn is short -> conversations that may say it before it can count as a common one."""
STATE_DROPPED, STATE_TRAIN, STATE_VALIDATION, STATE_TEST = 0, 1, 2, 3


@dataclass(slots=True)
class Table:
    """What the split needs of each record, rejected ones included."""

    keys: Bits
    """Records with one key are on one side."""
    contents: Bits
    splits: npt.NDArray[np.uint8]
    category: npt.NDArray[np.uint8]
    own: npt.NDArray[np.bool_]
    """Whether it is the user's; the others are bundled samples."""
    readable: npt.NDArray[np.bool_]
    first: npt.NDArray[np.bool_]
    """Of readable records with equal content the first: what counts as a record below."""
    asks_last: npt.NDArray[np.bool_]
    """Whether its last user turn is what it asks (a group, a shared opening), not its first."""
    sizes: npt.NDArray[np.int64]
    """Records of each category; where some are the user's, theirs alone."""

    def largest(self, category: int) -> int:
        """Records of a category that one key may take to the held-out side."""
        return max(1, int(LARGEST_KEY * self.sizes[category]))

    def used(self) -> list[int]:
        """The categories that have records."""
        return [index for index in range(len(CATEGORIES)) if self.sizes[index]]


def table_of(scan: Scan, sources: Sequence[Source]) -> Table:
    splits = np.frombuffer(scan.splits, dtype=np.uint8)
    contents = np.frombuffer(scan.contents, dtype="<u8")
    category = np.repeat(np.array([CATEGORIES.index(s.category) for s in sources], dtype=np.uint8), scan.counts)
    own = np.repeat(np.array([not source.is_sample for source in sources], dtype=np.bool_), scan.counts)
    readable = splits != REJECTED
    members = np.flatnonzero(readable)
    first = np.zeros(len(splits), dtype=np.bool_)
    first[members[np.unique(contents[members], return_index=True)[1]]] = True
    sizes, own_sizes = (np.bincount(category[part], minlength=len(CATEGORIES)) for part in (first, first & own))
    asks_last = np.zeros(len(splits), dtype=np.bool_)
    keys = np.frombuffer(scan.keys, dtype="<u8").copy()
    return Table(
        keys, contents, splits, category, own, readable, first, asks_last, np.where(own_sizes, own_sizes, sizes)
    )


def use_groups(table: Table, scan: Scan, sources: Sequence[Source], notes: list[str]) -> None:
    """Let `group` be the key, but not in a user's file of which one group is too large a share of the category."""
    groups = np.frombuffer(scan.groups, dtype="<u8")
    groupers = np.frombuffer(scan.groupers, dtype=np.uint32).astype(np.intp)
    source_of = np.searchsorted(np.cumsum(scan.counts), groupers, side="right")
    taken = np.ones(len(groups), dtype=np.bool_)
    for index in table.used():
        mine = np.flatnonzero(table.category[groupers] == index)
        counted = (table.first & table.own)[groupers[mine]]
        _, group_of = np.unique(groups[mine], return_inverse=True)
        sizes = np.bincount(group_of[counted], minlength=int(group_of.max(initial=-1)) + 1)
        limit = table.largest(index)
        for number, source in enumerate(sources):
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
    """Where too many of the user's conversations open with one turn (在吗), all that the user says is the key."""
    questions = np.frombuffer(scan.questions, dtype="<u8")
    askers = np.frombuffer(scan.askers, dtype=np.uint32)
    if not len(askers):
        return
    starts = np.flatnonzero(np.concatenate(([True], askers[1:] != askers[:-1])))
    turns = np.diff(starts, append=len(askers))
    candidates = table.own & table.readable & ~table.asks_last
    several = candidates[askers[starts]] & (turns > 1)
    if not several.any():
        return
    shared = np.zeros(len(table.keys), dtype=np.bool_)
    for index in table.used():
        mine = np.flatnonzero(candidates & (table.category == index))
        distinct, key_of = np.unique(table.keys[mine], return_inverse=True)
        counts = np.bincount(key_of[table.first[mine]], minlength=len(distinct))
        shared |= candidates & np.isin(table.keys, distinct[counts > max(SHARED_TURN[True], table.largest(index))])
    several &= shared[askers[starts]]
    if not several.any():
        return
    place = np.arange(len(askers), dtype=np.uint64) - np.repeat(starts, turns).astype(np.uint64)
    with np.errstate(over="ignore"):  # a hash of the turns and their places
        said = np.add.reduceat(mixed(questions ^ mixed(place, 1), 2), starts)
    records = askers[starts[several]]
    table.keys[records] = said[several]
    table.asks_last[records] = True
    notes.append(
        both(
            f"{len(records):,} conversations open with a turn that more than {LARGEST_KEY:.0%} of their category share: "
            "all that the user says decides their side, not the opening alone",
            f"{len(records):,} 段对话的开头相同，按用户的全部发言划分留出",
        )
    )


def mixed(values: Bits, seed: int) -> Bits:
    """A pseudo-random number for each value and seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z: Bits = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
