"""The baseline arm: its schedule, its order, its budget, and a run from start to end."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.training import baseline
from benchmarks.training.baseline import SAVE_SECONDS, Clock, qwen3_settings, rate_share, row_numbers, shape_of
from benchmarks.training.corpus import prepare
from configs.schema import ModelConfig, UserError
from model.model_minillm import MiniLLM
from tests.tiny_run import shipped_tokenizer, write_jsonl


def test_the_rate_climbs_then_falls_to_nothing_at_the_end_of_the_budget() -> None:
    shares = [rate_share(number / 100) for number in range(101)]
    assert shares[0] == shares[100] == 0 and max(shares) == shares[5] == 1
    assert shares[:6] == sorted(shares[:6]) and shares[5:] == sorted(shares[5:], reverse=True)
    assert shares[50] == pytest.approx(50 / 95)


def test_each_epoch_takes_each_row_once_and_no_row_is_lost_between_two() -> None:
    rows = np.concatenate(list(islice(row_numbers(10, 4, seed=0), 5)))  # 20 places: two epochs
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    again = np.concatenate(list(islice(row_numbers(10, 4, seed=0), 5)))
    other = np.concatenate(list(islice(row_numbers(10, 4, seed=1), 5)))
    assert (rows == again).all() and (rows != other).any()


def test_a_budget_in_steps_ends_after_them_with_its_rate_near_nothing() -> None:
    clock = Clock(4, 0.0, 0.0)
    assert [clock.next_step() for _ in range(5)] == [0.125, 0.375, 0.625, 0.875, None]


def test_a_budget_in_seconds_counts_from_the_start_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(baseline.time, "time", lambda: now[0])
    clock = Clock(0, seconds=20 + SAVE_SECONDS, started=90.0)  # 10 s are left
    progress = []
    while (found := clock.next_step()) is not None:
        progress.append(found)
        now[0] += 3.0
    assert now[0] == 109.0  # a fourth step would have ended too late
    assert progress == [pytest.approx(part) for part in (0.0, 0.45, 0.75)]


def test_a_budget_that_is_over_at_once_still_takes_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline.time, "time", lambda: 100.0)
    clock = Clock(0, seconds=1.0, started=50.0)
    assert clock.next_step() is not None and clock.next_step() is None


def test_the_baseline_has_the_shape_of_ours() -> None:
    transformers = pytest.importorskip("transformers")
    shape = shape_of("64x2", 97)
    theirs = transformers.Qwen3Config(**qwen3_settings(shape))
    model = baseline.build_model(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == MiniLLM(shape).num_parameters()
    assert theirs.head_dim == shape.head_dim and theirs.tie_word_embeddings
    assert model.config._attn_implementation == "sdpa"
    ids = torch.randint(0, 97, (1, 9))
    ours = MiniLLM(shape)
    ours.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"})
    torch.testing.assert_close(model.eval()(ids).logits, ours.eval()(ids), atol=1e-4, rtol=1e-4)


def test_a_mixture_of_experts_has_no_baseline() -> None:
    with pytest.raises(UserError, match="--arms minillm"):
        qwen3_settings(ModelConfig(use_moe=True).resolve())


@pytest.mark.parametrize(("log_steps", "noted"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3, 4]), (9, [4])])
def test_a_run_writes_weights_and_counts_its_real_tokens_to_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_steps: int, noted: list[int]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setitem(baseline.LOG_STEPS, "cpu", log_steps)
    tokenizer = shipped_tokenizer()
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": f"第{n}天下雨了。"} for n in range(30)])
    corpus = prepare(tmp_path / "corpus", text, tokenizer, row_tokens=32)
    rows = baseline.CutDocuments(corpus.folder, tokenizer.end_of_text_id)
    weights, metrics = tmp_path / "weights.pt", tmp_path / "metrics.jsonl"
    words = ["--corpus", str(corpus.folder), "--model", "32x1", "--max_steps", "4", "--batch_size", "2"]
    code = baseline.main([*words, "--device", "cpu", "--metrics", str(metrics), "--out", str(weights)])
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seen = np.concatenate(list(islice(row_numbers(len(rows), 2, seed=0), 4)))
    assert code == 0 and [line["step"] for line in lines] == noted
    assert lines[-1]["targets"] == sum(np.diff(rows.offsets)[seen] - 1)
    baseline.build_model(shape_of("32x1", tokenizer.get_vocab_size())).load_state_dict(
        torch.load(weights, weights_only=True)
    )


@pytest.mark.parametrize("words", [[], ["--seconds", "5", "--max_steps", "5"]])
def test_a_budget_is_either_seconds_or_steps(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match="--seconds"):
        baseline.main(["--corpus", str(tmp_path), "--model", "32x1", "--out", str(tmp_path / "weights.pt"), *words])
