"""Shares, means and ratios with 95% confidence intervals that count what is independent.

Three wordings of one fact are three questions, but little more than one observation. So every
record belongs to a cluster (a fact, a pair of operands, a clause, a topic), `n` counts records,
`clusters` counts clusters, and the interval is as wide as the clusters demand.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95% interval."""


@dataclass(frozen=True)
class Metric:
    """A value, the number of items behind it, and its 95% confidence interval."""

    value: float
    n: int
    low: float
    high: float
    clusters: int | None = None
    """Independent things among the items; None where the items themselves are taken for
    independent."""
    baselines: Mapping[str, float | str | None] | None = None
    """What rules that know nothing reach on the same items; None where there is no such rule."""
    by_topic: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Topic -> value and n, where a score has topics."""

    def as_json(self) -> dict[str, Any]:
        """The form of `eval_results.jsonl`."""
        line: dict[str, Any] = {"value": self.value, "n": self.n}
        if self.clusters is not None:
            line["clusters"] = self.clusters
        line["ci95"] = [self.low, self.high]
        if self.baselines is not None:
            line["baselines"] = dict(self.baselines)
        if self.by_topic:
            line["by_topic"] = {topic: dict(part) for topic, part in self.by_topic.items()}
        return line


def share(outcomes: Sequence[bool], clusters: Sequence[Hashable] | None = None) -> Metric:
    """A share of right outcomes with Wilson's interval (Wilson 1927), which stays inside [0, 1].

    With clusters (one a record) the interval is that of the effective sample size
    (`effective_size`), as Korn and Graubard (1998, Survey Methodology 24) and Franco et al. (2019,
    J. Survey Statistics and Methodology 7) have it.
    """
    n = len(outcomes)
    if n == 0:
        raise ValueError("a share of nothing")
    value = sum(outcomes) / n
    size = float(n) if clusters is None else effective_size(outcomes, clusters)
    centre = (value + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 * math.sqrt(value * (1 - value) / size + Z95**2 / (4 * size**2)) / (1 + Z95**2 / size)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Metric(value, n, min(low, value), max(high, value), None if clusters is None else len(set(clusters)))


def effective_size(outcomes: Sequence[bool], clusters: Sequence[Hashable]) -> float:
    """How many independent records tell as much about the share as these clustered ones: at most as
    many as there are.

    It is n divided by the design effect (Kish 1965): the variance of the share between clusters
    over that of n independent records. Where all outcomes are equal no variance can be seen, though
    300 right answers to 100 facts are no proof of 300 things. So two clusters of usual size are
    imagined beside the real ones, one all right and one all wrong (as Agresti and Coull 1998 add
    two of each): all right then counts once a cluster. As the effect is estimated from m clusters,
    the size shrinks by (z / t)**2, t being Student's quantile for m - 1.
    """
    n = len(outcomes)
    sums: dict[Hashable, list[int]] = defaultdict(lambda: [0, 0])
    for right, cluster in zip(outcomes, clusters, strict=True):
        sums[cluster][0] += right
        sums[cluster][1] += 1
    m = len(sums)
    if m == n:
        return float(n)
    usual = sum(count * count for _, count in sums.values()) / n  # the size that a record's cluster has on average
    parts = [*((float(right), float(count)) for right, count in sums.values()), (usual, usual), (0.0, usual)]
    total = n + 2 * usual
    value = sum(right for right, _ in parts) / total
    between = sum((right - value * count) ** 2 for right, count in parts) * (m + 2) / (m + 1)
    effect = max(1.0, between / (total * value * (1 - value)))
    return n / effect * (Z95 / student95(m - 1)) ** 2 if m > 1 else 1.0


def student95(degrees: int) -> float:
    """Student's two-sided 95% quantile (Abramowitz and Stegun 1964, 26.7.5; within 1%). `degrees`
    >= 1."""
    if degrees == 1:
        return math.tan(0.475 * math.pi)
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Metric:
    """A mean with Student's interval over the clusters."""
    return ratio(values, [1.0] * len(values), len(values), clusters)


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], n: int, clusters: Sequence[Hashable] | None = None
) -> Metric:
    """Sum over sum, such as nats over tokens, with the linearised interval of a ratio (Cochran
    1977, chapter 6).

    The residuals of a cluster are added up before they are squared; without `clusters` each record
    is one. A single cluster tells nothing about the spread, and has an interval of no width.
    """
    total = sum(denominators)
    value = sum(numerators) / total
    residuals: dict[Hashable, float] = defaultdict(float)
    keys = range(len(numerators)) if clusters is None else clusters
    for above, below, key in zip(numerators, denominators, keys, strict=True):
        residuals[key] += above - value * below
    m = len(residuals)
    half = 0.0
    if m > 1:
        half = student95(m - 1) * math.sqrt(sum(r * r for r in residuals.values()) * m / (m - 1)) / abs(total)
    return Metric(value, n, value - half, value + half, None if clusters is None else m)


LARGEST_EXPONENT = 709.0
"""Beyond it no float holds the exponential."""


def exponential(metric: Metric) -> Metric:
    """Perplexity of a loss; that of a huge one is the largest there is."""
    value, low, high = (math.exp(min(x, LARGEST_EXPONENT)) for x in (metric.value, metric.low, metric.high))
    return Metric(value, metric.n, low, high, metric.clusters)
