"""evaluation/benchmarks/decisions.py: ties, ways to normalise, groups, and the order of options."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.tokenizer import RustBPETokenizer
from evaluation.benchmarks.decisions import (
    by_group,
    chosen,
    measures_of,
    metrics_of,
    normalised,
    outcome,
    share_of,
)
from evaluation.benchmarks.items import Item
from evaluation.benchmarks.prompts import CLOZE, LETTER, prompts_of, without_question
from evaluation.benchmarks.scorers import ModelScorer, random_weights
from evaluation.benchmarks.tasks import TASKS
from model.model_minillm import MiniLLM
from tests.tiny_run import DENSE


def test_a_tie_counts_as_one_of_its_options_but_is_wrong_in_a_pair() -> None:
    choice, pair = TASKS["cmmlu"], TASKS["zhoblimp"]
    assert outcome(choice, [1.0, 2.0, 0.0, 0.0], 1) == 1
    assert outcome(choice, [2.0, 2.0, 0.0, 2.0], 1) == pytest.approx(1 / 3)
    assert outcome(choice, [2.0, 2.0, 0.0, 0.0], 2) == 0
    assert outcome(pair, [2.0, 1.0], 0) == 1
    assert outcome(pair, [2.0, 2.0], 0) == 0
    assert chosen([1.0, 1.0 + 1e-7, 0.0]) == [0, 1]


def test_each_way_to_normalise_is_what_its_name_says() -> None:
    texts, nats, alone = ["胡适", "abc"], [-4.0, -3.0], [-1.0, -2.5]
    assert normalised("acc_cloze_sum", texts, nats, alone) == nats
    assert normalised("acc_cloze_char", texts, nats, alone) == [-2.0, -1.0]
    assert normalised("acc_cloze_byte", texts, nats, alone) == pytest.approx([-4 / 6, -1.0])
    assert normalised("acc_cloze_pmi", texts, nats, alone) == [-3.0, -0.5]


def test_the_names_of_metrics_are_those_of_the_results_file() -> None:
    assert measures_of(TASKS["cmmlu"], LETTER) == ("acc_letter",)
    assert measures_of(TASKS["gaokao"], CLOZE) == ("acc_cloze_sum", "acc_cloze_char", "acc_cloze_byte", "acc_cloze_pmi")
    assert measures_of(TASKS["xcopa_zh"], LETTER) == ("acc_pair_sum", "acc_pair_char")
    assert measures_of(TASKS["cmath"], LETTER) == ("acc_generated",)


def test_groups_add_up_to_the_whole() -> None:
    items = [Item(group, "q", ("a", "b"), 0) for group in "aab"]
    outcomes = {"acc_letter": [1.0, 0.5, 0.0]}
    groups = by_group(items, outcomes)
    assert [(group, one["acc_letter"].value, one["acc_letter"].n) for group, one in groups.items()] == [
        ("a", 0.75, 2),
        ("b", 0.0, 1),
    ]
    assert metrics_of(items, outcomes)["acc_letter"].value == 0.5
    assert metrics_of(items, outcomes, [1])["acc_letter"].value == 0.5
    assert metrics_of(items, outcomes, []) == {}


def test_questions_about_one_passage_widen_the_interval() -> None:
    items = [Item("a", "q", ("a", "b"), 0, cluster=number // 5) for number in range(50)]
    outcomes = [float(number // 5 % 2) for number in range(50)]
    clustered, plain = share_of(items, outcomes), share_of([replace(item, cluster=None) for item in items], outcomes)
    assert clustered.high - clustered.low > 1.5 * (plain.high - plain.low)


@pytest.mark.parametrize("form", [CLOZE, "pair"])
def test_permuting_the_options_permutes_the_predictions(
    benchmarks: Path, tokenizer: RustBPETokenizer, form: str
) -> None:
    task = TASKS["xcopa_zh" if form == "pair" else "cmmlu"]
    model = random_weights(MiniLLM(replace(DENSE, vocab_size=tokenizer.get_vocab_size())), 5)
    scorer = ModelScorer(model, tokenizer)
    items = list(task.items(benchmarks, "test").items)
    rng = random.Random(0)
    orders = [rng.sample(range(len(item.options)), len(item.options)) for item in items]
    turned = [
        replace(item, options=tuple(item.options[place] for place in order), answer=order.index(item.answer))
        for item, order in zip(items, orders, strict=True)
    ]
    for metric in measures_of(task, CLOZE):
        picks = []
        for asked in (items, turned):
            nats = scorer(prompts_of(task, asked, CLOZE, {}), [""] * len(asked))
            alone = scorer(without_question(asked), [""] * len(asked))
            picks.append(
                [
                    chosen(normalised(metric, item.options, own, without))
                    for item, own, without in zip(asked, nats, alone, strict=True)
                ]
            )
        for order, before, after in zip(orders, *picks, strict=True):
            assert sorted(order[place] for place in after) == before


def test_a_letter_is_chosen_by_its_own_likelihood_wherever_its_option_stands(benchmarks: Path) -> None:
    """A scorer that knows the right text gives all points in any order; one that always likes C
    gives as many points as there are Cs."""
    task = TASKS["cmmlu"]
    items = list(task.items(benchmarks, "test").items)
    rng = random.Random(1)
    for _ in range(3):
        turned = []
        for item in items:
            order = rng.sample(range(4), 4)
            turned.append(replace(item, options=tuple(item.options[n] for n in order), answer=order.index(item.answer)))
        prompts = prompts_of(task, turned, LETTER, {})
        knows = [
            [float(f"{letter}. {item.options[item.answer]}\n" in p.context) for letter in "ABCD"]
            for item, p in zip(turned, prompts, strict=True)
        ]
        right = [outcome(task, scores, item.answer) for scores, item in zip(knows, turned, strict=True)]
        assert sum(right) == len(items)
        likes_c = [outcome(task, [0.0, 0.0, 1.0, 0.0], item.answer) for item in turned]
        assert sum(likes_c) == sum(item.answer == 2 for item in turned)


def test_random_weights_score_within_the_interval_of_chance(tokenizer: RustBPETokenizer, benchmarks: Path) -> None:
    task = TASKS["cmmlu"]
    rng = random.Random(7)
    items = []
    for item in task.items(benchmarks, "test").items * 3:
        order = rng.sample(range(4), 4)
        items.append(replace(item, options=tuple(item.options[n] for n in order), answer=order.index(item.answer)))
    model = random_weights(MiniLLM(replace(DENSE, vocab_size=tokenizer.get_vocab_size())), 5)
    nats = ModelScorer(model, tokenizer)(prompts_of(task, items, LETTER, {}), [""] * len(items))
    metric = share_of(items, [outcome(task, own, item.answer) for own, item in zip(nats, items, strict=True)])
    assert metric.low <= 0.25 <= metric.high
    assert all(math.isfinite(value) for own in nats for value in own)
