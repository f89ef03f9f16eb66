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
