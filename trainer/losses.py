"""Losses as pure functions on tensors, each with its source.

Shapes: B rows or pairs, T tokens, N supervised tokens, C hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS = 256, 4096
"""Tokens whose float32 logits exist at one time. 256 x 6,400 float32 are 6.6 MB, which a CPU's cache holds (1,024 made a
whole step at 192 x 4 17% slower); a GPU wants larger products."""

CPU_CHUNKS_PER_PRODUCT = 8
"""Chunks whose gradients, in the dtype of the products, wait for one product each with hidden and weight: 8 take 22%
less time at 512 x 8 than one by one (133 against 170 ms for 4,096 tokens, bfloat16), as weight's own gradient is read
and written once instead of eight times."""


class _TargetNats(torch.autograd.Function):
    """Negative log-likelihood of targets under softmax(hidden @ weight.T), without ever holding all logits.

    The gradient with respect to a token's logits is (softmax - onehot) times the number that comes in for the token.

    - summed: one number comes in for all tokens, and may be multiplied in at the end. So the gradients of hidden and
      weight are computed in the forward pass, while a chunk's logits exist: three products, and nothing else is kept.
    - not summed: each token has a number of its own, known in the backward pass alone, and weight's gradient adds the
      tokens up. So the logits are computed again there, a chunk at a time. That fourth product is the price of holding
      neither all probabilities (N, V) nor a gradient of weight for each row (B, V, C).

    A sum in float16 goes the second way too: the number that comes in bears the loss scale, and gradients that are rounded
    to float16 before it is multiplied in have lost what it should have kept, probabilities below 6e-8 to begin with.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, summed: bool) -> Tensor:
        """(N, C), (V, C), (N,) -> nats (N,) float32, or their sum."""
        ctx.summed = summed
        if summed and any(ctx.needs_input_grad):
            nats, grad_hidden, grad_weight = _nats_and_gradients(hidden, weight, targets)
            ctx.save_for_backward(grad_hidden, grad_weight)
            return nats.sum()
        nats = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
        for rows in _slices(0, len(targets), _chunk_tokens(hidden.device)):
            logps = (hidden[rows] @ weight.T).log_softmax(dim=-1, dtype=torch.float32)  # (chunk, V)
            nats[rows] = -logps.gather(1, targets[rows, None])[:, 0]
        ctx.save_for_backward(hidden, weight, targets)
        return nats.sum() if summed else nats

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (scale,) = grad_outputs
        if ctx.summed:
            grad_hidden, grad_weight = ctx.saved_tensors
            return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, None, None
        hidden, weight, targets = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):  # as in the forward pass
            _, grad_hidden, grad_weight = _nats_and_gradients(hidden, weight, targets, scale)
        return grad_hidden, grad_weight, None, None


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _chunk_tokens(device: torch.device) -> int:
    return CPU_CHUNK_TOKENS if device.type == "cpu" else GPU_CHUNK_TOKENS


def _nats_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats (N,), and the gradients of their sum, each token's times its scale (N,), for hidden (N, C), weight (V, C)."""
    nats = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    chunk = _chunk_tokens(hidden.device)
    for block in _slices(0, len(targets), chunk * (CPU_CHUNKS_PER_PRODUCT if hidden.device.type == "cpu" else 1)):
        grad_logits = hidden.new_empty(block.stop - block.start, len(weight))
        for rows in _slices(block.start, block.stop, chunk):
            top = targets[rows, None]
            # One kernel from logits to float32 probabilities; one that underflowed is log-likelihood enough at 1e-38.
            p = (hidden[rows] @ weight.T).softmax(dim=-1, dtype=torch.float32)  # (chunk, V)
            nats[rows] = -p.gather(1, top)[:, 0].clamp(min=torch.finfo(torch.float32).tiny).log()
            p.scatter_add_(1, top, torch.full_like(top, -1, dtype=p.dtype))
            if scale is not None:
                p *= scale[rows, None]
            grad_logits[rows.start - block.start : rows.stop - block.start] = p
        torch.mm(grad_logits, weight, out=grad_hidden[block])
        grad_weight += grad_logits.T @ hidden[block]
    return nats, grad_hidden, grad_weight


def _target_nats(hidden: Tensor, weight: Tensor, labels: Tensor, target_places: Tensor, *, summed: bool) -> Tensor:
    """Nats of the supervised tokens (N,), or their sum. Only these tokens are multiplied by the output matrix."""
    hidden = hidden.flatten(0, 1).index_select(0, target_places)  # (N, C)
    targets = labels.flatten().index_select(0, target_places)  # (N,)
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():  # a function's `needs_input_grad` does not look at this
        hidden, weight = hidden.detach(), weight.detach()
    with torch.autocast(device_type, enabled=False):
        if summed and hidden.dtype == torch.float16:
            return _TargetNats.apply(hidden, weight, targets, False).sum()
        nats: Tensor = _TargetNats.apply(hidden, weight, targets, summed)
    return nats


def lm_loss_sum(hidden: Tensor, weight: Tensor, labels: Tensor, target_places: Tensor) -> Tensor:
    """Summed negative log-likelihood of the supervised tokens, in nats.

    Args: hidden (B, T, C). weight (V, C). labels (B, T), read at the supervised tokens alone. target_places (N,): where
    these stand, b * T + t, each once. A batch brings them along: to look for them here would make a GPU wait.
    The products run in the autocast dtype where one is active, the softmax in float32; no more than a chunk of float32
    logits exists at one time.
    Returns: scalar float32.
    """
    return _target_nats(hidden, weight, labels, target_places, summed=True)


def sequence_logps(hidden: Tensor, weight: Tensor, labels: Tensor, target_places: Tensor) -> Tensor:
    """Log-probability of the supervised tokens of each row, in nats.

    Args, products and memory: those of `lm_loss_sum`. Returns: (B,) float32; 0 for a row without supervised tokens.
    """
    nats = _target_nats(hidden, weight, labels, target_places, summed=False)  # (N,)
    placed = nats.new_zeros(labels.numel()).scatter(0, target_places, nats)  # (B T); index_copy is slow or wrong on MPS
    return -placed.view_as(labels).sum(dim=1)


def target_nats(hidden: Tensor, weight: Tensor, labels: Tensor, target_places: Tensor) -> Tensor:
    """Negative log-likelihood of each supervised token, in nats.

    Args, products and memory: those of `lm_loss_sum`. Returns: (N,) float32, in the order of target_places.
    """
    return _target_nats(hidden, weight, labels, target_places, summed=False)


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
