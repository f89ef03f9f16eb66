"""The chunked loss of a student beside its teacher, against its plain definition.

Shapes: B rows, T tokens, C hidden size of the student, V vocabulary.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataset.lm_dataset import target_places
from dataset.tensors import IGNORE
from model import likelihood
from trainer.divergence import Mixture, Output, distillation_loss_sum
from trainer.losses import generalized_jsd

V, C, TEACHER_C = 50, 16, 12
LABELS = torch.arange(27).view(3, 9)
LABELS = LABELS.masked_fill(LABELS % 4 == 0, IGNORE)
PLACES = target_places(LABELS)


def operands() -> tuple[Output, Output]:
    """Random outputs of a student and of a teacher of another width. All want gradients."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).requires_grad_()

    return Output(random(3, 9, C), random(V, C)), Output(random(3, 9, TEACHER_C), random(V, TEACHER_C))


def plain_loss(student: Output, teacher: Output, mixture: Mixture) -> Tensor:
    """The definition, by way of all logits."""
    logits, wanted = ((one.hidden @ one.weight.T).flatten(0, 1)[PLACES] for one in (student, teacher))
    nats = F.cross_entropy(logits, LABELS.flatten()[PLACES], reduction="sum")
    softened = [(part / mixture.temperature).log_softmax(dim=-1) for part in (logits, wanted.detach())]
    divergence = generalized_jsd(*softened, beta=mixture.beta).sum()
    return mixture.alpha * nats + (1 - mixture.alpha) * mixture.temperature**2 * divergence


@pytest.mark.parametrize("chunk", [1, 7, 1024])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_chunked_loss_and_its_gradients_equal_the_plain_ones(
    alpha: float, beta: float, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "CPU_CHUNK_TOKENS", chunk)
    mixture = Mixture(alpha, beta, temperature)
    student, teacher = operands()
    plain = plain_loss(student, teacher, mixture)
    ours = distillation_loss_sum(student, teacher, LABELS, PLACES, mixture)
    assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    wanted, found = (torch.autograd.grad(loss / 7, [student.hidden, student.weight]) for loss in (plain, ours))
    assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_only_the_student_gets_gradients() -> None:
    student, teacher = operands()
    distillation_loss_sum(student, teacher, LABELS, PLACES, Mixture(0.5, 0.5, 1.0)).backward()
    assert teacher.hidden.grad is None and teacher.weight.grad is None
    assert student.hidden.grad is not None and student.hidden.grad.abs().sum() > 0


def test_a_student_that_equals_its_teacher_gets_no_gradient_from_it() -> None:
    student, _ = operands()
    for beta in (0.0, 0.5, 1.0):
        loss = distillation_loss_sum(student, student, LABELS, PLACES, Mixture(0.0, beta, 2.0))
        assert loss.item() == pytest.approx(0.0, abs=1e-4)
        (gradient,) = torch.autograd.grad(loss, student.hidden)
        assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


def test_a_uniform_teacher_costs_ln_v_less_the_students_entropy_at_beta_1() -> None:
    student, _ = operands()
    uniform = Output(torch.zeros(3, 9, 4), torch.zeros(V, 4))
    logps = (student.hidden @ student.weight.T).flatten(0, 1)[PLACES].log_softmax(dim=-1)
    entropy = -(logps.exp() * logps).sum()
    loss = distillation_loss_sum(student, uniform, LABELS, PLACES, Mixture(0.0, 1.0, 1.0))
    assert_close(loss, len(PLACES) * math.log(V) - entropy, rtol=1e-5, atol=1e-4)


def test_alpha_1_is_cross_entropy_whatever_the_teacher_says() -> None:
    student, teacher = operands()
    other = Output(teacher.hidden * 3, teacher.weight)
    losses = [
        distillation_loss_sum(student, one, LABELS, PLACES, Mixture(1.0, 0.5, 2.0)).item() for one in (teacher, other)
    ]
    wanted = likelihood.lm_loss_sum(student.hidden, student.weight, LABELS, PLACES).item()
    assert losses == pytest.approx([wanted, wanted], rel=1e-5)


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that any result has."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


def test_no_tensor_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CPU_CHUNK_TOKENS", 1)
    monkeypatch.setattr(likelihood, "CPU_CHUNKS_PER_PRODUCT", 4)
    student, teacher = operands()
    with LargestTensor() as largest:
        distillation_loss_sum(student, teacher, LABELS, PLACES, Mixture(0.5, 0.5, 2.0)).backward()
    assert largest.most <= V * max(C, TEACHER_C) < len(PLACES) * V


def test_in_bfloat16_the_loss_is_near_that_of_float32() -> None:
    student, teacher = operands()
    mixture = Mixture(0.5, 0.5, 1.0)
    exact = distillation_loss_sum(student, teacher, LABELS, PLACES, mixture)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = distillation_loss_sum(student, teacher, LABELS, PLACES, mixture)
    assert rounded.dtype == torch.float32
    assert_close(rounded, exact, rtol=2e-2, atol=0)
    gradients = [torch.autograd.grad(loss, student.hidden)[0] for loss in (exact, rounded)]
    assert F.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0) > 0.99
