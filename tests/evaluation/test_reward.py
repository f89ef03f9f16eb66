"""The accuracy of a reward model, and the length-matched one."""

from itertools import product

import pytest

from evaluation.baselines import TrainingExamples
from evaluation.preference import Pair
from evaluation.reward import Preferred, length_matched, reward_metrics
from tests.tiny_run import chat


def test_a_rule_that_looks_at_length_alone_gets_one_half() -> None:
    # Nine of ten chosen answers are longer.
    lengths = [(12, 8) if number % 10 else (8, 12) for number in range(200)]
    for rule in (max, min):
        right = [rule(chosen, rejected) == chosen for chosen, rejected in lengths]
        metric = length_matched(right, lengths)
        assert metric is not None and metric.value == pytest.approx(0.5)


def test_a_rule_that_looks_at_how_much_longer_an_answer_is_gets_one_half_too() -> None:
    # Much longer answers are mostly chosen, and little longer ones mostly rejected.
    lengths = [(30, 10) if number % 10 else (10, 30) for number in range(240)]
    lengths += [(10, 11) if number % 10 else (11, 10) for number in range(160)]
    right = [chosen > 2 * rejected or rejected > chosen > rejected / 2 for chosen, rejected in lengths]
    assert sum(right) / len(right) == pytest.approx(0.9)
    metric = length_matched(right, lengths)
    assert metric is not None and metric.value == pytest.approx(0.5)


def test_what_does_not_depend_on_length_keeps_its_accuracy() -> None:
    kinds = list(product([True, True, True, False], [(12, 8), (12, 8), (8, 12), (9, 9)]))
    metric = length_matched([right for right, _ in kinds] * 25, [lengths for _, lengths in kinds] * 25)
    assert metric is not None and metric.value == pytest.approx(0.75, abs=0.02)
    assert metric.low < 0.75 < metric.high < 1


def test_pairs_of_which_all_chosen_answers_are_longer_can_not_be_matched() -> None:
    assert length_matched([True] * 100, [(12, 8)] * 100) is None


def test_clusters_widen_the_interval() -> None:
    right, lengths = [True, True, False] * 40, [(8, 12), (12, 8), (8, 8)] * 40
    alone = length_matched(right, lengths)
    alike = length_matched(sorted(right), lengths, [number // 10 for number in range(120)])
    assert alone is not None and alike is not None
    assert alike.high - alike.low > alone.high - alone.low


def test_metrics_stand_beside_those_of_other_judges_on_the_same_pairs() -> None:
    pairs = [
        Pair(chat("1+1", "2"), chat("1+1", "33"), kind, cluster)
        for kind, cluster in (("wrong_sum", "a"), ("wrong_sum", "b"), ("rude", "c"), ("rude", "d"))
    ]
    rewards = [Preferred(1.0, 0.0), Preferred(0.0, 0.0), Preferred(2.0, -1.0), Preferred(-1.0, 1.0)]
    others = {"sft": [Preferred(-1.0, -2.0)] * 4}
    metrics = reward_metrics(pairs, rewards, others, [(1, 2)] * 4, TrainingExamples(reason="none"))
    value = {name: metric.value for name, metric in metrics.items()}
    assert value["reward_accuracy"] == 0.5  # a tie counts as wrong
    assert (value["reward_accuracy_wrong"], value["reward_accuracy_wrong_sum"]) == (0.5, 0.5)
    assert (value["reward_accuracy_sft"], value["reward_accuracy_sft_wrong"]) == (1.0, 1.0)
    assert value["reward_accuracy_longer"] == 0.0
    assert "reward_accuracy_length_matched" not in metrics  # all rejected answers are longer
    assert value["reward_margin"] == pytest.approx((1 + 0 + 3 - 2) / 4)
    assert value["reward_mean"] == pytest.approx((0.5 + 0 + 0.5 + 0) / 4)
    baselines = metrics["reward_accuracy"].baselines
    assert baselines is not None and baselines["length"] == 1.0
