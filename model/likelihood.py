"""How likely targets are to a model, in nats, without ever holding all logits.

Training, validation and evaluation all come through here. The logits of a batch, (tokens, V) in
float32, would be its largest tensor by far. Here only a chunk of them exists at once.

Shapes: B rows or pairs, T tokens, N targets, C hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS = 256, 4096
"""Tokens whose float32 logits exist at once, unless a caller gives another number. 256 x 6,400
numbers are 6.6 MB, which fits the cache of a CPU. A GPU needs larger products (docs/lab_log.md)."""

CPU_CHUNKS_PER_PRODUCT = 8
"""Chunks whose gradients are collected before they are multiplied with hidden and with weight. So
the gradient of weight is read and written once instead of eight times (docs/lab_log.md)."""


# --- what others call -----------------------------------------------------------------------------


def lm_loss_sum(hidden: Tensor, weight: Tensor, labels: Tensor, target_places: Tensor) -> Tensor:
    """Summed negative log-likelihood of the targets, in nats.

    The products run in the autocast dtype if it is active, the softmax in float32.
    Args: hidden (B, T, C). weight (V, C). labels (B, T), read at the places of targets alone.
    target_places (N,): the place of each target, b * T + t. A batch brings them along, because the
    CPU would have to wait for the GPU to find them here.
    Returns: scalar float32.
    """
    return _nats(hidden, weight, labels, target_places, summed=True)


def sequence_logps(hidden: Tensor, weight: Tensor, labels: Tensor, target_places: Tensor) -> Tensor:
    """Log-probability of all targets of each row, in nats.

    Args: those of `lm_loss_sum`. Returns: (B,) float32; 0 for a row without targets.
    """
    nats = _nats(hidden, weight, labels, target_places, summed=False)  # (N,)
    placed = nats.new_zeros(labels.numel()).scatter(0, target_places, nats)  # (B T); index_copy is slow or wrong on MPS
    return -placed.view_as(labels).sum(dim=1)


def target_nats(
    hidden: Tensor, weight: Tensor, labels: Tensor, target_places: Tensor, *, chunk_tokens: int | None = None
) -> Tensor:
    """Negative log-likelihood of each target, in nats.

    Args: those of `lm_loss_sum`. chunk_tokens: tokens whose logits exist at once. The last bit of a
    product may depend on how many rows it has. So numbers that are compared need the same size.
    Returns: (N,) float32, in the order of target_places.
    """
    return _nats(hidden, weight, labels, target_places, summed=False, chunk_tokens=chunk_tokens)


def nats_of_logits(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, target_places: Tensor, *, chunk_tokens: int
) -> Tensor:
    """`target_nats` without gradient, for an output matrix that is no float tensor
    (model/quantize.py).

    Args: logits: (n, C) -> (n, V). The others: those of `target_nats`. Returns: (N,) float32.
    """
    hidden = hidden.flatten(0, 1).index_select(0, target_places)  # (N, C)
    targets = labels.flatten().index_select(0, target_places)  # (N,)
    return _nats_in_chunks(logits, hidden, targets, chunk_tokens)


# --- how it is computed ---------------------------------------------------------------------------


def _nats(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_places: Tensor,
    *,
    summed: bool,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Nats of the targets (N,), or their sum.

    Only the hidden states of targets are multiplied by the output matrix.
    """
    hidden = hidden.flatten(0, 1).index_select(0, target_places)  # (N, C)
    targets = labels.flatten().index_select(0, target_places)  # (N,)
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():  # `needs_input_grad` is true even without gradients
        hidden, weight = hidden.detach(), weight.detach()
    chunk = chunk_tokens or (CPU_CHUNK_TOKENS if device_type == "cpu" else GPU_CHUNK_TOKENS)
    with torch.autocast(device_type, enabled=False):
        if summed and hidden.dtype == torch.float16:
            return _TargetNats.apply(hidden, weight, targets, False, chunk).sum()
        nats: Tensor = _TargetNats.apply(hidden, weight, targets, summed, chunk)
    return nats


