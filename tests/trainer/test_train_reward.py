"""A reward model from end to end."""

from itertools import pairwise

import pytest
import torch

from configs.schema import UserError
from dataset.lm_dataset import DPODataset
from model.heads import read_reward_model
from model.weights import REWARD_HEAD, load_model
from tests.tiny_run import TinyRun, chat, killed_in_step, same, write_jsonl
from trainer.reward_accuracy import matched_accuracy


def test_a_reward_model_prefers_the_chosen_answers_it_was_trained_on(tiny: TinyRun) -> None:
    assert tiny.train("reward", "--epochs=4", "--max_steps=40", "--learning_rate=0.01", "--save_interval=50") == 0
    reward = read_reward_model(tiny.path("reward"))
    pairs = DPODataset(tiny.data / "dpo_dpo_tokens")
    sides = []
    for side in ("chosen", "rejected"):
        ids, offsets = pairs.arrays[f"{side}_input_ids"].tolist(), pairs.arrays[f"{side}_offsets"].tolist()
        sides.append(reward.score([ids[start:end] for start, end in pairwise(offsets)]))
    assert (sides[0] > sides[1]).float().mean() > 0.9
    assert tiny.metric("reward")[40] < 0.3


def test_without_pairs_of_like_length_a_reward_model_is_unproven(tiny: TinyRun) -> None:
    # Of these pairs all rejected answers are longer, so there is nothing to match.
    assert tiny.train("reward") == 0
    reward = read_reward_model(tiny.path("reward"))
    assert reward.manifest.reward_accuracy == {} and not reward.proven
    assert reward.evidence == "no accuracy on held-out pairs is known"


def test_a_killed_run_resumes_to_the_same_weights(tiny: TinyRun) -> None:
    assert tiny.train("reward") == 0
    unbroken = read_reward_model(tiny.path("reward")).model.state_dict()
    assert unbroken[REWARD_HEAD].abs().sum() > 0
    tiny.path("reward").unlink()
    with killed_in_step(5):
        tiny.train("reward")
    assert tiny.train("reward") == 0
    assert same(read_reward_model(tiny.path("reward")).model.state_dict(), unbroken)


def test_a_rerun_trains_nothing_and_the_weights_do_not_talk(tiny: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.train("reward") == 0
    assert tiny.train("reward") == 0
    assert "is already the result of these settings" in capsys.readouterr().err
    with pytest.raises(UserError, match="a reward model, which scores answers and writes none"):
        load_model(tiny.path("reward"))
    with pytest.raises(UserError, match="a reward model"):
        tiny.train("sft", "--from_weight", str(tiny.path("reward")))


def test_a_reward_model_needs_weights_to_start_from(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match="needs weights that know the language"):
        tiny.train("reward", "--from_weight", "none")


def both_directions(number: int, **fields: str) -> dict[str, object]:
    """A pair whose chosen answer is long or short by turns, and always holds the sum."""
    question, long = f"{number}+1等于多少？", "，我算过了" if number % 2 else ""
    right, wrong = f"等于{number + 1}{long}。", f"不知道{'' if long else '，我没有算过'}。"
    return {"chosen": chat(question, right), "rejected": chat(question, wrong), **fields}


def test_the_manifest_keeps_how_often_it_is_right_on_validation_pairs_of_like_length(tiny: TinyRun) -> None:
    path = write_jsonl(tiny.data / "mine.jsonl", [both_directions(n) for n in range(80)])
    write_jsonl(tiny.data / "mine_heldout.jsonl", [both_directions(n, split="validation") for n in range(100, 160)])
    words = ["--data_path", str(path), "--epochs=2", "--max_steps=40", "--learning_rate=0.01", "--save_interval=50"]
    assert tiny.train("reward", *words) == 0
    reward = read_reward_model(tiny.path("reward"))
    accuracy = reward.manifest.reward_accuracy
    measured = matched_accuracy(reward.model, DPODataset(tiny.data / "mine_dpo_tokens" / "validation"))
    assert measured is not None and accuracy == measured.as_json()
    assert accuracy["n"] == accuracy["clusters"] == 60 and accuracy["value"] > 0.9
    assert reward.proven and "on 60 held-out pairs" in reward.evidence
    with torch.no_grad():
        reward.model.reward_head.weight.zero_()
    nothing = matched_accuracy(reward.model, DPODataset(tiny.data / "mine_dpo_tokens" / "validation"))
    assert nothing is not None and nothing.value == 0  # a tie counts as wrong
