"""Attention on a CPU, by its batched matrix products.

PyTorch's own CPU kernel for scaled dot products works in small tiles and reaches a tenth of the speed that the same CPU has
in matrix products. Here queries are taken in blocks, and a block is multiplied only with the keys up to its end: most of
the work that causality forbids is never done, and what is done runs at full speed (docs/lab_log.md has the figures).

Shapes: B batch, H query heads, K key/value heads, T tokens, D head size, S queries of a block, E keys up to its end.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_QUERIES = 128


class _BlockedAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D) + bias) v, block by block; the probabilities are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        B, H, T, D = q.shape
        K = k.shape[1]
        scaled = q * D**-0.5
        keys, values = k.reshape(B * K, T, D), v.reshape(B * K, T, D)
        out = torch.empty_like(q)
        probabilities = []
        for start, end in blocks(T):
            scores = torch.bmm(_grouped(scaled[:, :, start:end], K), keys[:, :end].mT)  # (B K, H/K S, E)
            scores = scores.view(B, H, end - start, end).add_(bias[:, :, start:end, :end])
            probabilities.append(scores.softmax(dim=-1).view(B * K, -1, end))
            out[:, :, start:end] = torch.bmm(probabilities[-1], values[:, :end]).view(B, H, end - start, D)
        ctx.save_for_backward(scaled, keys, values, *probabilities)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grad_outputs
        scaled, keys, values, *probabilities = ctx.saved_tensors
        B, H, T, D = scaled.shape
        K = keys.shape[0] // B
        grad_q, grad_k, grad_v = torch.empty_like(scaled), torch.zeros_like(keys), torch.zeros_like(values)
        for (start, end), p in zip(blocks(T), probabilities, strict=True):
            grad_block = _grouped(grad[:, :, start:end], K)  # (B K, H/K S, D)
            grad_v[:, :end] += torch.bmm(p.mT, grad_block)
            grad_p = torch.bmm(grad_block, values[:, :end].mT)  # (B K, H/K S, E)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, start:end] = torch.bmm(grad_scores, keys[:, :end]).view(B, H, end - start, D)
            grad_k[:, :end] += torch.bmm(grad_scores.mT, _grouped(scaled[:, :, start:end], K))
        return grad_q * D**-0.5, grad_k.view(B, K, T, D), grad_v.view(B, K, T, D), None


def blocks(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Where each block of queries begins and ends."""
    for start in range(0, num_tokens, BLOCK_QUERIES):
        yield start, min(start + BLOCK_QUERIES, num_tokens)


def _grouped(x: Tensor, num_kv_heads: int) -> Tensor:
    """The queries that share a key head, one after another: (B, H, S, D) -> (B K, H/K S, D)."""
    B, _, _, D = x.shape
    return x.reshape(B * num_kv_heads, -1, D)


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Grouped-query attention, with gradients for q, k and v.

    Args: q (B, H, T, D). k, v (B, K, T, D), H a multiple of K. bias (B or 1, 1, T, T) in their dtype: 0 where a query may
    look, -inf elsewhere; causal: all above the diagonal is -inf, and is never read beyond a block's end.
    Returns: (B, H, T, D).
    """
    out: Tensor = _BlockedAttention.apply(q, k, v, bias)
    return out
