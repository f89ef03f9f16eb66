"""Training records that would give a held-out question away, and records that are there twice."""

import numpy as np
import numpy.typing as npt

from configs.messages import both
from dataset.mix.scan import Scan
from dataset.mix.table import SHARED_TURN, STATE_TRAIN, STATE_VALIDATION, Bits, Table


def duplicates_of(
    contents: Bits, readable: npt.NDArray[np.bool_], states: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    """All records of equal content but one: a held-out one where there is one, else the first."""
    members = np.flatnonzero(readable)
    order = members[np.lexsort((states[members] < STATE_VALIDATION, contents[members]))]
    ordered = contents[order]
    duplicates = np.zeros(len(contents), dtype=np.bool_)
    duplicates[order[1:]] = ordered[1:] == ordered[:-1]
    return duplicates


def is_key(askers: npt.NDArray[np.uint32], asks_last: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which user turns are the questions of their records."""
    changes = askers[1:] != askers[:-1]
    first, last = np.concatenate(([True], changes)), np.concatenate((changes, [True]))
    return np.where(asks_last[askers], last, first)


def leaks_of(table: Table, scan: Scan, states: npt.NDArray[np.uint8], notes: list[str]) -> npt.NDArray[np.bool_]:
    """Training records in which a user turn is the question of a held-out record with another key.

    That question is the first user turn, which is the key; in a record with a group the last one: what comes before it
    may be anybody's talk. A turn that many conversations share (继续, 好的) gives nothing away and is no leak."""
    questions = np.frombuffer(scan.questions, dtype="<u8")
    askers = np.frombuffer(scan.askers, dtype=np.uint32)
    leaks = np.zeros(len(states), dtype=np.bool_)
    if not len(askers):
        return leaks
    held = np.unique(questions[is_key(askers, table.asks_last) & (states[askers] >= STATE_VALIDATION)])
    turns = np.flatnonzero((states[askers] == STATE_TRAIN) & np.isin(questions, held))
    asked, places, question_of = np.unique(questions[turns], return_index=True, return_inverse=True)
    floor = np.where(np.frombuffer(scan.short, dtype=np.bool_)[turns[places]], SHARED_TURN[True], SHARED_TURN[False])
    common = np.zeros(len(asked), dtype=np.bool_)
    for index in table.used():
        mine = table.category[askers[turns]] == index
        mine &= table.own[askers[turns]] | ~table.own[table.category == index].any()
        pairs = np.unique(question_of[mine].astype(np.int64) * len(states) + askers[turns[mine]])
        counts = np.bincount(pairs // len(states), minlength=len(asked))
        common |= counts > np.maximum(floor, table.largest(index))
    leaks[askers[turns[~common[question_of]]]] = True
    spared = np.zeros(len(states), dtype=np.bool_)
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
