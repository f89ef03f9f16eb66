"""GRPO: the ratio of the first update, and that a step can be divided in any way."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.tiny_run import TinyRun
from tests.trainer.tiny_policy import TinyPolicy
from trainer import train_grpo
from trainer.losses import ADVANTAGES, MEANS, RATIOS, policy_losses
from trainer.policy_loop import PolicyRun


@pytest.fixture
def policy(tiny: TinyRun) -> TinyPolicy:
    return TinyPolicy(tiny)


def test_the_ratio_is_exactly_1_in_the_first_update_and_not_in_the_second(
    policy: TinyPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[list[float]] = [[]]  # of each update
    update = PolicyRun.update

    def counted(self: PolicyRun, *arguments: Any, **named: Any) -> float | None:
        moved.append([])
        return update(self, *arguments, **named)

    monkeypatch.setattr(PolicyRun, "update", counted)

    def watched(logps: Tensor, old_logps: Tensor, advantages: Tensor, **switches: Any) -> Tensor:
        moved[-1].append(float((logps - old_logps).detach().abs().max()))
        return policy_losses(logps, old_logps, advantages, **switches)

    monkeypatch.setattr(train_grpo, "policy_losses", watched)
    assert policy.train("grpo", "--max_steps=1", "--num_minibatches=2", "--batch_size=1", "--accumulation_steps=4") == 0
    assert max(moved[0]) == 0.0 and min(moved[1]) > 0.0


def test_a_step_can_be_divided_into_micro_batches_in_any_way(policy: TinyPolicy) -> None:
    found = []
    for size, parts in ((1, 4), (4, 1)):
        words = [f"--batch_size={size}", f"--accumulation_steps={parts}", "--max_steps=1", "--loss_mean=sequences"]
        assert policy.train("grpo", *words, "--from_resume=0") == 0
        found.append(policy.lines("grpo")[0])
    assert_close(found[0]["grad_norm"], found[1]["grad_norm"], rtol=1e-4, atol=0)
    assert found[0]["reward"] == found[1]["reward"]


@pytest.mark.parametrize(
    "switch",
    [
        *(f"--advantage={kind}" for kind in ADVANTAGES),
        *(f"--ratio={kind}" for kind in RATIOS),
        *(f"--loss_mean={kind}" for kind in MEANS),
    ],
)
def test_each_switch_trains(policy: TinyPolicy, switch: str) -> None:
    assert policy.train("grpo", "--max_steps=2", switch) == 0
    assert [line["updates"] for line in policy.lines("grpo") if "updates" in line] == [1.0, 1.0]


def test_the_divergence_from_the_start_holds_the_policy_back(policy: TinyPolicy) -> None:
    words = ["--max_steps=8", "--epochs=20", "--eval_interval=8", "--no-rollback"]
    moved = []
    for beta in ("0.001", "10"):
        assert policy.train("grpo", *words, f"--beta={beta}") == 0
        moved.append([line["kl"] for line in policy.lines("grpo") if "kl" in line][-1])
    assert moved[1] < moved[0]
    assert torch.isfinite(torch.tensor(moved)).all()
