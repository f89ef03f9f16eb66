"""The loss of a student beside its teacher, without ever holding all logits of either.

The logits of a batch, (tokens, V) in float32, would be its largest tensor by far, and here there
are those of two models. Only a chunk of both exists at once, as in model/likelihood.py.

Shapes: B rows, T tokens, N targets, C hidden size (that of the teacher is another one), V
vocabulary.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model import likelihood
from trainer.losses import generalized_jsd


class Output(NamedTuple):
    """What a model computes before its logits, hidden @ weight.T."""

    hidden: Tensor
    """(B, T, C)"""
    weight: Tensor
    """(V, C)"""


class Mixture(NamedTuple):
    """How the two losses of a target are mixed: alpha * (cross-entropy of the label) + (1 - alpha)
    * temperature^2 * (divergence from the teacher)."""

    alpha: float
    """From 0 to 1."""
    beta: float
    """Of the divergence: `generalized_jsd`."""
    temperature: float
    """Both logits are divided by it for the divergence, which makes unlikely tokens count more. Its
    square keeps the size of the gradients (Hinton et al. 2015, arXiv:1503.02531, section 2)."""


def distillation_loss_sum(
    student: Output, teacher: Output, labels: Tensor, target_places: Tensor, mixture: Mixture
) -> Tensor:
    """The mixed loss, summed over the targets, in nats. Only the student gets gradients.

    The products run in the autocast dtype if it is active, but in float32 where that is float16:
    there the loss scale would come too late for gradients that are computed in the forward pass.
    The softmax is in float32.
    Args: labels (B, T), read at the places of targets alone. target_places (N,): b * T + t.
    Returns: scalar float32.
    """
    device_type = labels.device.type
    dtype = torch.float32
    if torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.bfloat16:
        dtype = torch.bfloat16
    with torch.autocast(device_type, enabled=False):
        hidden, teacher_hidden = (
            one.hidden.flatten(0, 1).index_select(0, target_places).to(dtype) for one in (student, teacher)
        )
        targets = labels.flatten().index_select(0, target_places)  # (N,)
        weight = student.weight.to(dtype)
        if not torch.is_grad_enabled():  # `needs_input_grad` is true even without gradients
            hidden, weight = hidden.detach(), weight.detach()
        of_teacher = (teacher_hidden.detach(), teacher.weight.detach().to(dtype))
        loss: Tensor = _DistillationLoss.apply(hidden, weight, *of_teacher, targets, mixture)
    return loss


class _DistillationLoss(torch.autograd.Function):
    """The sum of the mixed loss. Its gradients are computed in the forward pass, while the logits
    of a chunk exist; the one number that comes in for the sum is multiplied in at the end."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        targets: Tensor,
        mixture: Mixture,
    ) -> Tensor:
        """(N, C), (V, C), the teacher's, (N,) -> ()."""
        wants_gradients = any(ctx.needs_input_grad[:2])
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_gradients else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_gradients else None
        for block in _blocks(len(targets), hidden.device.type):
            grad_logits = hidden.new_empty(block.stop - block.start, len(weight)) if wants_gradients else None
            for rows in _chunks(block, hidden.device.type):
                logits = (hidden[rows] @ weight.T).float()  # (chunk, V)
                teacher_logits = (teacher_hidden[rows] @ teacher_weight.T).float()
                loss, gradient = loss_and_gradient(logits, teacher_logits, targets[rows], mixture)
                total += loss
                if grad_logits is not None:
                    grad_logits[rows.start - block.start : rows.stop - block.start] = gradient
            if grad_logits is not None and grad_hidden is not None and grad_weight is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[block])
                grad_weight += grad_logits.T @ hidden[block]
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        (scale,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, None, None, None, None


def loss_and_gradient(logits: Tensor, teacher: Tensor, targets: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """The mixed loss of a few targets, and its gradient with respect to the student's logits.

    Args: logits, teacher: (n, V) float32. targets (n,).
    Returns: the sum of the losses (), the gradient (n, V).
    """
    alpha, beta, temperature = mixture
    logps = (logits / temperature).log_softmax(dim=-1)
    # The divergence's gradient with respect to logits / temperature is p_S (g - mean of g under
    # p_S), where g is the derivative with respect to p_S, less what is the same for all tokens.
    gradient = torch.zeros_like(logits)
    total = torch.zeros((), device=logits.device)
    if alpha < 1:
        teacher_logps = (teacher / temperature).log_softmax(dim=-1)
        total = total + generalized_jsd(logps, teacher_logps, beta=beta).sum() * temperature**2
        gradient = _divergence_gradient(logps, teacher_logps, beta).mul_((1 - alpha) * temperature)
        total = (1 - alpha) * total
    if alpha > 0:
        plain = logps if temperature == 1 else logits.log_softmax(dim=-1)
        total = total - alpha * plain.gather(1, targets[:, None]).sum()
        gradient.add_(plain.exp(), alpha=alpha)  # softmax - onehot
        gradient.scatter_add_(1, targets[:, None], torch.full_like(targets[:, None], -alpha, dtype=gradient.dtype))
    return total, gradient


def _divergence_gradient(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The gradient of `generalized_jsd` with respect to the student's logits, (n, V).

    Args: student, teacher: log-probabilities (n, V).
    """
    p = student.exp()
    if beta == 0:  # g = -p_T / p_S
        return p.sub_(teacher.exp())
    if beta == 1:  # g = log(p_S / p_T)
        g = student - teacher
    else:  # g = (1 - beta) log(p_S / M), because the derivatives through M cancel out
        mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
        g = (student - mixture).mul_(1 - beta)
    return g.sub_((p * g).sum(dim=-1, keepdim=True)).mul_(p)


def _blocks(count: int, device_type: str) -> Iterator[slice]:
    """Parts whose gradients of logits are collected before they are multiplied: on a CPU several
    chunks."""
    if device_type == "cpu":
        return _slices(0, count, likelihood.CPU_CHUNK_TOKENS * likelihood.CPU_CHUNKS_PER_PRODUCT)
    return _slices(0, count, likelihood.GPU_CHUNK_TOKENS)


def _chunks(block: slice, device_type: str) -> Iterator[slice]:
    """Parts whose float32 logits exist at once."""
    size = likelihood.CPU_CHUNK_TOKENS if device_type == "cpu" else likelihood.GPU_CHUNK_TOKENS
    return _slices(block.start, block.stop, size)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))
