"""Finds leaks (training records that ask a held-out question) and duplicates.

Shapes: N records, Q user turns, K distinct questions.
"""

import numpy as np
import numpy.typing as npt

from configs.messages import both
from dataset.mix.scan import Hashes, Scan
from dataset.mix.table import SHARED_TURN, Flags, Sides, Table, is_heldout, is_training


def duplicates_of(contents: Hashes, readable: Flags, sides: Sides) -> Flags:
    """Which records are duplicates, (N,). If records have the same content, one of them is kept.

    It is the first held-out record. If none of them is held out, it is the first record.
    """
    # Sort the records by content. If contents are equal, held-out records come first, and then the
    # order of the files stays, because the sort is stable.
    members = np.flatnonzero(readable)
    order = members[np.lexsort((~is_heldout(sides[members]), contents[members]))]
    # A record is a duplicate if the record before it has the same content.
    ordered = contents[order]
    duplicates = np.zeros(len(contents), dtype=np.bool_)
    duplicates[order[1:]] = ordered[1:] == ordered[:-1]
    return duplicates


def is_key(askers: npt.NDArray[np.uint32], asks_last: Flags) -> Flags:
    """Which user turns are the question of their record, (Q,): the first or the last user turn."""
    # The turns of one record are neighbours. So where the record number changes, one record ends
    # and the next one begins.
    changes = askers[1:] != askers[:-1]
    first, last = np.concatenate(([True], changes)), np.concatenate((changes, [True]))
    return np.where(asks_last[askers], last, first)


def leaks_of(table: Table, scan: Scan, sides: Sides, notes: list[str]) -> Flags:
    """Training records in which a user turn is the question of a held-out record, (N,).

    The question of a record is its first user turn, which is also its key. But if a record has a
    group, the question is its last user turn, because the earlier turns may be small talk. Some
    turns are in many conversations (继续, 好的). They are no leaks, because they say nothing about
    the answer.
    """
    questions, askers = scan.turns()
    leaks = np.zeros(len(sides), dtype=np.bool_)
    if not len(askers):
        return leaks
    # `turns`: the turns of training records that ask a held-out question. `question_of`: for each
    # of them, which of the K distinct questions it asks.
    held = np.unique(questions[is_key(askers, table.asks_last) & is_heldout(sides[askers])])
    turns = np.flatnonzero(is_training(sides[askers]) & np.isin(questions, held))
    _, places, question_of = np.unique(questions[turns], return_index=True, return_inverse=True)
    is_short = np.frombuffer(scan.short, dtype=np.bool_)[turns[places]]
    common = _common(table, askers[turns], question_of, is_short)
    leaks[askers[turns[~common[question_of]]]] = True

    # Tell the user about records that are kept because their held-out question is common.
    spared = np.zeros(len(sides), dtype=np.bool_)
    spared[askers[turns]] = True
    if count := int(np.count_nonzero(spared & ~leaks)):
        notes.append(
            both(
                f"{count:,} records ask on the way what held-out records ask, but in turns that many conversations share: "
                "kept",
                f"{count:,} 条记录含有留出问题，但只是许多对话共有的短句，予以保留",
            )
        )
    return leaks


def _common(table: Table, askers: npt.NDArray[np.uint32], question_of: npt.NDArray[np.intp], is_short: Flags) -> Flags:
    """Which questions are so common that they are no leaks, (K,).

    Args: askers, question_of: the record and the question of each turn. is_short (K,): whether a
    question is short.
    """
    num_records = len(table.keys)
    floor = np.where(is_short, SHARED_TURN[True], SHARED_TURN[False])
    common = np.zeros(len(is_short), dtype=np.bool_)
    for index in table.used():
        # If the user has files of this category, only their records count.
        mine = table.category[askers] == index
        mine &= table.own[askers] | ~table.own[table.category == index].any()
        # Join question and record into one number. So a record that asks a question twice counts
        # once.
        pairs = np.unique(question_of[mine].astype(np.int64) * num_records + askers[mine])
        counts = np.bincount(pairs // num_records, minlength=len(is_short))
        common |= counts > np.maximum(floor, table.largest(index))
    return common
