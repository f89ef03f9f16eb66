"""How many records of each category the mix takes, and which: what is dropped, sampled and repeated."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.schema import CATEGORIES, MixConfig
from dataset.mix.heldout import held_out
from dataset.mix.leaks import duplicates_of, leaks_of
from dataset.mix.scan import Scan
from dataset.mix.sources import (
    Source,
)
from dataset.mix.split_report import check_what_is_left, odd_columns, tell_heldout
from dataset.mix.table import STATE_DROPPED, STATE_TRAIN, STATE_VALIDATION, rekey_shared_openings, table_of, use_groups


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of one category, in records."""

    asked: int
    """Target after the sample factor; for the whole corpus what there is."""
    reached: int
    """Written, repetitions included."""
    available: int
    """Distinct training records."""
    heldout: int

    @property
    def repetition(self) -> float:
        """Times that a written record is written, on average."""
        return self.reached / min(self.reached, self.available) if self.reached else 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What happens to each record."""

    states: npt.NDArray[np.uint8]
    copies: npt.NDArray[np.uint32]
    """How often a training record is written for its stage."""
    duplicates: npt.NDArray[np.bool_]
    leaks: npt.NDArray[np.bool_]
    """Training records in which the user asks a held-out question."""
    factor: float
    """By how much the targets of categories that hold samples alone shrink; 1 where there is none."""
    tallies: dict[str, Tally]
    notes: list[str]
    """What a user should know of the split, a line each."""


def choose(
    scan: Scan, sources: Sequence[Source], config: MixConfig, bundled: Mapping[str, int] | None = None
) -> Choice:
    """Decide what is held out, dropped, sampled and repeated. The same seed and sources give the same choice.

    `bundled`: as in `Sources`.

    Raises: UserError where a file or a category of the user's is left without records to train on.
    """
    notes = odd_columns(scan, sources)
    table = table_of(scan, sources)
    use_groups(table, scan, sources, notes)
    rekey_shared_openings(table, scan, notes)
    states = held_out(table, scan, config, notes)
    duplicates = duplicates_of(table.contents, table.readable, states)
    states[duplicates] = STATE_DROPPED
    leaks = leaks_of(table, scan, states, notes)
    states[leaks] = STATE_DROPPED
    category = table.category
    check_what_is_left(table, scan, sources, states, leaks, notes)
    tell_heldout(table, sources, states, config, notes)

    training = states == STATE_TRAIN
    heldout = states >= STATE_VALIDATION
    used = [name for index, name in enumerate(CATEGORIES) if any(source.category == name for source in sources)]
    distinct = {name: int(np.count_nonzero(training[category == CATEGORIES.index(name)])) for name in used}
    owned = {source.category for source in sources if not source.is_sample}
    common = sample_factor(distinct, bundled or {}, config)
    factors = {name: 1.0 if name in owned else common for name in used}
    copies = np.zeros(len(states), dtype=np.uint32)
    tallies = {}
    for name in used:
        asked = 0
        for number, members in enumerate(_pools(name, sources, scan.counts, training)):
            wanted = getattr(config, name) or len(members)
            # Targets of samples shrink together, but none below what there is to learn.
            factor = factors[name]
            target = max(math.floor(wanted * factor), min(wanted, len(members)) if factor < 1 else 0)
            rounds = target if name == "identity" else config.max_rounds
            rng = np.random.default_rng([config.seed, CATEGORIES.index(name), number])
            for part, wanted_of_it in _own_first(members, table.own, target):
                copies[part] = _copies(len(part), wanted_of_it, rounds, rng)
            asked += target
        mine = category == CATEGORIES.index(name)
        tallies[name] = Tally(asked, int(copies[mine].sum()), distinct[name], int(np.count_nonzero(heldout[mine])))
    return Choice(states, copies, duplicates, leaks, min(factors.values()), tallies, notes)


def sample_factor(distinct: Mapping[str, int], bundled: Mapping[str, int], config: MixConfig) -> float:
    """By how much the targets of categories without a file of the user's shrink: what lets no category (identity
    excepted) need more than `max_rounds` rounds.

    `distinct`: training records of each category. `bundled`: those that the samples alone would give where the user
    brought files. They count where they are more, so that one small file of the user's changes nothing elsewhere.
    """
    reachable = [
        max(count, bundled.get(category, 0)) * config.max_rounds / getattr(config, category)
        for category, count in distinct.items()
        if category != "identity" and getattr(config, category)
    ]
    return min([1.0, *reachable])


def _pools(
    name: str, sources: Sequence[Source], counts: Sequence[int], training: npt.NDArray[np.bool_]
) -> Iterator[npt.NDArray[np.intp]]:
    """The training records that share one target: a whole category, but each identity file by itself."""
    ends = np.cumsum(counts)
    spans = [
        np.arange(end - count, end)
        for source, count, end in zip(sources, counts, ends, strict=True)
        if source.category == name
    ]
    for span in spans if name == "identity" else [np.concatenate(spans)]:
        yield span[training[span]]


def _own_first(
    members: npt.NDArray[np.intp], own: npt.NDArray[np.bool_], target: int
) -> list[tuple[npt.NDArray[np.intp], int]]:
    """Parts of a pool and how many of each are wanted: where not all find room, the bundled samples that stand beside the
    user's records leave them nine tenths of it."""
    mine, samples = members[own[members]], members[~own[members]]
    if target >= len(members) or not len(mine) or not len(samples):
        return [(members, target)]
    wanted = min(len(mine), target - min(len(samples), target // 10))
    return [(mine, wanted), (samples, target - wanted)]


def _copies(available: int, target: int, max_rounds: int, rng: np.random.Generator) -> npt.NDArray[np.uint32]:
    """How often each record is taken to reach `target` exactly: whole rounds, and a random remainder."""
    copies = np.zeros(available, dtype=np.uint32)
    if available:
        rounds, rest = divmod(min(target, max_rounds * available), available)
        copies += np.uint32(rounds)
        copies[rng.permutation(available)[:rest]] += 1
    return copies
