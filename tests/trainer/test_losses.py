"""Losses against their plain definitions."""

import math

import pytest
import torch
from torch.testing import assert_close

from trainer.losses import PairLogps, dpo_loss, generalized_jsd, reward_loss


def test_dpo_loss_is_ln2_when_policy_equals_reference() -> None:
    pair = PairLogps(torch.tensor([-3.0, -8.0]), torch.tensor([-4.0, -2.0]))
    assert_close(dpo_loss(pair, pair, beta=0.1), torch.full((2,), math.log(2)))


def test_dpo_loss_falls_as_the_chosen_answer_gains_on_the_reference() -> None:
    reference = PairLogps(torch.tensor([-5.0]), torch.tensor([-5.0]))
    better = PairLogps(torch.tensor([-4.0]), torch.tensor([-6.0]))
    worse = PairLogps(torch.tensor([-6.0]), torch.tensor([-4.0]))
    assert dpo_loss(better, reference, beta=0.5) < math.log(2) < dpo_loss(worse, reference, beta=0.5)
    assert_close(dpo_loss(better, reference, beta=0.5), torch.tensor([math.log(1 + math.exp(-1.0))]))


def test_dpo_loss_refuses_a_beta_that_is_not_positive() -> None:
    pair = PairLogps(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(pair, pair, beta=0.0)


def test_reward_loss_is_ln2_at_zero_and_falls_with_the_difference_alone() -> None:
    chosen, rejected = torch.tensor([0.0, 3.0, 5.0]), torch.tensor([0.0, 1.0, 3.0])
    wanted = torch.tensor([math.log(2), math.log1p(math.exp(-2)), math.log1p(math.exp(-2))])
    assert_close(reward_loss(chosen, rejected, centering=0.0), wanted)


def test_centering_adds_the_square_of_the_sum_of_both_rewards() -> None:
    chosen, rejected = torch.tensor([1.5, -0.5]), torch.tensor([0.5, 0.5])
    added = reward_loss(chosen, rejected, centering=0.01) - reward_loss(chosen, rejected, centering=0.0)
    assert_close(added, torch.tensor([0.01 * 2.0**2, 0.0]))


def test_centering_brings_the_mean_reward_to_zero_and_keeps_the_difference() -> None:
    rewards = torch.tensor([[4.0, 3.0]], requires_grad=True)
    reward_loss(rewards[:, 0], rewards[:, 1], centering=0.01).sum().backward()
    assert rewards.grad is not None
    pull = 2 * 0.01 * 7.0  # the same on both sides; what remains is equal and opposite
    assert_close((rewards.grad - pull).sum(), torch.tensor(0.0))


STUDENT, TEACHER = torch.tensor([0.8, 0.15, 0.05]).log(), torch.tensor([0.2, 0.5, 0.3]).log()


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL(P || Q) of log-probabilities, term by term."""
    return sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))


def test_the_divergence_is_forward_kl_at_beta_0_and_reverse_kl_at_beta_1() -> None:
    assert generalized_jsd(STUDENT, TEACHER, beta=0.0).item() == pytest.approx(kl(TEACHER, STUDENT), rel=1e-5)
    assert generalized_jsd(STUDENT, TEACHER, beta=1.0).item() == pytest.approx(kl(STUDENT, TEACHER), rel=1e-5)


def test_the_divergence_at_one_half_is_jensen_and_shannons() -> None:
    middle = ((STUDENT.exp() + TEACHER.exp()) / 2).log()
    wanted = (kl(TEACHER, middle) + kl(STUDENT, middle)) / 2
    assert generalized_jsd(STUDENT, TEACHER, beta=0.5).item() == pytest.approx(wanted, rel=1e-5)
    assert generalized_jsd(TEACHER, STUDENT, beta=0.5).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("beta", [1e-4, 1 - 1e-4])
def test_the_divergence_near_its_ends_is_a_small_share_of_the_kl_there(beta: float) -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    share = beta if beta < 0.5 else 1 - beta
    wanted = kl(teacher, student) if beta < 0.5 else kl(student, teacher)
    assert generalized_jsd(student, teacher, beta=beta).item() / share == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_of_equal_distributions_is_zero(beta: float) -> None:
    assert generalized_jsd(STUDENT, STUDENT, beta=beta).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_the_divergence_refuses_a_beta_outside_of_0_to_1(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        generalized_jsd(STUDENT, TEACHER, beta=beta)
