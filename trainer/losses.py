"""Losses as pure functions on tensors, each with its source.

Shapes: B pairs, N tokens, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of whole answers in nats: the sum over their tokens, each (B,)."""

    chosen: Tensor
    rejected: Tensor


def dpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """DPO loss of each pair (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    Args: policy, reference: log-probability of each whole answer in nats, chosen (B,) and rejected
    (B,). beta: > 0.
    Returns: (B,) in nats; ln 2 where the two models agree.
    Raises: ValueError if beta <= 0.
    """
    if beta <= 0:
        raise ValueError(f"beta = {beta}: must be above 0")
    # What the model has gained on the reference for the chosen answer, less the same for the
    # rejected one. The loss falls as the margin grows.
    margin = (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)
    return -F.logsigmoid(beta * margin)


def reward_loss(chosen: Tensor, rejected: Tensor, *, centering: float) -> Tensor:
    """Loss of a reward model on each pair: Bradley and Terry's, and a pull of the rewards to 0.

    -log sigmoid(chosen - rejected) (Ouyang et al. 2022, arXiv:2203.02155, eq. 1) depends on the
    difference alone, so that rewards could drift anywhere. centering * (chosen + rejected)^2 keeps
    their mean at 0 (Eisenstein et al. 2023, arXiv:2312.09244, section 2).
    Args: chosen, rejected: rewards of the two answers, (B,). centering: 0 or more.
    Returns: (B,); ln 2 where both rewards are 0.
    """
    return -F.logsigmoid(chosen - rejected) + centering * (chosen + rejected).square()


