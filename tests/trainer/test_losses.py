"""Losses against their plain definitions."""

import math

import pytest
import torch
from torch.testing import assert_close

from trainer.losses import (
    ADVANTAGES,
    MEANS,
    RATIOS,
    PairLogps,
    clipped_share,
    dpo_loss,
    gae,
    generalized_jsd,
    group_advantages,
    kl_to_reference,
    policy_losses,
    reward_loss,
    token_weights,
    value_losses,
    whitened,
)


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


# --- learning from rewards ------------------------------------------------------------------------


REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])


def test_the_advantage_of_a_group_has_mean_0_and_after_division_deviation_1() -> None:
    assert_close(group_advantages(REWARDS, "none"), REWARDS)
    mean = group_advantages(REWARDS, "mean")
    assert_close(mean, torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [-0.25, -0.25, -0.25, 0.75]]))
    deviation = group_advantages(REWARDS, "deviation")
    assert_close(deviation[0], torch.tensor([1.0, -1.0, -1.0, 1.0]))
    assert_close(deviation[2].square().mean(), torch.tensor(1.0))
    assert deviation[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", ["mean", "deviation"])
def test_equal_rewards_have_no_advantage_whatever_their_rounding(kind: str) -> None:
    rewards = torch.tensor([[0.1, 0.3 - 0.2, 0.1]])
    assert group_advantages(rewards, kind).tolist() == [[0.0, 0.0, 0.0]]


def probabilities(logit: float) -> tuple[float, float]:
    """The two probabilities of a vocabulary of two tokens whose logits are `logit` and 0."""
    first = 1 / (1 + math.exp(-logit))
    return first, 1 - first


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize("moved", [0.0, 0.5, -0.5])
def test_the_gradient_of_a_two_token_policy_equals_the_closed_form(
    advantage: str, ratio: str, mean: str, moved: float
) -> None:
    # One logit, two tokens. Two answers to one prompt: token 0 (rewarded), and token 1 twice.
    old_logit, epsilon, max_gen_len = 0.3, 0.2, 5
    logit = torch.tensor(old_logit + moved, requires_grad=True)
    logps = torch.stack([logit, torch.zeros(())]).log_softmax(0)
    old = torch.tensor(probabilities(old_logit)).log()
    tokens, rows, lengths = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), torch.tensor([1, 2])
    advantages = group_advantages(torch.tensor([[1.0, 0.0]]), advantage).flatten()
    weights = token_weights(lengths, mean, answers=2, tokens=3, max_gen_len=max_gen_len)
    losses = policy_losses(logps[tokens], old[tokens], advantages[rows], ratio=ratio, clip_epsilon=epsilon)
    (losses * weights[rows]).sum().backward()

    p = probabilities(old_logit + moved)
    scores = (1 - p[0], -p[0])  # d log p(token) / d logit
    a = {"none": (1.0, 0.0), "mean": (0.5, -0.5), "deviation": (1.0, -1.0)}[advantage]
    w = {"constant": (1 / 10, 1 / 10), "tokens": (1 / 3, 1 / 3), "sequences": (1 / 2, 1 / 4)}[mean]
    expected = 0.0
    for token, row in ((0, 0), (1, 1), (1, 1)):
        r = p[token] / probabilities(old_logit)[token]
        factor = 1.0
        if ratio == "clip":
            stopped = (a[row] > 0 and r > 1 + epsilon) or (a[row] < 0 and r < 1 - epsilon)
            factor = 0.0 if stopped else r
        elif ratio == "cispo":
            factor = min(r, 1 + epsilon)
        expected -= w[row] * factor * a[row] * scores[token]
    assert logit.grad is not None
    assert_close(logit.grad, torch.tensor(expected))


def test_while_the_ratio_is_1_all_ratios_have_the_same_gradient() -> None:
    gradients = []
    for ratio in RATIOS:
        logps = torch.tensor([-0.5, -2.0], requires_grad=True)
        losses = policy_losses(logps, logps.detach(), torch.tensor([0.7, -0.3]), ratio=ratio, clip_epsilon=0.2)
        gradients.append(torch.autograd.grad(losses.sum(), logps)[0])
    assert_close(gradients[0], torch.tensor([-0.7, 0.3]))
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_tokens_beyond_the_clip_are_those_without_gradient() -> None:
    old = torch.zeros(4)
    logps = torch.tensor([0.3, 0.3, -0.3, -0.3], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    policy_losses(logps, old, advantages, ratio="clip", clip_epsilon=0.2).sum().backward()
    assert logps.grad is not None
    assert (logps.grad == 0).tolist() == [True, False, False, True]
    assert clipped_share(logps.detach(), old, advantages, 0.2) == 0.5


def test_the_divergence_is_0_where_both_agree_and_its_mean_is_the_true_one() -> None:
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    assert kl_to_reference(p.log(), p.log()).tolist() == [0.0, 0.0]
    assert_close((p * kl_to_reference(p.log(), q.log())).sum(), (p * (p / q).log()).sum())


def test_the_weights_of_a_step_sum_to_one_for_means_over_tokens_and_sequences() -> None:
    lengths = torch.tensor([3, 1, 4])
    for kind in ("tokens", "sequences"):
        weights = token_weights(lengths, kind, answers=3, tokens=8, max_gen_len=10)
        assert_close((weights * lengths).sum(), torch.tensor(1.0))
    constant = token_weights(lengths, "constant", answers=3, tokens=8, max_gen_len=10)
    assert_close((constant * lengths).sum(), torch.tensor(8 / 30))


# --- PPO ------------------------------------------------------------------------------------------


def test_advantages_over_time_equal_their_definition() -> None:
    gamma, lam = 0.9, 0.8
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 9.0]]), torch.tensor([[0.2, -0.1, 0.5, 9.0]])
    mask = torch.tensor([[True, True, True, False]])  # what lies behind the answer must not matter
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    d = [0 + gamma * -0.1 - 0.2, 0 + gamma * 0.5 + 0.1, 1 - 0.5]
    expected = [d[0] + gamma * lam * d[1] + (gamma * lam) ** 2 * d[2], d[1] + gamma * lam * d[2], d[2], 0.0]
    assert_close(advantages, torch.tensor([expected]))
    assert_close(returns, (advantages + values) * mask)


def test_with_lambda_1_the_returns_are_the_rewards_still_to_come() -> None:
    rewards, mask = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]]), torch.tensor([[True] * 3, [True, True, False]])
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert_close(returns, torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]]))


def test_whitened_numbers_have_mean_0_and_variance_1() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    white = whitened(values, values.mean(), values.var(unbiased=False))
    assert_close(white.mean(), torch.tensor(0.0))
    assert_close(white.square().mean(), torch.tensor(1.0))


def test_a_value_that_has_moved_far_enough_gains_nothing_by_moving_further() -> None:
    values = torch.tensor([0.5, 0.1], requires_grad=True)
    value_losses(values, torch.zeros(2), torch.tensor([1.0, 1.0]), clip_epsilon=0.2).sum().backward()
    assert values.grad is not None
    assert_close(values.grad, torch.tensor([0.0, -0.9]))
