"""Pairs: which answer is preferred, by kind, beside the reference and the baselines."""

from typing import Any

import pytest
import torch

from dataset.tokenizer import RustBPETokenizer
from evaluation import preference
from evaluation.baselines import TrainingExamples
from evaluation.preference import Pair, PairScore, pair_of, pair_rows, preference_metrics, score_pairs
from evaluation.stage import Evaluation
from tests.evaluation.test_likelihood import small_model
from tests.tiny_run import chat, lively, pair_record

NONE = TrainingExamples(reason="gone")
NAMES = ("MiniLLM", "MiniLLM 团队")


def pairs(count: int, kinds: str = "") -> list[Pair]:
    """Pairs of clusters of their own. `kinds`: a letter for each, w wrong, r rude."""
    names = {"w": "wrong", "r": "rude"}
    return [
        Pair(chat(f"{n}", "好"), chat(f"{n}", "坏"), names.get(kinds[n : n + 1], ""), f"cluster {n}")
        for n in range(count)
    ]


def test_a_tie_counts_as_wrong() -> None:
    tie = [PairScore(-5.0, -5.0, 3, 3)]
    for name, metric in preference_metrics(pairs(1), tie, tie, 0.1, NONE).items():
        assert metric.value == 0.0, name
        assert metric.n == 1


def test_preference_is_measured_with_and_without_the_reference_and_by_length() -> None:
    policy = [PairScore(-4.0, -6.0, 2, 4), PairScore(-9.0, -6.0, 6, 3), PairScore(-5.0, -4.0, 5, 4)]
    reference = [PairScore(-3.0, -6.0, 2, 4), PairScore(-12.0, -6.0, 6, 3), PairScore(-6.0, -4.0, 5, 4)]
    metrics = preference_metrics(pairs(3), policy, reference, 0.5, NONE)
    third = pytest.approx(1 / 3)
    assert {name: metric.value for name, metric in metrics.items()} == {
        "preference_accuracy": pytest.approx(2 / 3),  # margins -1, 3, 1
        "preference_accuracy_no_reference": third,
        "preference_accuracy_length_normalized": third,  # -2 against -1.5, -1.5 against -2, -1 against -1
        "preference_accuracy_no_reference_before": third,
        "preference_accuracy_length_normalized_before": 0.0,  # -1.5 against -1.5, -2 against -2, -1.2 against -1
        "reward_margin": pytest.approx(0.5),
    }
    for name, metric in metrics.items():
        if name == "reward_margin":
            assert metric.baselines is None
        else:
            assert metric.baselines == {"length": pytest.approx(2 / 3), "nearest": None, "reason": "gone"}
            assert (metric.n, metric.clusters) == (3, 3)


def test_each_kind_and_the_hard_ones_together_stand_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = PairScore(-1.0, -2.0, 1, 1), PairScore(-2.0, -1.0, 1, 1)
    policy, reference = [good, good, bad, good], [good, bad, bad, bad]
    metrics = preference_metrics(pairs(4, "wwr"), policy, reference, 1.0, NONE)
    found = {name: (metric.value, metric.n) for name, metric in metrics.items()}
    assert found["preference_accuracy_wrong"] == (0.5, 2)
    assert found["preference_accuracy_length_normalized_wrong"] == (1.0, 2)
    assert found["preference_accuracy_length_normalized_wrong_before"] == (0.5, 2)
    assert found["preference_accuracy_rude"] == (0.0, 1)
    assert "preference_accuracy_hard" not in found
    monkeypatch.setattr(preference, "HARD_KINDS", ("wrong", "rude"))
    metrics = preference_metrics(pairs(4, "wwr"), policy, reference, 1.0, NONE)
    hard = metrics["preference_accuracy_hard"]
    assert (hard.value, hard.n) == (pytest.approx(1 / 3), 3)
    assert metrics["preference_accuracy_length_normalized_hard_before"].value == pytest.approx(1 / 3)


