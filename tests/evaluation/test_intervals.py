"""Intervals: their known values, and that they hold what they promise for clustered records."""

import math
import random
from statistics import NormalDist

import pytest

from evaluation.intervals import Metric, effective_size, exponential, mean, ratio, share, student95


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval_has_its_known_values(successes: int, n: int, low: float, high: float) -> None:
    outcomes = [True] * successes + [False] * (n - successes)
    for clusters in (None, range(n)):  # one record a cluster changes nothing
        metric = share(outcomes, clusters)
        assert (metric.value, metric.n) == (successes / n, n)
        assert [metric.low, metric.high] == pytest.approx([low, high], abs=1e-4)


def test_copies_of_a_question_make_no_interval_narrower() -> None:
    facts = [True] * 40 + [False] * 10
    once = share(facts, range(50))
    copied = share([right for right in facts for _ in range(6)], [fact for fact in range(50) for _ in range(6)])
    assert (copied.value, copied.n, copied.clusters) == (0.8, 300, 50)
    assert copied.low == pytest.approx(once.low, abs=0.01)
    assert copied.high == pytest.approx(once.high, abs=0.01)


def test_an_interval_is_never_narrower_than_that_of_independent_records() -> None:
    choose = random.Random(1)
    for _ in range(200):
        n = choose.randint(2, 60)
        outcomes = [choose.random() < 0.7 for _ in range(n)]
        clusters = [choose.randrange(max(1, n // 3)) for _ in range(n)]
        plain, clustered = share(outcomes), share(outcomes, clusters)
        assert clustered.low <= plain.low + 1e-12
        assert clustered.high >= plain.high - 1e-12
        assert clustered.low <= clustered.value <= clustered.high
        assert 0 < effective_size(outcomes, clusters) <= n


def test_all_right_counts_once_a_cluster() -> None:
    clusters = [number // 3 for number in range(300)]
    metric = share([True] * 300, clusters)
    assert (metric.value, metric.high, metric.n, metric.clusters) == (1.0, 1.0, 300, 100)
    assert metric.low == pytest.approx(share([True] * 100).low, abs=0.002)
    one_wrong = share([False] + [True] * 299, clusters)
    assert one_wrong.low == pytest.approx(metric.low, abs=0.001)  # one more wrong is no better


@pytest.mark.parametrize("likeness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("p", "num_clusters", "size"), [(0.5, 60, 3), (0.9, 100, 3), (0.8, 30, 8)])
def test_the_clustered_interval_covers_the_truth_95_times_in_100(
    likeness: float, p: float, num_clusters: int, size: int
) -> None:
    """Beta-binomial clusters, as alike within as `likeness` (the intraclass correlation) says."""
    choose = random.Random(7)
    covered, plain_covered, rounds = 0, 0, 600
    for _ in range(rounds):
        outcomes, clusters = [], []
        for number in range(num_clusters):
            if likeness == 1.0:
                own = float(choose.random() < p)
            elif likeness:
                scale = (1 - likeness) / likeness
                own = choose.betavariate(p * scale, (1 - p) * scale)
            else:
                own = p
            outcomes += [choose.random() < own for _ in range(size)]
            clusters += [number] * size
        metric, plain = share(outcomes, clusters), share(outcomes)
        covered += metric.low <= p <= metric.high
        plain_covered += plain.low <= p <= plain.high
    assert covered / rounds >= 0.93
    if likeness == 1.0:
        assert plain_covered / rounds < 0.85  # what the clusters are there for


def test_students_quantile_has_its_tabled_values() -> None:
    for degrees, value in ((1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)):
        assert student95(degrees) == pytest.approx(value, rel=0.01)
    assert student95(10**9) == pytest.approx(NormalDist().inv_cdf(0.975))


def test_means_and_ratios_have_students_interval() -> None:
    metric = mean([1.0, 2.0, 3.0, 4.0])
    half = student95(3) * math.sqrt(5 / 3) / 2
    assert metric.as_json() == {"value": 2.5, "n": 4, "ci95": [pytest.approx(2.5 - half), pytest.approx(2.5 + half)]}
    metric = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 6)
    assert [metric.value, metric.low, metric.high] == pytest.approx([2.0, 2.0, 2.0])
    assert mean([3.0]).low == mean([3.0]).high == 3.0


def test_the_interval_of_a_ratio_covers_the_truth_95_times_in_100() -> None:
    choose = random.Random(3)
    covered, rounds = 0, 500
    for _ in range(rounds):
        clusters, above, below = [], [], []
        for number in range(25):
            shift = choose.gauss(0, 1)
            for _ in range(4):
                size = choose.randint(1, 9)
                clusters.append(number)
                below.append(float(size))
                above.append(size * (3 + shift + choose.gauss(0, 1)))
        metric = ratio(above, below, 100, clusters)
        covered += metric.low <= 3 <= metric.high
    assert 0.92 <= covered / rounds <= 0.99


def test_copies_widen_the_interval_of_a_mean_unless_they_are_clusters() -> None:
    values = [1.0, 2.0, 3.0, 5.0, 8.0]
    once = mean(values)
    copied = mean(values * 4, list(range(5)) * 4)
    assert (copied.n, copied.clusters) == (20, 5)
    assert [copied.low, copied.high] == pytest.approx([once.low, once.high])
    assert mean(values * 4).high < copied.high


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    metric = exponential(Metric(1.0, 9, 0.5, 1.5, 3))
    assert metric == Metric(math.exp(1.0), 9, math.exp(0.5), math.exp(1.5), 3)


def test_a_line_has_what_a_metric_has() -> None:
    metric = Metric(
        0.5, 4, 0.1, 0.9, 2, {"constant": 0.25, "nearest": None, "reason": "gone"}, {"name": {"value": 1.0}}
    )
    assert metric.as_json() == {
        "value": 0.5,
        "n": 4,
        "clusters": 2,
        "ci95": [0.1, 0.9],
        "baselines": {"constant": 0.25, "nearest": None, "reason": "gone"},
        "by_topic": {"name": {"value": 1.0}},
    }


def test_a_share_of_nothing_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="a share of nothing"):
        share([])
