"""PPO, and the details of its implementation on which its results are known to depend
(arXiv:2403.17031 lists them)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from configs.schema import ModelConfig
from configs.stage_settings import PPOConfig
from model.model_minillm import MiniLLM
from tests.tiny_run import TinyRun, lively
from tests.trainer.tiny_policy import TinyPolicy
from trainer import train_ppo
from trainer.losses import policy_losses
from trainer.rollout import Rollout
from trainer.runtime import Runtime
from trainer.train_ppo import estimate, places_in
from trainer.value_model import ValueModel

CPU = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture
def policy(tiny: TinyRun) -> TinyPolicy:
    return TinyPolicy(tiny)


def test_the_ratio_is_exactly_1_in_the_first_update(policy: TinyPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[float] = []

    def watched(logps: Tensor, old_logps: Tensor, advantages: Tensor, **switches: Any) -> Tensor:
        moved.append(float((logps - old_logps).detach().abs().max()))
        return policy_losses(logps, old_logps, advantages, **switches)

    monkeypatch.setattr(train_ppo, "policy_losses", watched)
    # One part of the step is one micro-batch, in the same shape before and within the updates.
    words = [
        "--max_steps=1",
        "--batch_size=2",
        "--accumulation_steps=2",
        "--num_minibatches=2",
        "--value_warmup_steps=0",
    ]
    assert policy.train("ppo", *words) == 0
    assert moved[0] == 0.0 and moved[-1] > 0.0


class Constant(ValueModel):
    """A value model that says the same of each token."""

    def __init__(self, policy: MiniLLM, value: float) -> None:
        super().__init__(policy)
        self.value = value

    def values(self, rollout: Rollout) -> Tensor:
        return torch.full((int(rollout.lengths.sum()),), self.value)


def fake_run(model: MiniLLM, **settings: Any) -> Any:
    """As much of a PolicyRun as estimates need."""
    return SimpleNamespace(
        config=PPOConfig(**settings),
        model=model,
        runtime=CPU,
        reference=None,
        micro_batches=lambda rows: rows.split(2),
        logps=lambda model, part: torch.zeros(int(part.lengths.sum())),
        check_agreement=lambda logps, part: None,
    )


def rollout(lengths: list[int]) -> Rollout:
    """Answers of these lengths to prompts of one token."""
    width = max(lengths) + 1
    labels = torch.full((len(lengths), width), -100)
    for row, length in enumerate(lengths):
        labels[row, :length] = 1
    return Rollout(torch.ones_like(labels), labels, torch.zeros(len(lengths), max(lengths)), torch.tensor(lengths))


@pytest.fixture(scope="module")
def model() -> MiniLLM:
    shape = ModelConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )
    return lively(MiniLLM(shape))


def test_the_reward_comes_with_the_last_token_and_what_is_behind_it_is_0(model: MiniLLM) -> None:
    answers: Any = SimpleNamespace(rollout=rollout([1, 3, 2]), rewards=torch.tensor([[1.0, 0.5, 0.0]]))
    found = estimate(fake_run(model, gae_lambda=1.0), Constant(model, 0.25), answers)
    assert_close(found.returns, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]))
    assert_close(found.values, torch.tensor([[0.25, 0.0, 0.0], [0.25] * 3, [0.25, 0.25, 0.0]]))


def test_advantages_are_whitened_over_the_tokens_of_answers_alone(model: MiniLLM) -> None:
    answers: Any = SimpleNamespace(rollout=rollout([1, 3, 2]), rewards=torch.tensor([[1.0, 0.5, 0.0]]))
    found = estimate(fake_run(model), Constant(model, 0.25), answers)
    tokens = found.advantages[answers.rollout.mask]
    assert_close(tokens.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(tokens.square().mean(), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert found.advantages[~answers.rollout.mask].abs().max() == 0


def test_places_within_answers() -> None:
    assert places_in(rollout([1, 3, 2]).mask).tolist() == [0, 0, 1, 2, 0, 1]


def test_the_policy_stays_while_the_value_model_warms_up(policy: TinyPolicy) -> None:
    assert policy.train("ppo", "--max_steps=3", "--value_warmup_steps=2", "--eval_interval=3", "--no-rollback") == 0
    steps = [line for line in policy.lines("ppo") if "value_loss" in line]
    assert [line["updates"] for line in steps] == [0.0, 0.0, 4.0]
    assert all(line["value_grad_norm"] > 0 for line in steps)


def test_the_value_model_learns_what_reward_to_expect(policy: TinyPolicy) -> None:
    words = [
        "--max_steps=15",
        "--epochs=20",
        "--value_warmup_steps=15",
        "--value_learning_rate=3e-2",
        "--eval_interval=15",
    ]
    assert policy.train("ppo", *words, f"--reward={policy.rewards}:equal") == 0
    losses = [line["value_loss"] for line in policy.lines("ppo") if "value_loss" in line]
    assert losses[0] > 0.1 and losses[-1] < 0.1 * losses[0]
