"""Losses as pure functions on tensors, each with its source.

Shapes: B pairs.
"""

from dataclasses import dataclass

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
