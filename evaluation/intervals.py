"""Shares, means and ratios with 95% confidence intervals that allow for clusters of like records.

Three wordings of one fact are three questions, but they tell little more than one. So every record
belongs to a cluster (a fact, a pair of operands, a clause, a topic). `n` counts records, `clusters`
counts clusters, and the interval gets wider the more alike the records of a cluster come out.
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
    """Clusters among the items; None if the items themselves are taken as independent."""
    baselines: Mapping[str, float | str | None] | None = None
    """Name of a baseline -> its value on the same items (`evaluation/baselines.py`); `reason`: why
    one has none. None if the metric has no baselines."""
    by_topic: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Topic -> its `value` and `n`; empty if the score has no topics."""

    def as_json(self) -> dict[str, Any]:
        """The metric as a line of `eval_results.jsonl` holds it."""
        line: dict[str, Any] = {"value": self.value, "n": self.n}
        if self.clusters is not None:
            line["clusters"] = self.clusters
        line["ci95"] = [self.low, self.high]
        if self.baselines is not None:
            line["baselines"] = dict(self.baselines)
        if self.by_topic:
            line["by_topic"] = {topic: dict(part) for topic, part in self.by_topic.items()}
        return line


def share(outcomes: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Metric:
    """A share of right outcomes with Wilson's interval (Wilson 1927), which stays inside [0, 1].

    With clusters (one for each record) n becomes the effective sample size (`effective_size`) in
    the formula of the interval, as in Korn and Graubard (1998, Survey Methodology 24) and Franco et
    al. (2019, J. Survey Statistics and Methodology 7).

    Raises: ValueError without outcomes.
    """
    n = len(outcomes)
    if n == 0:
        raise ValueError("a share of nothing")
    value = sum(outcomes) / n
    size = float(n) if clusters is None else effective_size(outcomes, clusters)
    # Wilson's interval: all shares p for which the observed one is at most z standard errors of p
    # away. Its middle is drawn from the observed share towards 1/2.
    centre = (value + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 * math.sqrt(value * (1 - value) / size + Z95**2 / (4 * size**2)) / (1 + Z95**2 / size)
    # Rounding must not push a bound out of [0, 1] or past the share itself.
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Metric(value, n, min(low, value), max(high, value), None if clusters is None else len(set(clusters)))


def effective_size(outcomes: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many independent records would tell as much about the share as these: at most n.

    It is n divided by the design effect (Kish 1965), which is the variance of the share as the
    clusters show it, over the variance that n independent records would have.

    If all outcomes are equal, no variance can be seen; yet 300 right answers to 100 facts are no
    proof of 300 things. So two imagined clusters of usual size are added, one all right and one all
    wrong (Agresti and Coull 1998 add two records of each). Then a cluster that is all right counts
    about once.

    The effect is itself an estimate from m clusters. So the size also shrinks by (z / t)**2, where
    t is Student's quantile for m - 1 degrees of freedom.
    """
    n = len(outcomes)
    sums: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])  # cluster -> right ones, all
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
    # A cluster's residual is how many more it has right than its share of all would be. Their
    # squares, summed, are the variance of the number of right records. m clusters and the two
    # imagined ones make m + 2, so (m + 2) / (m + 1) is the usual correction k / (k - 1).
    between = sum((right - value * count) ** 2 for right, count in parts) * (m + 2) / (m + 1)
    effect = max(1.0, between / (total * value * (1 - value)))
    return n / effect * (Z95 / student95(m - 1)) ** 2 if m > 1 else 1.0


def student95(degrees: int) -> float:
    """Student's two-sided 95% quantile for `degrees` >= 1 degrees of freedom.

    An expansion in 1 / degrees (Abramowitz and Stegun 1964, 26.7.5), within 1%. One degree is
    Cauchy's distribution, whose quantile is exact.
    """
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
    """A mean with the interval of `ratio`; the unit is that of the values."""
    return ratio(values, [1.0] * len(values), len(values), clusters)


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], n: int, clusters: Sequence[Hashable] | None = None
) -> Metric:
    """Sum over sum, such as nats over tokens, with the linearised interval of a ratio (Cochran
    1977, chapter 6).

    Without `clusters` each record is a cluster of its own. One cluster alone says nothing about the
    spread, so its interval has no width.

    Args: numerators, denominators: one each for every record. n: what the metric counts.
    """
    total = sum(denominators)
    value = sum(numerators) / total
    # Records of a cluster may all lie on one side. So their residuals are added up before they are
    # squared.
    residuals: dict[Hashable, float] = defaultdict(float)
    keys = range(len(numerators)) if clusters is None else clusters
    for above, below, key in zip(numerators, denominators, keys, strict=True):
        residuals[key] += above - value * below
    m = len(residuals)
    half = 0.0
    if m > 1:
        # The standard error: root of the summed squares times m / (m - 1), over the denominator.
        half = student95(m - 1) * math.sqrt(sum(r * r for r in residuals.values()) * m / (m - 1)) / abs(total)
    return Metric(value, n, value - half, value + half, None if clusters is None else m)


LARGEST_EXPONENT = 709.0
"""The exponential of a larger number does not fit a float."""


def exponential(metric: Metric) -> Metric:
    """Perplexity of a loss in nats, at most e**709."""
    value, low, high = (math.exp(min(x, LARGEST_EXPONENT)) for x in (metric.value, metric.low, metric.high))
    return Metric(value, metric.n, low, high, metric.clusters)
