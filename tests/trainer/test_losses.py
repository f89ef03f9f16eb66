"""Losses against their plain definitions."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from trainer import losses
from trainer.losses import IGNORE, PairLogps, dpo_loss, lm_loss_sum, sequence_logps


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_chunked_cross_entropy_and_its_gradients_equal_the_plain_one(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CPU_CHUNK_TOKENS", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(3, 9, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (3, 9))
    labels[:, ::3] = IGNORE

    plain = F.cross_entropy(
        (hidden @ weight.T).reshape(-1, 50), labels.reshape(-1), ignore_index=IGNORE, reduction="sum"
    )
    wanted = torch.autograd.grad(plain / 7, (hidden, weight))
    ours = lm_loss_sum(hidden, weight, labels)
    assert_close(ours.double(), plain, atol=1e-4, rtol=1e-5)
    found = torch.autograd.grad(ours / 7, (hidden, weight))
    assert_close(found[0], wanted[0], atol=1e-5, rtol=1e-4)
    assert_close(found[1].double(), wanted[1], atol=1e-5, rtol=1e-4)


def test_a_batch_without_targets_has_zero_loss_and_gradient() -> None:
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    weight = torch.randn(10, 8, requires_grad=True)
    loss = lm_loss_sum(hidden, weight, torch.full((1, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None and hidden.grad.abs().sum() == 0


def test_dpo_loss_is_ln2_when_policy_equals_reference() -> None:
    pair = PairLogps(torch.tensor([-3.0, -8.0]), torch.tensor([-4.0, -2.0]))
    assert_close(dpo_loss(pair, pair, beta=0.1), torch.full((2,), math.log(2)))


def test_dpo_loss_falls_as_the_chosen_answer_gains_on_the_reference() -> None:
    reference = PairLogps(torch.tensor([-5.0]), torch.tensor([-5.0]))
    better = PairLogps(torch.tensor([-4.0]), torch.tensor([-6.0]))
    worse = PairLogps(torch.tensor([-6.0]), torch.tensor([-4.0]))
    assert dpo_loss(better, reference, beta=0.5) < math.log(2) < dpo_loss(worse, reference, beta=0.5)
    assert_close(dpo_loss(better, reference, beta=0.5), torch.tensor([math.log(1 + math.exp(-1.0))]))


def test_dpo_loss_refuses_a_beta_that_is_not_positive() -> None:
    pair = PairLogps(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(pair, pair, beta=0.0)


def test_sequence_logps_add_up_the_supervised_tokens_of_each_row() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8), torch.randn(11, 8)
    labels = torch.tensor([[IGNORE, 3, 4, IGNORE, IGNORE], [IGNORE, IGNORE, 1, 2, 0]])
    logps = (hidden @ weight.T).log_softmax(dim=-1)
    wanted = torch.stack([logps[0, 1, 3] + logps[0, 2, 4], logps[1, 2, 1] + logps[1, 3, 2] + logps[1, 4, 0]])
    assert_close(sequence_logps(hidden, weight, labels), wanted)
