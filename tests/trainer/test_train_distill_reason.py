"""Reasoning as users run it: thoughts are learnt, a killed run ends as an unbroken one, and what
can't be trained is refused in one line."""

from pathlib import Path

import pytest
import torch

from configs.schema import UserError
from dataset.tensors import IGNORE, open_tensors
from dataset.tokenizer import RustBPETokenizer
from tests.tiny_run import TinyRun, chat, killed_in_step, same, write_jsonl
from trainer.objectives import NextToken, WeightedTokens
from trainer.train_distill_reason import mark_ids, objective_of


@pytest.fixture
def ready(tiny: TinyRun) -> TinyRun:
    """Problems with a thought and without, two of them in minimind's shape; old rows to replay."""
    records = []
    for number in range(30):
        question, answer = chat(f"{number}+1+2=?", f"{number + 3}。")
        thought = f"{number}+1={number + 1}。"
        records += [
            {"conversations": [question, {**answer, "reasoning_content": thought}]},
            {"conversations": [question, {**answer, "enable_thinking": False}]},
            {"conversations": chat(f"再算{number}", f"<think>\n{thought}\n</think>\n<answer>\n{number}\n</answer>")},
        ]
    write_jsonl(tiny.data / "reason.jsonl", records)
    return tiny


def reason(run: TinyRun, *words: str) -> int:
    """Learn to reason, with replay of the rows of SFT."""
    return run.train("reason", "--replay_path", str(run.data / "sft_sft_tokens"), *words)


def test_the_targets_are_thoughts_and_answers(ready: TinyRun, tokenizer: RustBPETokenizer) -> None:
    assert reason(ready) == 0
    assert ready.manifest("reason").stage == "reason"
    tensors = open_tensors(ready.data / "reason_sft_tokens")
    labels = tensors["labels"][tensors["labels"] != IGNORE].tolist()
    said = tokenizer.decode(labels)
    assert said.count("<|think_start|>") == said.count("<|think_end|>") == 60  # the empty ones are no targets
    assert "<|think_start|>7+1=8。<|think_end|>10。<|assistant_end|>" in said
    assert "<|think_start|>7+1=8。<|think_end|>7<|assistant_end|>" in said and "<answer>" not in said


@pytest.mark.parametrize("step", [1, 3, 6])  # nothing saved; a step lost; the last
@pytest.mark.parametrize("weight", ["1", "4"])
def test_a_run_killed_in_any_step_ends_bit_for_bit_as_an_unbroken_one(ready: TinyRun, step: int, weight: str) -> None:
    assert reason(ready, "--tag_weight", weight) == 0
    unbroken, losses = ready.weights("reason"), ready.metric("reason")
    ready.path("reason").unlink()
    with killed_in_step(step):
        reason(ready, "--tag_weight", weight)
    assert reason(ready, "--tag_weight", weight) == 0
    assert same(ready.weights("reason"), unbroken) and ready.metric("reason") == losses


def test_splits_of_a_step_agree_where_the_marks_count_more(ready: TinyRun) -> None:
    losses = []
    for size, parts in (("4", "1"), ("1", "4")):
        words = ["--batch_size", size, "--accumulation_steps", parts, "--tag_weight", "5", "--dtype", "float32"]
        assert reason(ready, *words, "--out_dir", str(ready.out / size), "--from_weight", str(ready.path("sft"))) == 0
        losses.append(list(ready.metric("reason").values()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_another_weight_of_the_marks_is_another_run(ready: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert reason(ready) == 0 and reason(ready) == 0
    assert "is already the result of these settings" in capsys.readouterr().err
    assert reason(ready, "--tag_weight", "2") == 0
    assert "tag_weight 1.0 (now 2.0)" in capsys.readouterr().err


def test_the_marks_are_those_of_thought_and_answer(tokenizer: RustBPETokenizer) -> None:
    marks = [tokenizer.id_to_token(mark) for mark in mark_ids(tokenizer)]
    assert marks == ["<|think_start|>", "<|think_end|>", "<|assistant_end|>"]
    objective = objective_of(tokenizer, tokenizer.get_vocab_size() + 3, 4.0)
    assert isinstance(objective, WeightedTokens) and type(objective_of(tokenizer, 6400, 1.0)) is NextToken
    assert objective.weights.unique().tolist() == [1.0, 4.0]
    assert torch.nonzero(objective.weights == 4.0).flatten().tolist() == sorted(mark_ids(tokenizer))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tag_weight", "0"], r"tag_weight = 0\.0: must be above 0"),
        (["--tag_weight", "nan"], r"tag_weight = nan: must be above 0"),
        (["--replay_share", "1"], r"replay_share = 1\.0: must be in \[0, 1\)"),
        (["--replay_path", "nowhere"], r"nowhere: no such folder"),
        (["--num_hidden_layers", "3"], r"--num_hidden_layers 3: .* was made with 1"),
    ],
)
def test_what_can_not_be_trained_is_refused_in_one_line(ready: TinyRun, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        reason(ready, *words)
    assert "\n" not in str(error.value)


def test_an_empty_data_set_is_refused_in_one_line(ready: TinyRun, tmp_path: Path) -> None:
    (empty := tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: no record to train on"):
        reason(ready, "--data_path", str(empty))
