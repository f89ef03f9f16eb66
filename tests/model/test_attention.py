"""model/attention.py: the same values and gradients as PyTorch's own attention, for every shape and mask."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import attention
from model.attention import blocked_attention, blocks


def causal_bias(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T) document numbers -> (B, 1, T, T)."""
    T = documents.shape[1]
    allowed = (documents[:, :, None] == documents[:, None, :]) & torch.ones(T, T, dtype=torch.bool).tril()
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -math.inf)[:, None]


def inputs(B: int, H: int, K: int, T: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(B * T)
    heads = [torch.randn(B, T, heads, D).to(dtype).transpose(1, 2) for heads in (H, K, K)]  # as the network makes them
    return [tensor.requires_grad_() for tensor in heads]


@pytest.mark.parametrize("block", [3, 8, 128])
@pytest.mark.parametrize(("B", "H", "K", "T"), [(1, 1, 1, 1), (2, 4, 2, 8), (2, 6, 2, 11), (1, 3, 3, 20)])
def test_values_and_gradients_equal_those_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, block: int, B: int, H: int, K: int, T: int
) -> None:
    monkeypatch.setattr(attention, "BLOCK_QUERIES", block)
    documents = torch.randint(0, 3, (B, T)).sort(dim=1).values
    bias = causal_bias(documents, torch.float64)
    q, k, v = inputs(B, H, K, T, 4, torch.float64)
    weights = torch.randn(B, H, T, 4, dtype=torch.float64)
    results = []
    for attend in (
        blocked_attention,
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True),
    ):
        y = attend(q, k, v, bias)
        results.append([y, *torch.autograd.grad((y * weights).sum(), (q, k, v))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_equal_finite_differences() -> None:
    q, k, v = inputs(1, 2, 1, 5, 2, torch.float64)
    bias = causal_bias(torch.tensor([[0, 0, 1, 1, 1]]), torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: blocked_attention(q, k, v, bias), (q, k, v))


def test_bfloat16_is_as_close_to_the_truth_as_pytorchs() -> None:
    q, k, v = inputs(2, 4, 2, 160, 32, torch.bfloat16)
    documents = (torch.arange(160) // 50).expand(2, 160)
    bias = causal_bias(documents, torch.bfloat16)
    truth = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=bias.double(), enable_gqa=True)
    ours = (blocked_attention(q, k, v, bias).double() - truth).abs().mean()
    theirs = (F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True).double() - truth).abs().mean()
    assert ours < 2 * theirs


def test_blocks_cover_every_query_once() -> None:
    for num_tokens in (1, 127, 128, 129, 300):
        covered = [place for start, end in blocks(num_tokens) for place in range(start, end)]
        assert covered == list(range(num_tokens))