def _nats_in_chunks(logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Nats of the targets (N,) float32; hidden (N, C)."""
    nats = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
    for rows in _slices(0, len(targets), chunk):
        logps = logits(hidden[rows]).log_softmax(dim=-1, dtype=torch.float32)  # (chunk, V)
        nats[rows] = -logps.gather(1, targets[rows, None])[:, 0]
    return nats


class _TargetNats(torch.autograd.Function):
    """Negative log-likelihood of targets under softmax(hidden @ weight.T).

    The gradient of a target's logits is (softmax - onehot) times g, the gradient that comes in for
    the target.

    - summed: g is one number for all targets, and can be multiplied in at the end. So the gradients
      of hidden and weight are computed in the forward pass, while a chunk's logits exist. That
      takes three products, and nothing else is kept.
    - not summed: each target has its own g, which is known only in the backward pass, and the
      gradient of weight is a sum over targets. So the logits are computed again there, a chunk at a
      time. That is a fourth product, but neither all probabilities (N, V) nor a gradient of weight
      for each row (B, V, C) are held.

    A sum in float16 also takes the second way. There g contains the loss scale. Gradients rounded
    to float16 before they are multiplied by g would lose what the scale should save: the smallest
    ones, of probabilities below 6e-8, would be 0.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, summed: bool, chunk: int) -> Tensor:
        """(N, C), (V, C), (N,) -> nats (N,) float32, or their sum."""
        ctx.summed, ctx.chunk = summed, chunk
        if summed and any(ctx.needs_input_grad):
            nats, grad_hidden, grad_weight = _nats_and_gradients(hidden, weight, targets, chunk)
            ctx.save_for_backward(grad_hidden, grad_weight)
            return nats.sum()
        nats = _nats_in_chunks(lambda part: part @ weight.T, hidden, targets, chunk)
        ctx.save_for_backward(hidden, weight, targets)
        return nats.sum() if summed else nats

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (scale,) = grad_outputs
        if ctx.summed:
            grad_hidden, grad_weight = ctx.saved_tensors
            return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, None, None, None
        hidden, weight, targets = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):  # as in the forward pass
            _, grad_hidden, grad_weight = _nats_and_gradients(hidden, weight, targets, ctx.chunk, scale)
        return grad_hidden, grad_weight, None, None, None


def _nats_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats, and the gradients of the sum of nats * scale.

    Args: scale (N,); None: 1 for all.
    Returns: nats (N,), gradients of hidden (N, C) and of weight (V, C).
    """
    nats = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    # Two sizes: probabilities in float32 are made a chunk at a time, small enough for a CPU's
    # cache; the products of their gradients take a block of several chunks at once.
    for block in _slices(0, len(targets), chunk * (CPU_CHUNKS_PER_PRODUCT if hidden.device.type == "cpu" else 1)):
        grad_logits = hidden.new_empty(block.stop - block.start, len(weight))
        for rows in _slices(block.start, block.stop, chunk):
            top = targets[rows, None]
            # One kernel from logits to float32 probabilities. One that underflowed to 0 counts as
            # 1e-38 in the nats, so that these stay finite.
            p = (hidden[rows] @ weight.T).softmax(dim=-1, dtype=torch.float32)  # (chunk, V)
            nats[rows] = -p.gather(1, top)[:, 0].clamp(min=torch.finfo(torch.float32).tiny).log()
            # p becomes the gradient in place: softmax - onehot, times the scale.
            p.scatter_add_(1, top, torch.full_like(top, -1, dtype=p.dtype))
            if scale is not None:
                p *= scale[rows, None]
            grad_logits[rows.start - block.start : rows.stop - block.start] = p
        torch.mm(grad_logits, weight, out=grad_hidden[block])
        grad_weight += grad_logits.T @ hidden[block]
    return nats, grad_hidden, grad_weight


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))
