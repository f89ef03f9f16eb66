"""The value model: a copy that starts at 0 and reads what stands before a token."""

import torch
from torch.testing import assert_close

from configs.schema import ModelConfig
from model.model_minillm import MiniLLM
from tests.tiny_run import lively
from trainer.rollout import Rollout
from trainer.value_model import ValueModel

SHAPE = ModelConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
).resolve()


def answers() -> Rollout:
    """Two answers, of 2 and 3 tokens, to prompts of 2 tokens."""
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9]])
    labels = torch.tensor([[-100, 7, 1, -100], [-100, 8, 9, 1]])
    return Rollout(ids, labels, torch.zeros(2, 3), torch.tensor([2, 3]))


def test_all_values_are_0_at_the_start() -> None:
    assert ValueModel(lively(MiniLLM(SHAPE))).values(answers()).tolist() == [0.0] * 5


def test_training_the_values_leaves_the_policy_alone() -> None:
    policy = lively(MiniLLM(SHAPE))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    model = ValueModel(policy)
    torch.nn.init.ones_(model.head.weight)
    model.values(answers()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert model.network.model.norm.weight.grad is not None
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())


def test_a_value_depends_on_what_stands_before_the_token_and_not_on_the_token() -> None:
    model = ValueModel(lively(MiniLLM(SHAPE)))
    torch.nn.init.normal_(model.head.weight)
    one, other = answers(), answers()
    other.input_ids[1, 3] = 50  # the second token of the second answer
    first, second = model.values(one), model.values(other)
    assert_close(first[:4], second[:4])
    assert first[4] != second[4]
