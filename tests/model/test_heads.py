"""The reward model: where its head reads, how it scores, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from configs.schema import UserError
from model.heads import RewardModel, attach_reward_head, is_proven, read_reward_model, rewards_of
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import REWARD_HEAD, load_model, save_weights
from tests.tiny_run import DENSE, lively

MANIFEST = WeightsManifest(stage="reward", tokenizer_sha256="77e0")


def reward_network() -> MiniLLM:
    """A small network with a head that is not 0."""
    torch.manual_seed(3)
    return lively(attach_reward_head(MiniLLM(DENSE)))


def test_a_new_head_gives_the_reward_0_and_leaves_the_network_as_it_is() -> None:
    model = lively(MiniLLM(DENSE))
    ids = torch.arange(10)[None]
    before = model(ids)
    assert torch.equal(attach_reward_head(model)(ids), before)
    assert torch.equal(rewards_of(model, ids, torch.tensor([9])), torch.zeros(1))


def test_the_reward_is_read_at_the_end_token_alone() -> None:
    model, ids = reward_network(), torch.arange(1, 9)[None]
    hidden, _ = model.hidden_states(ids)
    for place in (0, 3, 7):
        wanted = hidden[0, place] @ model.reward_head.weight[0]
        assert_close(rewards_of(model, ids, torch.tensor([place]))[0], wanted)
    # What stands behind the end does not count; the end token itself does.
    ends, behind, at_end = torch.tensor([4]), ids.clone(), ids.clone()
    behind[0, 5:], at_end[0, 4] = 90, 90
    assert torch.equal(rewards_of(model, behind, ends), rewards_of(model, ids, ends))
    assert not torch.equal(rewards_of(model, at_end, ends), rewards_of(model, ids, ends))


def test_scores_are_those_of_each_sequence_alone_in_the_given_order() -> None:
    reward = RewardModel(reward_network(), MANIFEST)
    sequences = [[1, 2, 3, 4, 5], [7], [9, 8, 7], [1, 2, 3, 4, 6]] * 40
    scores = reward.score(sequences)
    alone = torch.cat([reward.score([one]) for one in sequences[:4]])
    assert scores.shape == (160,) and not scores.requires_grad
    assert_close(scores, alone.repeat(40), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="without tokens"):
        reward.score([[1], []])


def test_a_saved_reward_model_scores_the_same(tmp_path: Path) -> None:
    model = reward_network()
    save_weights(tmp_path / "reward_32.pth", model, MANIFEST)
    read = read_reward_model(tmp_path / "reward_32.pth")
    assert torch.equal(read.score([[1, 2, 3]]), RewardModel(model, MANIFEST).score([[1, 2, 3]]))
    assert read.tokenizer_sha256 == "77e0"


def test_what_has_no_head_is_no_reward_model_and_a_reward_model_does_not_talk(tmp_path: Path) -> None:
    model, path = lively(MiniLLM(DENSE)), tmp_path / "full_sft_32.pth"
    save_weights(path, model, replace(MANIFEST, stage="sft"))
    with pytest.raises(UserError, match="weights of stage sft, no reward model"):
        read_reward_model(path)
    save_weights(path, attach_reward_head(model), MANIFEST)
    with pytest.raises(UserError, match="a reward model, which scores answers and writes none"):
        load_model(path)


def test_a_damaged_head_is_refused(tmp_path: Path) -> None:
    model, path = reward_network(), tmp_path / "reward_32.pth"
    with torch.no_grad():
        model.reward_head.weight[0, 0] = torch.nan
    save_weights(path, model, MANIFEST)
    with pytest.raises(UserError, match=f"the first is {REWARD_HEAD}"):
        read_reward_model(path)


@pytest.mark.parametrize(
    ("ci95", "proven"), [([0.51, 0.6], True), ([0.5, 0.6], False), ([0.45, 0.6], False), (None, False)]
)
def test_a_reward_model_is_proven_where_the_interval_lies_above_one_half(
    ci95: list[float] | None, proven: bool
) -> None:
    accuracy = {"value": 0.55, "n": 290, "ci95": ci95} if ci95 else {}
    assert is_proven(accuracy) is proven
    reward = RewardModel(reward_network(), replace(MANIFEST, reward_accuracy=accuracy))
    assert reward.proven is proven
    assert ("290 held-out pairs" in reward.evidence) == bool(accuracy)
