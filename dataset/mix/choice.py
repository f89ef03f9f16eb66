"""Chooses how many records of each category the mix takes, and which it repeats or leaves out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.schema import CATEGORIES, MixConfig
from dataset.mix.heldout import held_out
from dataset.mix.leaks import duplicates_of, leaks_of
from dataset.mix.scan import Scan
from dataset.mix.sources import Source
from dataset.mix.split_report import check_what_is_left, odd_columns, tell_heldout
from dataset.mix.table import (
    Flags,
    Side,
    Sides,
    is_heldout,
    is_training,
    rekey_shared_openings,
    table_of,
    use_groups,
)


@dataclass(frozen=True, slots=True)
class Tally:
    """The numbers of one category, in records."""

    asked: int
    """The target, after the sample factor. If it is 0 (corpus: all), the number of records."""
    reached: int
    """Number of written records. A repeated record counts each time."""
    available: int
    """Distinct training records."""
    heldout: int

    @property
    def repetition(self) -> float:
        """How many times a written record is written, on average."""
        return self.reached / min(self.reached, self.available) if self.reached else 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What happens to each record. Each column is (N,), in the order of the sources."""

    sides: Sides
    copies: npt.NDArray[np.uint32]
    """How many times a training record is written for its stage."""
    duplicates: Flags
    leaks: Flags
    """Training records in which the user asks a held-out question."""
    factor: float
    """The targets of categories with samples only are multiplied by this; 1 if there are none."""
    tallies: dict[str, Tally]
    """By category."""
    notes: list[str]
    """Messages for the user about the split, one line each."""


def choose(
    scan: Scan, sources: Sequence[Source], config: MixConfig, bundled: Mapping[str, int] | None = None
) -> Choice:
    """Decide which records are held out, dropped, sampled and repeated.

    The same seed and sources give the same choice.

    Args: bundled: as in `Sources`.
    Raises: UserError if too few training records are left of a user's file or of a category.
    """
    notes = odd_columns(scan, sources)

    # The key of a record decides its side. So all keys must be final before we hold out records.
    table = table_of(scan, sources)
    use_groups(table, scan, sources, notes)
    rekey_shared_openings(table, scan, notes)
    sides = held_out(table, scan, config, notes)

    # Now the sides are known. So we can decide which of two equal records stays, and which
    # training records ask a held-out question.
    duplicates = duplicates_of(table.contents, table.readable, sides)
    sides[duplicates] = int(Side.DROPPED)
    leaks = leaks_of(table, scan, sides, notes)
    sides[leaks] = int(Side.DROPPED)
    check_what_is_left(table, scan, sources, sides, leaks, notes)
    tell_heldout(table, sources, sides, config, notes)

    # To meet the targets, sample or repeat the training records that are left.
    training = is_training(sides)
    used = [name for name in CATEGORIES if any(source.category == name for source in sources)]
    distinct = {name: int(np.count_nonzero(training & table.of(name))) for name in used}
    factors = _factors(sources, distinct, bundled or {}, config)
    copies = np.zeros(len(sides), dtype=np.uint32)
    tallies = {}
    for name in used:
        pools = list(_pools(name, sources, scan.spans(), training))
        asked = _fill(copies, pools, table.own, name, factors[name], config)
        mine = table.of(name)
        heldout = int(np.count_nonzero(is_heldout(sides[mine])))
        tallies[name] = Tally(asked, int(copies[mine].sum()), distinct[name], heldout)
    return Choice(sides, copies, duplicates, leaks, min(factors.values()), tallies, notes)


def _factors(
    sources: Sequence[Source], distinct: Mapping[str, int], bundled: Mapping[str, int], config: MixConfig
) -> dict[str, float]:
    """The factor for the target of each category: 1 if the user has a file of the category."""
    owned = {source.category for source in sources if not source.is_sample}
    common = sample_factor(distinct, bundled, config)
    return {name: 1.0 if name in owned else common for name in distinct}


def sample_factor(distinct: Mapping[str, int], bundled: Mapping[str, int], config: MixConfig) -> float:
    """The factor for the targets of all categories without a file from the user, at most 1.

    It is the largest factor with which no category must write a record more than `max_rounds`
    times. Identity does not count.

    Args: distinct: the number of training records of each category. bundled: the number of training
    records in the bundled samples, for categories with files from the user. The larger of both
    numbers counts. So one small file from the user does not change the other categories.
    """
    reachable = [
        max(count, bundled.get(category, 0)) * config.max_rounds / getattr(config, category)
        for category, count in distinct.items()
        if category != "identity" and getattr(config, category)
    ]
    return min([1.0, *reachable])


def _pools(
    name: str, sources: Sequence[Source], spans: Sequence[slice], training: Flags
) -> Iterator[npt.NDArray[np.intp]]:
    """Groups of training records, one target each: a category, or one of the identity files."""
    mine = [
        np.arange(span.start, span.stop) for source, span in zip(sources, spans, strict=True) if source.category == name
    ]
    if name != "identity":
        mine = [np.concatenate(mine)]
    for records in mine:
        yield records[training[records]]


def _fill(
    copies: npt.NDArray[np.uint32],
    pools: Sequence[npt.NDArray[np.intp]],
    own: Flags,
    name: str,
    factor: float,
    config: MixConfig,
) -> int:
    """Set the copies of the training records of one category. Returns: how many are wanted."""
    asked = 0
    for number, members in enumerate(pools):
        wanted = getattr(config, name) or len(members)
        # The targets of samples become smaller together. But each distinct record is still written
        # once, if the full target is large enough.
        at_least = min(wanted, len(members)) if factor < 1 else 0
        target = max(math.floor(wanted * factor), at_least)
        rounds = target if name == "identity" else config.max_rounds
        # Each pool has its own generator, so a new file in one category changes no other category.
        rng = np.random.default_rng([config.seed, CATEGORIES.index(name), number])
        for part, wanted_of_it in _own_first(members, own, target):
            copies[part] = _copies(len(part), wanted_of_it, rounds, rng)
        asked += target
    return asked


def _own_first(members: npt.NDArray[np.intp], own: Flags, target: int) -> list[tuple[npt.NDArray[np.intp], int]]:
    """The parts of a pool (user's records, samples), and how many records of each part are wanted.

    If the target is smaller than the pool, the bundled samples get at most a tenth of the target.
    They get more only if the user has too few records for the rest.
    """
    mine, samples = members[own[members]], members[~own[members]]
    if target >= len(members) or not len(mine) or not len(samples):
        return [(members, target)]
    wanted = min(len(mine), target - min(len(samples), target // 10))
    return [(mine, wanted), (samples, target - wanted)]


def _copies(available: int, target: int, max_rounds: int, rng: np.random.Generator) -> npt.NDArray[np.uint32]:
    """How many times to write each record: full rounds over all, then a random part of a round."""
    copies = np.zeros(available, dtype=np.uint32)
    if available:
        rounds, rest = divmod(min(target, max_rounds * available), available)
        copies += np.uint32(rounds)
        copies[rng.permutation(available)[:rest]] += 1
    return copies
