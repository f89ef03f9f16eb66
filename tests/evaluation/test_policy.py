"""How a policy's answers to prompts are scored, and the evaluation after GRPO and PPO."""

import json
from pathlib import Path

import pytest

from dataset.tokenizer import RustBPETokenizer
from evaluation import policy
from evaluation.policy import PromptRule, prompt_metrics
from evaluation.rules import rule_of
from evaluation.stage import Evaluation
from inference.engine import Answer
from model.weights import load_model
from scripts import evaluate_stage
from tests.tiny_run import TinyRun, sum_record
from tests.trainer.tiny_policy import WEIGHTS, TinyPolicy

RECORDS = [sum_record(3, 5, cluster="3 5"), sum_record(5, 3, cluster="3 5"), sum_record(7, 1, cluster="1 7")]


def test_an_answer_is_right_if_it_ended_and_keeps_to_the_rule(
    trained: TinyRun, tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = [Answer("3+5=8。", True, 7), Answer("5+3=8。", False, 7), Answer("7+1=9。", True, 7)]
    sampled = [
        [Answer("8", True, 2), Answer("9", True, 2)],
        [Answer("8", False, 2), Answer("啊", True, 2)],
        [Answer("8", True, 2)] * 2,
    ]
    calls = iter([[[answer] for answer in greedy], sampled])
    monkeypatch.setattr(policy, "_answers", lambda *_: next(calls))
    model, _ = load_model(trained.path("sft"))
    evaluation = Evaluation(model, tokenizer, ("", ""), {"batch_size": 4, "max_new_tokens": 8}, 32)
    found = prompt_metrics(evaluation, RECORDS, max_new_tokens=8, temperature=1.0, seed=1)
    assert found["accuracy_prompts"].value == pytest.approx(1 / 3)
    assert found["accuracy_sampled"].value == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert found["well_formed_prompts"].value == 1.0
    assert found["ended_prompts"].value == pytest.approx(2 / 3)
    assert (found["accuracy_prompts"].n, found["accuracy_prompts"].clusters) == (3, 2)
    assert [verdict.broken for verdict in evaluation.verdicts] == ["", "cut off", "another number"]


def test_samples_of_a_prompt_differ_and_are_the_same_each_time(trained: TinyRun, tokenizer: RustBPETokenizer) -> None:
    model, _ = load_model(trained.path("sft"))
    found = []
    for _ in range(2):
        evaluation = Evaluation(model, tokenizer, ("", ""), {"batch_size": 4, "max_new_tokens": 8}, 32)
        found.append(prompt_metrics(evaluation, RECORDS, max_new_tokens=4, temperature=1.0, seed=1))
    assert found[0] == found[1]


def test_the_rule_of_a_prompt_is_asked_for_baselines() -> None:
    rule = PromptRule(rule_of(RECORDS[0]))
    assert rule.has_more and not rule.keys


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_weights_are_judged_on_prompts_and_on_the_chats_of_the_mix(tiny: TinyRun, tmp_path: Path, stage: str) -> None:
    run = TinyPolicy(tiny)
    assert run.train(stage, "--max_steps=2") == 0
    results = tmp_path / "results.jsonl"
    words = ["--stage", stage, "--checkpoint", str(run.out / WEIGHTS[stage]), "--results_file", str(results)]
    words += [
        "--sft_data_path",
        str(tiny.data / "sft_heldout.jsonl"),
        "--first_minutes",
        "none",
        "--danger_prompts",
        "none",
    ]
    assert evaluate_stage.main([*words, "--max_samples", "4"]) == 0
    (line,) = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()]
    assert line["stage"] == stage and line["data_path"].endswith("prompts_heldout.jsonl") and line["split"] == "test"
    metrics = line["metrics"]
    assert {"accuracy_prompts", "accuracy_sampled", "well_formed_prompts", "ended_prompts", "loss", "ended"} <= set(
        metrics
    )
    assert set(metrics["accuracy_prompts"]["baselines"]) >= {"constant", "nearest"}
