"""GPTQ: rounded after real inputs, a matrix gives more nearly what it gave."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from configs.schema import ModelConfig
from model.gptq import gptq, gptq_rounding, input_products
from model.quantize import decode, encode, load_quantized, matrix_names, quantized_state
from tests.model.test_quantize import SHAPES, error, lively


@pytest.fixture(autouse=True)
def no_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def correlated(rows: int, inputs: int) -> Tensor:
    """Inputs as a network makes them: a few directions hold most of them."""
    torch.manual_seed(0)
    return torch.randn(rows, inputs // 8) @ torch.randn(inputs // 8, inputs) + 0.3 * torch.randn(rows, inputs)


@pytest.mark.parametrize("inputs", [64, 72])
def test_outputs_on_such_inputs_are_nearer_than_with_the_nearest_steps(inputs: int) -> None:
    x, weight = correlated(2000, inputs), torch.randn(40, inputs)
    parts, plain = gptq(weight, x.T @ x), encode(weight, "int4")
    assert {name: part.shape for name, part in parts.items()} == {name: part.shape for name, part in plain.items()}
    assert {name: part.dtype for name, part in parts.items()} == {name: part.dtype for name, part in plain.items()}

    def off(parts: dict[str, Tensor]) -> float:
        return error(x @ decode(parts, "int4")[:, :inputs].T, x @ weight.T)

    assert off(parts) < 0.7 * off(plain)


def test_where_inputs_are_independent_nothing_can_be_made_up_for() -> None:
    weight = torch.randn(16, 64)
    parts, plain = gptq(weight, torch.eye(64)), encode(weight, "int4")
    assert all(torch.equal(parts[name], plain[name]) for name in plain)


def test_an_expert_that_the_text_never_reaches_takes_the_nearest_steps() -> None:
    weight = torch.randn(16, 64)
    parts, plain = gptq(weight, torch.zeros(64, 64)), encode(weight, "int4")
    assert all(torch.equal(parts[name], plain[name]) for name in plain)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_matrix_has_its_inputs_and_the_model_is_left_as_it_was(shape: ModelConfig) -> None:
    model = lively(shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.randint(0, shape.vocab_size, (10, 20))
    products = input_products(model, ids)
    assert products.keys() == set(matrix_names(model))
    for name, product in products.items():
        weight = model.get_parameter(name)
        assert product.shape == (*weight.shape[:-2], weight.shape[-1], weight.shape[-1])
    hidden, _ = model.hidden_states(ids)
    hidden = hidden.flatten(0, 1)
    assert_close(products["model.embed_tokens.weight"], hidden.T @ hidden, rtol=1e-4, atol=1e-3)
    if shape.use_moe:  # each token comes by as often as it has experts
        model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        seen: list[Tensor] = []
        model.hidden_states(ids)
        wanted = shape.num_experts_per_tok * (seen[0].T @ seen[0])
        assert_close(products["model.layers.0.mlp.experts.gate_up_proj"].sum(dim=0), wanted, rtol=1e-4, atol=1e-3)

    state, metadata = quantized_state(model, "int4", rounding=gptq_rounding(model, ids))
    loaded, _ = load_quantized(state, metadata, "weights")
    assert error(loaded(ids), model(ids)) < 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for name, module in model.named_modules() if not name.endswith("experts"))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_padding_counts_for_nothing_and_a_document_sees_itself_alone(shape: ModelConfig) -> None:
    model = lively(shape)
    first, second = torch.randint(0, shape.vocab_size, (2, 9)), torch.randint(0, shape.vocab_size, (2, 6))
    packed = torch.cat((first, second, torch.zeros(2, 3, dtype=torch.long)), dim=1)
    owners = torch.tensor([0] * 9 + [1] * 6 + [-1] * 3).expand(2, -1)
    # RoPE turns by distance alone, so the place of a document in its row changes nothing.
    apart = [input_products(model, ids) for ids in (first, second)]
    for name, product in input_products(model, packed, owners).items():
        assert_close(product, apart[0][name] + apart[1][name], rtol=1e-3, atol=1e-3)
