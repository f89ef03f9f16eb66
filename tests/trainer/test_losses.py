"""Losses against their plain definitions."""

import math

import pytest
import torch
from torch.testing import assert_close

from trainer.losses import PairLogps, dpo_loss


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
