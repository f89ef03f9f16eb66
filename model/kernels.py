"""RMSNorm and RoPE for a CPU, written so that they read and write memory as little as possible.

Written as plain formulas each is a dozen operations, forward and backward, and each operation reads
and writes the whole tensor. That is what takes the time. Here there are as few as possible, and the
backward pass is written out. It saves 5% of a training step (docs/lab_log.md). The results are the
same to rounding.

Shapes: C size of the last dimension, B batch, H heads, T tokens, D head size.
"""

from typing import Any

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    """y = x / rms(x) * w.

    With n = x / rms(x) and h = dL/dy * w: dL/dx = (h - n * mean(h * n)) / rms(x), and dL/dw is the
    sum of dL/dy * n over the rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # (..., 1)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normalized = x * inverse  # (..., C) float32
        ctx.save_for_backward(normalized, inverse, weight)
        return (normalized * weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grad_outputs
        normalized, inverse, weight = ctx.saved_tensors
        product = (grad * normalized).flatten(0, -2)  # (rows, C): read twice below
        # mean(h * n) of each row is the row of `product` times w: one product of a matrix and a
        # vector in place of two passes over the tensor.
        minus_mean = torch.mv(product, weight).div_(-len(weight)).view_as(inverse)
        grad_x = torch.addcmul(grad * weight, normalized, minus_mean).mul_(inverse)
        return grad_x, product.sum(dim=0), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32.

    Args: x (..., C). weight (C,). Returns: (..., C) in `dtype`.
    """
    out: Tensor = _RMSNorm.apply(x, weight, eps, dtype)
    return out


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        # x lies in memory as the projection made it, (B, T, H, D). The result lies as attention
        # reads it, (B, H, T, D), so that no copy in between is needed; backward it is the reverse.
        return _rotated(x, cos, sin, torch.empty(x.shape, dtype=x.dtype, device=x.device))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        cos, sin = ctx.saved_tensors
        in_order = torch.empty_like(grad.transpose(1, 2), memory_format=torch.contiguous_format)  # (B, T, H, D)
        return _rotated(grad, cos, -sin, in_order.transpose(1, 2)), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """Write the turned pairs of x into `out`, each half of it in one operation and one rounding."""
    first, second = x.chunk(2, dim=-1)
    new_first, new_second = out.chunk(2, dim=-1)
    new_first.copy_(torch.addcmul(first * cos, second, sin, value=-1))  # in float32, rounded once
    new_second.copy_(torch.addcmul(second * cos, first, sin))
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of (B, H, T, D) by its angle.

    Args: cos, sin: broadcast to (B, 1, T, D/2). Returns: the shape and dtype of x.
    """
    out: Tensor = _Rotate.apply(x, cos, sin)
    return out
