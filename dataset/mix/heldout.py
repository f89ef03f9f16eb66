"""How the held-out records are chosen: by their own marks, then by the hash of their key.

Shapes: N records (rejected ones included), R readable records, K distinct keys of theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.messages import both
from configs.schema import CATEGORIES, MixConfig
from dataset.mix.leaks import is_key
from dataset.mix.scan import HELDOUT_MARKS, Hashes, OwnSplit, Scan
from dataset.mix.table import Flags, Side, Sides, Table, mixed

LARGEST_SHARE = 0.1
"""No category gives more of its records than this to the held-out side, however few it has."""

Counts = npt.NDArray[np.int32]
"""(K,), records of each key."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """The readable records, seen by their keys; each column (R,) unless it says otherwise."""

    hashes: Hashes
    """The distinct keys, (K,)."""
    of_record: npt.NDArray[np.intp]
    """The key of each record, an index into `hashes`."""
    place: npt.NDArray[np.intp]
    """Where the record stands in the table."""
    split: npt.NDArray[np.uint8]
    category: npt.NDArray[np.uint8]
    own: Flags
    first: Flags

    def marked(self, *splits: OwnSplit) -> Flags:
        """Which keys have a record that says so itself, (K,)."""
        marked = np.zeros(len(self.hashes), dtype=np.bool_)
        marked[self.of_record[np.isin(self.split, splits)]] = True
        return marked

    def count(self, records: Flags) -> Counts:
        """How many of these records, (R,), each key has; equal contents count once."""
        return np.bincount(self.of_record[records & self.first], minlength=len(self.hashes)).astype(np.int32)


@dataclass(slots=True)
class _Budget:
    """What one category gives to the held-out side, in records."""

    given: Counts
    """What each key gives of this category."""
    taken: int
    """Held out so far."""
    target: int
    """To be held out in all."""
    room: int
    """What the category may still lose, to the held-out side or as leaks."""


def held_out(table: Table, scan: Scan, config: MixConfig, notes: list[str]) -> Sides:
    """Side of each record by its key: all records with one key, in every category and file, are on
    one side.

    The records' own splits come first. What is missing is drawn by the hash of the key. A key is
    drawn only where it costs no category too much: in records that it holds out, and in others
    that ask its question on the way.
    """
    keys = _keys(table)
    held = keys.marked(*HELDOUT_MARKS)
    staying = _staying(keys, table, held, notes)
    _hold_out_more(keys, table, scan, held, staying, config)
    side_of_key = _halves(keys, held, config.seed)
    sides = np.full(len(table.keys), int(Side.DROPPED), dtype=np.uint8)
    sides[keys.place] = np.where(staying, int(Side.TRAIN), side_of_key[keys.of_record])
    return sides


def _keys(table: Table) -> _Keys:
    place = np.flatnonzero(table.readable)
    hashes, of_record = np.unique(table.keys[place], return_inverse=True)
    return _Keys(
        hashes, of_record, place, table.splits[place], table.category[place], table.own[place], table.first[place]
    )


def _staying(keys: _Keys, table: Table, held: Flags, notes: list[str]) -> Flags:
    """Records that stay in training though their key is marked as held out, (R,).

    Of a key that many of the user's records share, a record's own mark speaks for that record
    alone.
    """
    unmarked = keys.own & np.isin(keys.split, (OwnSplit.NONE, OwnSplit.TRAIN))
    shared = np.zeros(len(keys.hashes), dtype=np.bool_)
    for index in table.used():
        shared |= held & (keys.count(unmarked & (keys.category == index)) > table.largest(index))
    staying = unmarked & shared[keys.of_record]
    if staying.any():
        count = int(np.count_nonzero(staying))
        notes.append(
            both(
                f"{count:,} records without a mark of their own stay in training though records with the same opening are "
                "marked as held out: they are too many",
                f"{count:,} 条记录与留出记录开头相同，但数量太多，仍用于训练",
            )
        )
    return staying


def _hold_out_more(keys: _Keys, table: Table, scan: Scan, held: Flags, staying: Flags, config: MixConfig) -> None:
    """Add keys to `held` until each category has its share, or no key is left that costs little."""
    used = table.used()
    budgets = {index: _budget(keys, index, held, staying, config) for index in used}
    costs = _costs(keys, table, scan)
    # A key of a record that says `train` is never drawn, nor one that is too large for a category.
    free = ~held & ~keys.marked(OwnSplit.TRAIN)
    for index in used:
        free &= costs[index] <= table.largest(index)
    rank = mixed(keys.hashes, config.seed)
    for index in used:
        budget = budgets[index]
        missing = budget.target - budget.taken
        if missing <= 0 or config.heldout_share <= 0:
            continue
        # The hash of a key is its place in the queue: the same in every mix with this seed,
        # whatever files come or go.
        candidates = np.flatnonzero((budget.given > 0) & free & ~held)
        queue = candidates[np.argsort(rank[candidates], kind="stable")]
        drawn = _draw(queue, budget.given, missing, costs, {other: budgets[other].room for other in used})
        held[drawn] = True
        # What a key holds out in other categories counts for their shares too.
        for other in used:
            budgets[other].taken += int(budgets[other].given[drawn].sum())
            budgets[other].room -= int(costs[other][drawn].sum())


def _budget(keys: _Keys, category: int, held: Flags, staying: Flags, config: MixConfig) -> _Budget:
    """What a category is to give, and what its marked records give already."""
    mine = keys.category == category
    own = keys.own & mine
    if not own.any():
        # Bundled samples are made to be counted by keys, and may give as many as they need.
        given = np.minimum(1, np.bincount(keys.of_record[mine], minlength=len(keys.hashes)))
        taken = int(given[held].sum())
        return _Budget(given, taken, heldout_target(int(given.sum()), config), len(keys.place))
    # Where the user has files of this category, their records alone count.
    given = keys.count(own)
    total = int(given.sum())
    taken = int(given[held].sum() - keys.count(staying & mine).sum())
    return _Budget(given, taken, heldout_target(total, config), int(LARGEST_SHARE * total) - taken)


def heldout_target(records: int, config: MixConfig) -> int:
    """How many of a category's records are to be held out: a share within bounds, but never above
    LARGEST_SHARE."""
    wanted = min(max(round(config.heldout_share * records), config.heldout_min), config.heldout_max)
    return min(wanted, int(records * LARGEST_SHARE))


def _costs(keys: _Keys, table: Table, scan: Scan) -> dict[int, Counts]:
    """What each key would cost each category if it were held out: its records, and those of other
    keys that ask its question, which would then be leaks."""
    used = table.used()
    costs = {index: keys.count(keys.category == index) for index in used}
    questions, askers = scan.turns()
    if not len(askers):
        return costs
    key_of = np.zeros(len(table.keys), dtype=np.int32)  # (N,), of rejected records 0, which nobody reads
    key_of[keys.place] = keys.of_record

    # Which question belongs to which key. `asked` is sorted, so that the questions of all turns can
    # be looked up in it.
    asks = is_key(askers, table.asks_last)
    asked, places = np.unique(questions[asks], return_index=True)
    owners = key_of[askers[asks][places]]
    place = np.minimum(np.searchsorted(asked, questions), len(asked) - 1)

    # Turns that ask the question of a key, in records that have another key.
    foreign = (asked[place] == questions) & (owners[place] != key_of[askers]) & table.first[askers]
    for index in used:
        mine = foreign & (table.category[askers] == index)
        costs[index] += np.bincount(owners[place[mine]], minlength=len(keys.hashes)).astype(np.int32)
    return costs


def _draw(
    order: npt.NDArray[np.intp],
    given: Counts,
    missing: int,
    costs: Mapping[int, Counts],
    room: Mapping[int, int],
) -> npt.NDArray[np.intp]:
    """The first keys of `order` that give `missing` records and cost no category more than it has
    room for."""
    left, drawn = dict(room), []
    while missing > 0:
        # A key that alone costs too much now will cost too much later: it leaves the queue.
        fits = np.ones(len(order), dtype=np.bool_)
        for index, cost in costs.items():
            fits &= (cost[order] == 0) | (cost[order] <= left[index])
        order = order[fits]
        if not len(order):
            break
        # Take keys from the front up to the first that is one too many: enough is given already,
        # or, together with those before it, it costs a category more than it has left. Then look
        # again at what still fits.
        stop = np.cumsum(given[order]) - given[order] >= missing
        for index, cost in costs.items():
            stop |= (cost[order] > 0) & (np.cumsum(cost[order]) > left[index])
        number = int(np.argmax(stop)) if stop.any() else len(order)
        chosen, order = order[:number], order[number:]
        drawn.append(chosen)
        missing -= int(given[chosen].sum())
        left = {index: left[index] - int(costs[index][chosen].sum()) for index in left}
    return np.concatenate([*drawn, np.zeros(0, dtype=np.intp)])


def _halves(keys: _Keys, held: Flags, seed: int) -> Sides:
    """Side of each key, (K,): the held-out ones go to validation and test by turns, in a random
    order, so that the halves of each category are equal. A record that names its half has it."""
    # A key that stands in several categories belongs to the first of them.
    owner = np.zeros(len(keys.hashes), dtype=np.uint8)
    for index in reversed(range(len(CATEGORIES))):
        owner[keys.of_record[keys.category == index]] = index

    sides = np.full(len(keys.hashes), int(Side.TRAIN), dtype=np.uint8)
    undecided = np.flatnonzero(held)
    for index in range(len(CATEGORIES)):
        mine = undecided[owner[undecided] == index]
        mine = mine[np.argsort(mixed(keys.hashes[mine], seed + 1), kind="stable")]
        sides[mine[0::2]], sides[mine[1::2]] = int(Side.VALIDATION), int(Side.TEST)
    sides[keys.marked(OwnSplit.VALIDATION)] = int(Side.VALIDATION)
    sides[keys.marked(OwnSplit.TEST)] = int(Side.TEST)
    return sides
