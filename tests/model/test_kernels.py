"""RMSNorm and RoPE for a CPU are their formulas, and so are their gradients."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.kernels import rms_norm, rotate


def by_formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight, with torch's own backward pass."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
def test_rms_norm_and_its_gradients_are_those_of_the_formula_for_small_inputs_too(size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    values, weights = torch.randn(4, 5, 16, generator=generator) * size, torch.randn(16, generator=generator)
    upstream = torch.randn(4, 5, 16, generator=generator)
    results = []
    for norm in (lambda x, w: rms_norm(x, w, 1e-6, torch.float32), lambda x, w: by_formula(x, w, 1e-6)):
        x, weight = values.clone().requires_grad_(), weights.clone().requires_grad_()
        out = norm(x, weight)
        out.backward(upstream)
        results.append((out.detach(), x.grad, weight.grad))
    for ours, wanted in zip(*results, strict=True):
        assert_close(ours, wanted, rtol=2e-5, atol=1e-6 * max(1.0, wanted.abs().max().item()))


def test_rms_norm_of_zeros_is_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6, torch.float32), torch.zeros(2, 8))


def test_a_rotation_and_its_gradient_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
    upstream, angles = torch.randn(2, 3, 5, 8, generator=generator), torch.randn(5, 4, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    wanted = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    (wanted_grad,) = torch.autograd.grad(wanted, x, upstream)
    found = rotate(x, cos, sin)
    assert_close(found, wanted)
    assert_close(torch.autograd.grad(found, x, upstream)[0], wanted_grad)