def generalized_jsd(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of two distributions (Agarwal et al. 2024,
    arXiv:2306.13649, section 2).

    With M = beta T + (1 - beta) S it is beta KL(T || M) + (1 - beta) KL(S || M). Divided by beta,
    this becomes the forward KL(T || S) as beta approaches 0, and divided by 1 - beta the reverse
    KL(S || T) as beta approaches 1. So beta 0 and 1 stand for these two, as in that paper. Between
    them it is never above ln 2: a small beta has small gradients.
    Args: student, teacher: log-probabilities (..., V). beta: from 0 to 1.
    Returns: (...) in nats; 0 where both are equal. Raises: ValueError for another beta.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta = {beta}: must be from 0 to 1")
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(P || Q) of log-probabilities (..., V): (...) in nats."""
    return (p.exp() * (p - q)).sum(dim=-1)


# --- learning from rewards ------------------------------------------------------------------------

# Shapes from here on: P prompts, G answers to each, B = P G answers, L tokens of the longest one,
# N tokens of all answers together, the end tokens among them.

ADVANTAGES = ("none", "mean", "deviation")
RATIOS = ("none", "clip", "cispo")
MEANS = ("constant", "tokens", "sequences")
SMALLEST_DEVIATION = 1e-6
"""Rewards of a group that differ by less are equal: their differences are rounding."""


def group_advantages(rewards: Tensor, kind: str) -> Tensor:
    """How much better each answer is than the other answers to its prompt.

    Args: rewards (P, G). kind: `none`: the reward itself, as in REINFORCE. With rewards of 1 and 0
    that is training on the right answers alone. `mean`: less the mean of its group, which takes no
    model of values (RLOO and GRPO without its deviation: arXiv:2503.20783). `deviation`: that, over
    the standard deviation of its group (GRPO, arXiv:2402.03300, section 4.1.2): groups that are
    nearly all right or all wrong then weigh more.
    Returns: (P, G). 0 for a group whose rewards are equal, except for `none`.
    """
    if kind == "none":
        return rewards.clone()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    centred = torch.where(deviation > SMALLEST_DEVIATION, centred, 0.0)
    if kind == "mean":
        return centred
    assert kind == "deviation"
    return centred / deviation.clamp(min=SMALLEST_DEVIATION)


def policy_losses(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, ratio: str, clip_epsilon: float) -> Tensor:
    """What each token of the answers adds to the loss, before the mean is taken.

    With r = p / p_old, the probability of a token now over that when the answer was sampled:
    - `none`: -A log p, the policy gradient itself (Williams 1992). Right while p is p_old.
    - `clip`: -min(r A, clip(r, 1 - e, 1 + e) A) (PPO, arXiv:1707.06347, eq. 7): a token whose
      probability has already moved by e in the wanted direction gets no gradient any more.
    - `cispo`: -min(r, 1 + e) A log p, where the factor has no gradient (arXiv:2506.13585, eq. 4):
      such a token keeps its gradient, with a bounded weight.
    While r is 1 the three have the same gradient.
    Args: logps, old_logps, advantages: (N,) each; gradients flow to `logps` alone.
    Returns: (N,).
    """
    if ratio == "none":
        return -advantages * logps
    r = (logps - old_logps).exp()
    if ratio == "clip":
        return -torch.minimum(r * advantages, r.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantages)
    assert ratio == "cispo"
    return -r.detach().clamp(max=1 + clip_epsilon) * advantages * logps


def clipped_share(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip_epsilon: float) -> Tensor:
    """Share of tokens from which the ratio of `clip` takes the gradient, (). Args: (N,) each."""
    r = (logps - old_logps).exp()
    beyond = torch.where(advantages > 0, r > 1 + clip_epsilon, r < 1 - clip_epsilon) & (advantages != 0)
    return beyond.float().mean() if len(beyond) else torch.zeros(())


def token_weights(lengths: Tensor, kind: str, *, answers: float, tokens: float, max_gen_len: int) -> Tensor:
    """How much each token of an answer counts in the loss of a step, by the length of the answer.

    - `constant`: 1 / (answers x max_gen_len): every token counts the same, whatever the lengths
      (Dr. GRPO, arXiv:2503.20783, section 3.2).
    - `tokens`: 1 / tokens (DAPO, arXiv:2503.14476, eq. 8): the same, but a step with long answers
      takes a smaller weight for each.
    - `sequences`: 1 / (answers x length) (GRPO, arXiv:2402.03300, eq. 3): the tokens of a long
      answer count less. So wrong answers grow, because their length dilutes the penalty.
    Args: lengths (B,): tokens of each answer. answers, tokens: those of the whole step, in all
    processes, so that a step can be divided in any way.
    Returns: (B,).
    """
    if kind == "constant":
        return torch.full_like(lengths, 1 / (answers * max_gen_len), dtype=torch.float32)
    if kind == "tokens":
        return torch.full_like(lengths, 1 / tokens, dtype=torch.float32)
    assert kind == "sequences"
    return 1 / (answers * lengths.clamp(min=1).float())


def kl_to_reference(logps: Tensor, reference: Tensor) -> Tensor:
    """An estimate of the Kullback-Leibler divergence to the reference from the sampled tokens.

    q - 1 - log q with q = p_reference / p: never negative, and unbiased for tokens that were
    sampled from p (Schulman 2020, joschu.net/blog/kl-approx.html; GRPO, arXiv:2402.03300, eq. 4).
    Args: (N,) each. Returns: (N,) in nats; 0 where the two agree.
    """
    log_q = reference - logps
    return log_q.exp() - 1 - log_q


# --- PPO's value model ----------------------------------------------------------------------------


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (arXiv:1506.02438, eq. 16), and the returns to predict.

    A_t = d_t + gamma lam A_{t+1} with d_t = r_t + gamma V_{t+1} - V_t. Behind the last token of an
    answer there is nothing: V and A are 0 there.
    Args: rewards, values (B, L): of each token; what lies behind an answer is not read. mask (B, L)
    boolean: the tokens of the answers, from the first place on.
    Returns: advantages (B, L), and returns A + V (B, L); 0 behind an answer.
    """
    values, rewards = values * mask, rewards * mask
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))  # A of the next token
    next_value = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t], next_value = following, values[:, t]
    return advantages, (advantages + values) * mask


def whitened(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Numbers with mean 0 and variance 1. Args: values: of any shape. mean, variance: () over those
    of all processes."""
    return (values - mean) * torch.rsqrt(variance + 1e-8)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_epsilon: float) -> Tensor:
    """Half the squared error of each token's value, where a value that has moved from the old one
    by more than clip_epsilon gains nothing by moving further (as in OpenAI's baselines of PPO).

    Args: (N,) each. Returns: (N,).
    """
    near = old_values + (values - old_values).clamp(-clip_epsilon, clip_epsilon)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
