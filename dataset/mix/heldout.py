"""Chooses the held-out records: first by their own marks, then by the hash of their key.

Shapes: N records (rejected ones included), R readable records, K distinct keys of those.
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
"""A category gives at most this share of its records to the held-out side."""

Counts = npt.NDArray[np.int32]
"""(K,): the number of records of each key."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """The readable records and their keys. Each column is (R,) unless it says otherwise."""

    hashes: Hashes
    """The distinct keys, (K,)."""
    of_record: npt.NDArray[np.intp]
    """The key of each record, as an index into `hashes`."""
    place: npt.NDArray[np.intp]
    """The record's row in the table. The next four columns are the same as in the table."""
    split: npt.NDArray[np.uint8]
    category: npt.NDArray[np.uint8]
    own: Flags
    first: Flags

    def marked(self, *splits: OwnSplit) -> Flags:
        """Which keys have a record whose field `split` is one of these, (K,)."""
        marked = np.zeros(len(self.hashes), dtype=np.bool_)
        marked[self.of_record[np.isin(self.split, splits)]] = True
        return marked

    def count(self, records: Flags) -> Counts:
        """How many of these records (R,) each key has. Records with equal content count once."""
        return np.bincount(self.of_record[records & self.first], minlength=len(self.hashes)).astype(np.int32)


@dataclass(slots=True)
class _Budget:
    """What one category gives to the held-out side, counted in records."""

    given: Counts
    """How many records of this category are held out with each key, if the key is drawn."""
    taken: int
    """Number of records that are held out so far."""
    target: int
    """Number of records to hold out, all together."""
    room: int
    """Number of records that training may still lose, as held-out records or as leaks."""


def held_out(table: Table, scan: Scan, config: MixConfig, notes: list[str]) -> Sides:
    """The side of each record, (N,). All records with one key get the same side, in every file.

    First, a key is held out if the field `split` of one of its records says so. Then more keys are
    drawn by their hash, until each category has its share. A key has a cost: the records that have
    this key, and the records that ask its question in another turn. A key is drawn only if its cost
    is not too high for any category.
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
    """The readable records of the table, with their distinct keys."""
    place = np.flatnonzero(table.readable)
    hashes, of_record = np.unique(table.keys[place], return_inverse=True)
    return _Keys(
        hashes, of_record, place, table.splits[place], table.category[place], table.own[place], table.first[place]
    )


def _staying(keys: _Keys, table: Table, held: Flags, notes: list[str]) -> Flags:
    """Records that stay in training although their key is marked as held out, (R,).

    If very many of the user's records have the same key, the mark of one record counts only for
    this record. Otherwise one mark could remove a large part of a category from training.
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
    """Add keys to `held` until each category has its share, or all other keys cost too much."""
    used = table.used()
    budgets = {index: _budget(keys, index, held, staying, config) for index in used}
    costs = _costs(keys, table, scan)
    # Some keys are never drawn: keys with a record that says `train`, and keys that cost a category
    # more records than one key may take.
    free = ~held & ~keys.marked(OwnSplit.TRAIN)
    for index in used:
        free &= costs[index] <= table.largest(index)
    rank = mixed(keys.hashes, config.seed)
    for index in used:
        budget = budgets[index]
        missing = budget.target - budget.taken
        if missing <= 0 or config.heldout_share <= 0:
            continue
        # Keys are drawn in the order of their hashes. The hash of a key depends only on the key and
        # the seed, so a new file does not change which of the old keys come first.
        candidates = np.flatnonzero((budget.given > 0) & free & ~held)
        queue = candidates[np.argsort(rank[candidates], kind="stable")]
        drawn = _draw(queue, budget.given, missing, costs, {other: budgets[other].room for other in used})
        held[drawn] = True
        # A held-out key may also have records in other categories, so their budgets change too.
        for other in used:
            budgets[other].taken += int(budgets[other].given[drawn].sum())
            budgets[other].room -= int(costs[other][drawn].sum())


def _budget(keys: _Keys, category: int, held: Flags, staying: Flags, config: MixConfig) -> _Budget:
    """How many records a category must hold out, and how many its marked keys already hold out."""
    mine = keys.category == category
    own = keys.own & mine
    if not own.any():
        # Bundled samples are counted by keys, not by records. They may hold out as many records as
        # they need, so the room is larger than any cost.
        given = np.minimum(1, np.bincount(keys.of_record[mine], minlength=len(keys.hashes)))
        taken = int(given[held].sum())
        return _Budget(given, taken, heldout_target(int(given.sum()), config), len(keys.place))
    # If the user has files of this category, only their records count.
    given = keys.count(own)
    total = int(given.sum())
    taken = int(given[held].sum() - keys.count(staying & mine).sum())
    return _Budget(given, taken, heldout_target(total, config), int(LARGEST_SHARE * total) - taken)


def heldout_target(records: int, config: MixConfig) -> int:
    """How many of a category's records to hold out.

    It is the share `heldout_share`, but at least `heldout_min` and at most `heldout_max` records.
    It is never more than the share LARGEST_SHARE.
    """
    wanted = min(max(round(config.heldout_share * records), config.heldout_min), config.heldout_max)
    return min(wanted, int(records * LARGEST_SHARE))


def _costs(keys: _Keys, table: Table, scan: Scan) -> dict[int, Counts]:
    """Category -> how many of its training records are lost if a key is held out, for each key.

    These are the records with this key, and also the records with other keys that ask its question,
    because they would be leaks.
    """
    used = table.used()
    costs = {index: keys.count(keys.category == index) for index in used}
    questions, askers = scan.turns()
    if not len(askers):
        return costs
    key_of = np.zeros(
        len(table.keys), dtype=np.int32
    )  # (N,). Rejected records have no questions, so nobody uses their 0
    key_of[keys.place] = keys.of_record

    # `asked`: the questions that are keys, sorted, each of them once. `owners[i]`: the key whose
    # question is `asked[i]`. `place`: where the question of each turn would stand in `asked`, found
    # by binary search.
    asks = is_key(askers, table.asks_last)
    asked, places = np.unique(questions[asks], return_index=True)
    owners = key_of[askers[asks][places]]
    place = np.minimum(np.searchsorted(asked, questions), len(asked) - 1)

    # `foreign`: turns that ask the question of a key, but in a record that has another key.
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
    """The first keys of `order` that together give `missing` records, if they do not cost too much.

    Args: order: keys. given: how many records each key gives. costs: category -> how many records
    each key costs. room: category -> how many records it may lose.
    """
    left, drawn = dict(room), []
    while missing > 0:
        # A key that costs too much now will also cost too much later, so remove it from the queue.
        fits = np.ones(len(order), dtype=np.bool_)
        for index, cost in costs.items():
            fits &= (cost[order] == 0) | (cost[order] <= left[index])
        order = order[fits]
        if not len(order):
            break
        # `stop` is true at a key in two cases. Either the keys before it already give enough
        # records. Or the keys up to this key together cost a category more than it has left. Take
        # the keys before the first stop. Then check again which of the other keys fit.
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
    """Side of each key, (K,).

    In each category, put the held-out keys into a random order that depends on the seed. Then the
    first key goes to validation, the second to test, and so on, so both halves are equal. But if
    the field `split` of a record names a half, its key goes to this half.
    """
    # If a key has records in several categories, it belongs to the first of them.
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
