"""How the held-out records are chosen: by their own marks, then by the hash of their key, within bounds."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from configs.messages import both
from configs.schema import CATEGORIES, MixConfig
from dataset.mix.leaks import is_key
from dataset.mix.scan import HELDOUT, TEST, TRAIN, UNSPLIT, VALIDATION, Scan
from dataset.mix.table import STATE_DROPPED, STATE_TEST, STATE_TRAIN, STATE_VALIDATION, Table, mixed

LARGEST_SHARE = 0.1
"""No category gives more of its records than this to the held-out side, however few it has."""


def held_out(table: Table, scan: Scan, config: MixConfig, notes: list[str]) -> npt.NDArray[np.uint8]:
    """State of each record by its key: all records with one key, in every category and file, are on one side.

    The records' own splits come first. What is missing is drawn by the hash of the key; a key is drawn only where it
    costs no category too much: in records that it holds out, and in others that ask its question on the way.
    """
    readable = np.flatnonzero(table.readable)
    distinct, key_of = np.unique(table.keys[readable], return_inverse=True)
    split_of, category_of = table.splits[readable], table.category[readable]
    own, first = table.own[readable], table.first[readable]
    rank = mixed(distinct, config.seed)

    def having(*wanted: int) -> npt.NDArray[np.bool_]:
        marked = np.zeros(len(distinct), dtype=np.bool_)
        marked[key_of[np.isin(split_of, wanted)]] = True
        return marked

    def members(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        return np.bincount(key_of[mask & first], minlength=len(distinct)).astype(np.int32)

    held = having(HELDOUT, VALIDATION, TEST)
    free = ~held & ~having(TRAIN)
    # Of a key that many of the user's records share, a record's own mark speaks for that record alone.
    unmarked = own & np.isin(split_of, (UNSPLIT, TRAIN))
    shared = np.zeros(len(distinct), dtype=np.bool_)
    for index in table.used():
        shared |= held & (members(unmarked & (category_of == index)) > table.largest(index))
    staying = unmarked & shared[key_of]
    if staying.any():
        count = int(np.count_nonzero(staying))
        notes.append(
            both(
                f"{count:,} records without a mark of their own stay in training though records with the same opening are "
                "marked as held out: they are too many",
                f"{count:,} 条记录与留出记录开头相同，但数量太多，仍用于训练",
            )
        )

    costs = _costs(table, scan, readable, key_of, len(distinct))
    given, taken, targets, room = {}, {}, {}, {}
    for index in table.used():
        mine = category_of == index
        is_own = bool((own & mine).any())
        # Of a category with files of the user's, their records count; the bundled ones are made to be counted by keys.
        given[index] = (
            members(own & mine) if is_own else np.minimum(1, np.bincount(key_of[mine], minlength=len(distinct)))
        )
        total = int(given[index].sum())
        kept = members(staying & mine).sum() if is_own else 0
        taken[index] = int(given[index][held].sum() - kept)
        targets[index] = heldout_target(total, config)
        # What a category of the user's may still give up, to the held-out side or as leaks.
        room[index] = int(LARGEST_SHARE * total) - taken[index] if is_own else len(readable)
        free &= costs[index] <= table.largest(index)
    owner = np.zeros(len(distinct), dtype=np.uint8)
    for index in reversed(range(len(CATEGORIES))):
        owner[key_of[category_of == index]] = index
    for index in table.used():
        missing = targets[index] - taken[index]
        if missing <= 0 or config.heldout_share <= 0:
            continue
        candidates = np.flatnonzero((given[index] > 0) & free & ~held)
        drawn = _draw(candidates[np.argsort(rank[candidates], kind="stable")], given[index], missing, costs, room)
        held[drawn] = True
        for other in table.used():
            taken[other] += int(given[other][drawn].sum())
            room[other] -= int(costs[other][drawn].sum())
    undecided = np.flatnonzero(held)
    state = np.full(len(distinct), STATE_TRAIN, dtype=np.uint8)
    for index in range(len(CATEGORIES)):  # every second key, in a random order, so that the halves are equal
        mine = undecided[owner[undecided] == index]
        mine = mine[np.argsort(mixed(distinct[mine], config.seed + 1), kind="stable")]
        state[mine[0::2]], state[mine[1::2]] = STATE_VALIDATION, STATE_TEST
    state[having(VALIDATION)] = STATE_VALIDATION
    state[having(TEST)] = STATE_TEST
    states = np.full(len(table.keys), STATE_DROPPED, dtype=np.uint8)
    states[readable] = np.where(staying, STATE_TRAIN, state[key_of])
    return states


def _costs(
    table: Table, scan: Scan, readable: npt.NDArray[np.intp], key_of: npt.NDArray[np.intp], num_keys: int
) -> dict[int, npt.NDArray[np.int32]]:
    """What each key would cost each category if it were held out: its records, and those of other keys that ask its
    question, which would then be leaks."""
    category_of, first = table.category[readable], table.first[readable]
    costs = {
        index: np.bincount(key_of[first & (category_of == index)], minlength=num_keys).astype(np.int32)
        for index in table.used()
    }
    questions = np.frombuffer(scan.questions, dtype="<u8")
    askers = np.frombuffer(scan.askers, dtype=np.uint32)
    if len(askers):
        key_index = np.zeros(len(table.keys), dtype=np.int32)
        key_index[readable] = key_of
        asks = is_key(askers, table.asks_last)
        asked, places = np.unique(questions[asks], return_index=True)
        owners = key_index[askers[asks][places]]
        place = np.minimum(np.searchsorted(asked, questions), len(asked) - 1)
        foreign = (asked[place] == questions) & (owners[place] != key_index[askers]) & table.first[askers]
        for index in table.used():
            mine = foreign & (table.category[askers] == index)
            costs[index] += np.bincount(owners[place[mine]], minlength=num_keys).astype(np.int32)
    return costs


def _draw(
    order: npt.NDArray[np.intp],
    given: npt.NDArray[np.int32],
    missing: int,
    costs: Mapping[int, npt.NDArray[np.int32]],
    room: Mapping[int, int],
) -> npt.NDArray[np.intp]:
    """The first keys of `order` that give `missing` records and cost no category more than it has room for."""
    left, drawn = dict(room), []
    while missing > 0:
        fits = np.ones(len(order), dtype=np.bool_)
        for index, cost in costs.items():
            fits &= (cost[order] == 0) | (cost[order] <= left[index])
        order = order[fits]
        if not len(order):
            break
        enough = np.cumsum(given[order]) - given[order] >= missing
        for index, cost in costs.items():
            enough |= (cost[order] > 0) & (np.cumsum(cost[order]) > left[index])
        number = int(np.argmax(enough)) if enough.any() else len(order)
        chosen, order = order[:number], order[number:]
        drawn.append(chosen)
        missing -= int(given[chosen].sum())
        left = {index: left[index] - int(costs[index][chosen].sum()) for index in left}
    return np.concatenate([*drawn, np.zeros(0, dtype=np.intp)])


def heldout_target(records: int, config: MixConfig) -> int:
    wanted = min(max(round(config.heldout_share * records), config.heldout_min), config.heldout_max)
    return min(wanted, int(records * LARGEST_SHARE))
