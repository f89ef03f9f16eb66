"""Likelihoods against their plain definition, and what is held on the way.

Shapes: B rows, T tokens, C hidden size, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Callable

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
from model.likelihood import lm_loss_sum, sequence_logps, target_nats

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def plain_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's labels by way of all logits, (B,)."""
    logits = hidden @ weight.T  # (B, T, V)
    nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return -nats.view_as(labels).sum(dim=1)


def operands(labels: Tensor, V: int = 50, C: int = 16) -> tuple[Tensor, Tensor]:
    """Random hidden (B, T, C) and weight (V, C), which want gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*size, C, generator=generator) for size in (labels.shape, (V,)))
    return hidden.requires_grad_(), weight.requires_grad_()


def labels_with_targets(*lengths: int, T: int = 9) -> Tensor:
    """A row for each length, which has that many targets, from its second token on."""
    labels = torch.full((len(lengths), T), IGNORE)
    for row, length in enumerate(lengths):
        labels[row, 1 : 1 + length] = torch.arange(length) * 7 + row
    return labels


EVERYWHERE = torch.arange(27).view(3, 9)
LABELS = {
    "every token": EVERYWHERE,
    "every third token not": EVERYWHERE.masked_fill(EVERYWHERE % 3 == 0, IGNORE),
    "answers of two pairs": labels_with_targets(4, 2, 6, 5),
    "rows without targets": labels_with_targets(0, 5, 0, 3, 0),
    "one token": labels_with_targets(1),
    "no target": labels_with_targets(0, 0),
}
each_chunk = pytest.mark.parametrize("chunk", [1, 4, 7, 1024])
each_batch = pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())


@each_chunk
@each_batch
def test_chunked_cross_entropy_and_its_gradients_equal_the_plain_one(
    labels: Tensor, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "CPU_CHUNK_TOKENS", chunk)
    hidden, weight = operands(labels)
    plain = -plain_logps(hidden, weight, labels).sum()
    ours = lm_loss_sum(hidden, weight, labels, target_places(labels))
    assert_close(ours, plain)
    wanted, found = (torch.autograd.grad(loss / 7, (hidden, weight)) for loss in (plain, ours))
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@each_chunk
@each_batch
def test_chunked_log_probabilities_of_rows_and_their_gradients_equal_the_plain_ones(
    labels: Tensor, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "CPU_CHUNK_TOKENS", chunk)
    hidden, weight = operands(labels)
    plain = plain_logps(hidden, weight, labels)
    ours = sequence_logps(hidden, weight, labels, target_places(labels))
    assert_close(ours, plain)
    of_rows = torch.linspace(-2, 3, len(labels))  # each row's own share in the loss, zero and signs among them
    wanted, found = (torch.autograd.grad(logps, (hidden, weight), of_rows) for logps in (plain, ours))
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [None, 1, 5])
@each_batch
def test_the_nats_of_each_target_equal_the_plain_ones_in_their_order(labels: Tensor, chunk_tokens: int | None) -> None:
    hidden, weight = operands(labels)
    places = target_places(labels)
    logps = (hidden @ weight.T).log_softmax(dim=-1).flatten(0, 1)[places]  # (N, V)
    plain = -logps.gather(1, labels.flatten()[places][:, None])[:, 0]
    assert_close(target_nats(hidden, weight, labels, places, chunk_tokens=chunk_tokens), plain)


@pytest.mark.parametrize("loss", [lm_loss_sum, sequence_logps])
def test_under_autocast_products_are_rounded_and_nothing_else(loss: Loss) -> None:
    labels = LABELS["answers of two pairs"]
    hidden, weight = operands(labels)
    rounded = tuple(tensor.detach().bfloat16().float().requires_grad_() for tensor in (hidden, weight))
    plain = plain_logps(*rounded, labels)
    plain = -plain.sum() if loss is lm_loss_sum else plain
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss(hidden, weight, labels, target_places(labels))
    assert ours.dtype == torch.float32
    assert_close(ours, plain, atol=0.1, rtol=0.01)
    wanted = torch.autograd.grad(plain.sum(), rounded)
    found = torch.autograd.grad(ours.sum(), (hidden, weight))
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.float32]
    assert_close(found, wanted, atol=0.05, rtol=0.02)


def test_in_float16_gradients_are_rounded_after_the_loss_scale_and_not_before() -> None:
    scale = 65536.0
    labels = torch.tensor([[0, 0, 0]])
    hidden = torch.tensor([[[1.0, 0.5], [1.0, 0.25], [1.0, 0.0]]], requires_grad=True)  # (1, 3, 2)
    weight = torch.tensor(
        [[12.0, 0.0], [-8.0, 0.0], [-8.0, 1.0]], requires_grad=True
    )  # the others' probabilities: 2e-9
    wanted = torch.autograd.grad(-plain_logps(hidden, weight, labels).sum(), (hidden, weight))
    with torch.autocast("cpu", torch.float16):
        loss = lm_loss_sum(hidden, weight, labels, target_places(labels))
    assert_close(loss, -plain_logps(hidden, weight, labels).sum(), atol=1e-6, rtol=0.0)
    found = torch.autograd.grad(loss * scale, (hidden, weight))
    assert_close(tuple(gradient / scale for gradient in found), wanted, atol=1e-11, rtol=2e-3)
    assert wanted[0].abs().max() < torch.finfo(torch.float16).smallest_normal  # without the scale little or nothing


def test_a_loss_that_nobody_derives_computes_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = LABELS["answers of two pairs"]
    hidden, weight = operands(labels)
    wanted = lm_loss_sum(hidden, weight, labels, target_places(labels))
    monkeypatch.setattr(likelihood, "_nats_and_gradients", None)
    with torch.no_grad():
        assert_close(lm_loss_sum(hidden, weight, labels, target_places(labels)), wanted.detach())


@pytest.mark.parametrize("loss", [lm_loss_sum, sequence_logps])
def test_autocast_around_the_backward_pass_alone_changes_nothing(loss: Loss) -> None:
    labels = LABELS["answers of two pairs"]
    hidden, weight = operands(labels)
    ours = loss(hidden, weight, labels, target_places(labels)).sum()
    wanted = torch.autograd.grad(ours, (hidden, weight), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(ours, (hidden, weight))
    assert_close(found, wanted, atol=0.0, rtol=0.0)


class Watch(TorchDispatchMode):
    """Notes the largest tensor of each dtype that a kernel gave back.

    It refuses kernels that make the host wait for a GPU.
    """

    WAIT = ("nonzero", "masked_select", "_local_scalar_dense", "unique", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.largest: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        indices = (
            [index for index in args[1] if index is not None] if name in ("index", "index_put", "index_put_") else []
        )
        assert not name.startswith(self.WAIT), name
        assert all(index.dtype != torch.bool for index in indices), name
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.largest[leaf.dtype] = max(self.largest[leaf.dtype], leaf.numel())
        return result


@pytest.mark.parametrize("loss", [lm_loss_sum, sequence_logps])
def test_a_chunk_of_float32_logits_at_most_exists_and_the_host_waits_for_nothing(
    loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "CPU_CHUNK_TOKENS", 16)
    labels = torch.arange(4 * 80).view(4, 80)
    labels[:, :10] = IGNORE
    hidden, weight = operands(labels, V=500, C=4)
    places = target_places(labels)
    with Watch() as watch, torch.autocast("cpu", dtype=torch.bfloat16):
        loss(hidden, weight, labels, places).sum().backward()
    assert len(places) > 2 * likelihood.CPU_CHUNKS_PER_PRODUCT * 16
    assert watch.largest[torch.float32] == 16 * 500
    assert watch.largest[torch.bfloat16] == likelihood.CPU_CHUNKS_PER_PRODUCT * 16 * 500
    with pytest.raises(AssertionError), Watch():
        hidden[labels != IGNORE]


def test_a_target_whose_probability_underflows_has_a_finite_loss_and_the_full_gradient() -> None:
    hidden, weight = torch.full((1, 1, 1), 200.0, requires_grad=True), torch.tensor([[1.0], [0.0]])
    loss = lm_loss_sum(hidden, weight, torch.tensor([[1]]), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))
    assert gradient.item() == 1.0  # of 200 - 0: the likelier token's weight less the target's
