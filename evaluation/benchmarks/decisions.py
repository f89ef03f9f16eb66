"""From scores of continuations to right and wrong, and from these to metrics.

A tie between k options counts as one k-th where the right one is among them, which is what a random
choice among them would reach. In a pair a tie counts as wrong.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

from evaluation.benchmarks.items import Item
from evaluation.benchmarks.prompts import CLOZE, LETTER
from evaluation.benchmarks.tasks import PAIR, PROBLEM, Task
from evaluation.intervals import Metric, share

TIE = 1e-5
"""Scores that are nearer than this are equal: so much may come from the order of float sums."""

LETTERS_METRIC = "acc_letter"
SUM, CHAR, BYTE, PMI = "sum", "char", "byte", "pmi"
GENERATED = "acc_generated"
Outcomes = dict[str, list[float]]
"""Metric -> 1 for a right item, 0 for a wrong one, a fraction for a tie."""


def measures_of(task: Task, form: str) -> tuple[str, ...]:
    """The metrics of a task in a form."""
    if task.kind == PROBLEM:
        return (GENERATED,)
    if task.kind == PAIR:
        return tuple(f"acc_pair_{way}" for way in (SUM, CHAR))
    return (LETTERS_METRIC,) if form == LETTER else tuple(f"acc_{CLOZE}_{way}" for way in (SUM, CHAR, BYTE, PMI))


def normalised(metric: str, texts: Sequence[str], nats: Sequence[float], alone: Sequence[float]) -> list[float]:
    """The scores by which a metric compares continuations.

    Args: texts: the continuations. nats: their log-probabilities. alone: those without the
    question, only used by `pmi`.
    """
    way = metric.rpartition("_")[2]
    if way == CHAR:  # acc_norm of lm-evaluation-harness
        return [value / max(1, len(text)) for value, text in zip(nats, texts, strict=True)]
    if way == BYTE:
        return [value / max(1, len(text.encode())) for value, text in zip(nats, texts, strict=True)]
    if way == PMI:  # log p(option | question) / p(option), Holtzman et al. 2021 (arXiv:2104.08315, eq. 3)
        return [value - without for value, without in zip(nats, alone, strict=True)]
    return list(nats)


def chosen(scores: Sequence[float]) -> list[int]:
    """The options with the best score; several if they tie."""
    best = max(scores)
    return [place for place, score in enumerate(scores) if score >= best - TIE]


def outcome(task: Task, scores: Sequence[float], answer: int) -> float:
    """How right the best-scored option is."""
    best = chosen(scores)
    if answer not in best:
        return 0.0
    return 1.0 / len(best) if task.kind != PAIR else float(len(best) == 1)


def share_of(items: Sequence[Item], outcomes: Sequence[float]) -> Metric:
    """The share of right items; clusters where the items have them."""
    clusters: list[Hashable] = [number if item.cluster is None else item.cluster for number, item in enumerate(items)]
    return share(outcomes, clusters if any(item.cluster is not None for item in items) else None)


def metrics_of(items: Sequence[Item], outcomes: Outcomes, wanted: Iterable[int] | None = None) -> dict[str, Metric]:
    """Metric -> its share. Args: wanted: numbers of the items that count; None: all."""
    numbers = range(len(items)) if wanted is None else list(wanted)
    kept = [items[number] for number in numbers]
    return (
        {name: share_of(kept, [values[number] for number in numbers]) for name, values in outcomes.items()}
        if kept
        else {}
    )


def by_group(items: Sequence[Item], outcomes: Outcomes) -> dict[str, dict[str, Metric]]:
    """Group -> metrics of its items, in the order of the files."""
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        numbers.setdefault(item.group, []).append(number)
    return {group: metrics_of(items, outcomes, own) for group, own in numbers.items()}


def above_baselines(metric: Metric, baselines: Mapping[str, float]) -> bool:
    """Whether the whole interval lies above every baseline."""
    return all(metric.low > value for value in baselines.values())
