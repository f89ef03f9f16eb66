"""Losses as pure functions on tensors, each with its source.

Shapes: B rows or pairs, T tokens, N supervised tokens, C hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
"""Label of a token that is not supervised."""
CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS = 256, 4096
"""Tokens whose logits exist at one time. 256 x 6,400 float32 are 6.6 MB, which a CPU's cache holds (1,024 made a whole
step at 192 x 4 17% slower); a GPU wants larger products."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of hidden @ weight.T without ever holding all logits.

    The gradient of a chunk is computed while its logits exist, d loss / d logits = softmax - onehot, so the forward
    pass leaves only the gradients of hidden and weight to be scaled in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        nats = torch.empty(labels.shape[0], device=hidden.device, dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        chunk = CPU_CHUNK_TOKENS if hidden.device.type == "cpu" else GPU_CHUNK_TOKENS
        for start in range(0, labels.shape[0], chunk):
            rows = slice(start, start + chunk)
            top = labels[rows, None]
            # One kernel from logits to float32 probabilities; one that underflowed is log-likelihood enough at 1e-38.
            p = (hidden[rows] @ weight.T).softmax(dim=-1, dtype=torch.float32)  # (chunk, V)
            nats[rows] = -p.gather(1, top)[:, 0].clamp(min=torch.finfo(torch.float32).tiny).log()
            if grad_hidden is not None and grad_weight is not None:
                p.scatter_add_(1, top, torch.full_like(top, -1, dtype=p.dtype))
                grad_logits = p.to(hidden.dtype)
                grad_hidden[rows] = grad_logits @ weight
                grad_weight += grad_logits.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return nats.sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, None


def lm_loss_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood of the supervised tokens, in nats.

    Args: hidden (B, T, C). weight (V, C). labels (B, T), -100 where nothing is learnt; only the other tokens are
    multiplied by the output matrix. The products run in the autocast dtype where one is active.
    Returns: scalar float32.
    """
    kept = labels.reshape(-1) != IGNORE
    flat, targets = hidden.reshape(-1, hidden.shape[-1])[kept], labels.reshape(-1)[kept]
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return _apply(flat.to(dtype), weight.to(dtype), targets)
    return _apply(flat, weight, targets)


def _apply(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels)
    return loss


def sequence_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the supervised tokens of each row, in nats: (B, T, C), (V, C), (B, T) -> (B,) float32."""
    rows, columns = (labels != IGNORE).nonzero(as_tuple=True)
    logits = F.linear(hidden[rows, columns], weight).float()  # (N, V)
    logps = -F.cross_entropy(logits, labels[rows, columns], reduction="none")  # (N,)
    return logps.new_zeros(labels.shape[0]).index_add(0, rows, logps)


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of whole answers in nats, each (B,)."""

    chosen: Tensor
    rejected: Tensor


def dpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """DPO loss of each pair (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    Args: policy, reference: log-probability of each whole answer in nats, chosen (B,) and rejected (B,). beta: > 0.
    Returns: (B,) in nats; ln 2 where the two models agree. Raises: ValueError if beta <= 0.
    """
    if beta <= 0:
        raise ValueError(f"beta = {beta}: must be above 0")
    margin = (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)
    return -F.logsigmoid(beta * margin)
