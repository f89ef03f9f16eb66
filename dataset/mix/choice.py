"""How many records of each category the mix takes, and which are repeated or left out."""

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
    """Target, after the sample factor. If the target is 0 (corpus: all), the records there are."""
    reached: int
    """Records written, repetitions included."""
    available: int
    """Distinct training records."""
    heldout: int

    @property
    def repetition(self) -> float:
        """How often a record that is written at all is written, on average."""
        return self.reached / min(self.reached, self.available) if self.reached else 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What happens to each record. Each column is (N,), in the order of the sources."""

    sides: Sides
    copies: npt.NDArray[np.uint32]
    """How often a training record is written for its stage."""
    duplicates: Flags
    leaks: Flags
    """Training records in which the user asks a held-out question."""
    factor: float
    """What the targets of categories with samples only are multiplied by; 1 if there are none."""
    tallies: dict[str, Tally]
    """By category."""
    notes: list[str]
    """What a user should know about the split, one line each."""


def choose(
    scan: Scan, sources: Sequence[Source], config: MixConfig, bundled: Mapping[str, int] | None = None
) -> Choice:
    """Decide which records are held out, dropped, sampled and repeated.

    The same seed and sources give the same choice.

    Args: bundled: as in `Sources`.
    Raises: UserError when a file of the user's, or a category, has too few training records left.
    """
    notes = odd_columns(scan, sources)

    # The key of each record decides its side, so all keys must be final before we hold out any.
    table = table_of(scan, sources)
    use_groups(table, scan, sources, notes)
    rekey_shared_openings(table, scan, notes)
    sides = held_out(table, scan, config, notes)

    # Now the sides are known. So we can decide which of two equal records stays, and which training
    # records contain a held-out question.
    duplicates = duplicates_of(table.contents, table.readable, sides)
    sides[duplicates] = int(Side.DROPPED)
    leaks = leaks_of(table, scan, sides, notes)
    sides[leaks] = int(Side.DROPPED)
    check_what_is_left(table, scan, sources, sides, leaks, notes)
    tell_heldout(table, sources, sides, config, notes)

    # The training records that are left are sampled or repeated to meet the targets.
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
    """What the target of each category is multiplied by; 1 if the user has a file of it."""
    owned = {source.category for source in sources if not source.is_sample}
    common = sample_factor(distinct, bundled, config)
    return {name: 1.0 if name in owned else common for name in distinct}


def sample_factor(distinct: Mapping[str, int], bundled: Mapping[str, int], config: MixConfig) -> float:
    """What the targets of categories without a file of the user's are multiplied by, at most 1.

    It is the largest factor with which no category has to repeat its records more than `max_rounds`
    times. Identity does not count.

    Args: distinct: training records of each category. bundled: training records that the samples
    have in categories with files of the user's. The larger number counts, so that one small file of
    the user's does not change the other categories.
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
    """Training records that share one target: those of a category, or of one identity file."""
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
    """Set the copies of one category's training records. Returns: how many were asked for."""
    asked = 0
    for number, members in enumerate(pools):
        wanted = getattr(config, name) or len(members)
        # Targets of samples shrink together, but each distinct record is still written once, as
        # far as the whole target allows.
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
    """Parts of a pool, and how many records of each are wanted.

    If the target is too small for all of them, bundled samples take at most a tenth of it beside
    the user's records, or what those leave free.
    """
    mine, samples = members[own[members]], members[~own[members]]
    if target >= len(members) or not len(mine) or not len(samples):
        return [(members, target)]
    wanted = min(len(mine), target - min(len(samples), target // 10))
    return [(mine, wanted), (samples, target - wanted)]


def _copies(available: int, target: int, max_rounds: int, rng: np.random.Generator) -> npt.NDArray[np.uint32]:
    """How often to write each record to reach `target`: whole rounds, and a random part of one."""
    copies = np.zeros(available, dtype=np.uint32)
    if available:
        rounds, rest = divmod(min(target, max_rounds * available), available)
        copies += np.uint32(rounds)
        copies[rng.permutation(available)[:rest]] += 1
    return copies