def test_copies_of_a_prompt_count_once() -> None:
    good = [PairScore(-1.0, -2.0, 1, 1)] * 30
    record = pair_record(1, 2, kind="wrong", cluster="pair 1,2")
    assert pair_of(record).cluster == "cluster pair 1,2"
    assert pair_of(pair_record(1, 2)).cluster == "1+2等于多少"
    metric = preference_metrics([pair_of(record)] * 30, good, good, 1.0, NONE)["preference_accuracy_no_reference"]
    assert (metric.n, metric.clusters) == (30, 1)
    assert metric.low < 0.3


def test_only_the_last_answer_of_a_pair_is_scored(tokenizer: RustBPETokenizer) -> None:
    model = lively(small_model())
    pair = Pair(
        [*chat("你好", "你好！"), *chat("二加二？", "四。")], [*chat("你好", "你好！"), *chat("二加二？", "五。")]
    )
    rows = pair_rows(tokenizer, pair, 64)
    assert rows is not None
    (found,) = score_pairs(model, [rows], label="")
    for messages, logp, count in (
        (pair.chosen, found.chosen, found.chosen_tokens),
        (pair.rejected, found.rejected, found.rejected_tokens),
    ):
        start = len(tokenizer.render_for_completion(messages[:-1]))
        ids = torch.tensor(tokenizer.render_conversation(messages)[0])
        with torch.no_grad():
            logps = model(ids[None])[0].log_softmax(dim=-1)
        assert logp == pytest.approx(sum(float(logps[p - 1, ids[p]]) for p in range(start, len(ids))), rel=1e-4)
        assert count == len(ids) - start


def test_pairs_that_training_leaves_out_are_left_out_and_counted(tokenizer: RustBPETokenizer) -> None:
    """A prompt fills the row, or a beginning that both answers share."""
    model = lively(small_model())
    long_prompt = {"chosen": chat("很长的问题" * 30, "好"), "rejected": chat("很长的问题" * 30, "坏")}
    same_start = {"chosen": chat("问", "话" * 90 + "好"), "rejected": chat("问", "话" * 90 + "坏")}
    records: list[dict[str, Any]] = [pair_record(n, 3) for n in range(4)]
    settings = {"batch_size": 4, "max_new_tokens": 4}
    evaluation = Evaluation(model, tokenizer, NAMES, settings, 32)
    metrics = evaluation.of_pairs([*records, long_prompt, same_start], model, beta=0.1)
    assert metrics["preference_accuracy"].n == 4
    assert evaluation.notes == [
        "2 of 6 pairs left out: no answer, or no difference, within 32 tokens (training leaves them out too) "
        "| 有 2 对太长或没有区别，不计入评测"
    ]
    assert evaluation.of_pairs([long_prompt], model, beta=0.1) == {}
    assert evaluation.notes[-1].startswith("1 of 1 pairs left out")


def test_a_policy_equal_to_its_reference_prefers_nothing(tokenizer: RustBPETokenizer) -> None:
    model = lively(small_model())
    evaluation = Evaluation(model, tokenizer, NAMES, {"batch_size": 4, "max_new_tokens": 4}, 64)
    metrics = evaluation.of_pairs([pair_record(n, 3) for n in range(6)], model, beta=0.1)
    assert metrics["preference_accuracy"].value == 0.0
    assert metrics["reward_margin"].value == 0.0


def test_models_that_follow_the_rules_come_out_at_their_baselines() -> None:
    """A model whose log-probability is the length prefers the shorter answer of each pair."""
    examples = TrainingExamples(chosen=["请多喝水。", "北京。"], rejected=["关我什么事。", "我不想说。"])
    texts = [
        ("请喝水。", "关我啥事。"),
        ("我不想说呀。", "北京呀。"),
        ("北京吧。", "我不想说嘛。"),
        ("是东京。", "我不想说。"),
    ]
    held_out = [Pair(chat("问", one), chat("问", other), "", n) for n, (one, other) in enumerate(texts)]
    by_length = [PairScore(-len(one), -len(other), len(one), len(other)) for one, other in texts]
    baselines = preference_metrics(held_out, by_length, by_length, 1.0, examples)["preference_accuracy"].baselines
    assert baselines == {"length": 0.75, "nearest": 0.75}
    metrics = preference_metrics(held_out, by_length, by_length, 1.0, examples)
    assert metrics["preference_accuracy_no_reference"].value == baselines["length"]  # prefers the shorter
