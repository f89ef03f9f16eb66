"""The network: causal, exact against transformers, the same with and without its cache."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from configs.schema import ModelConfig, UserError
from model.model_minillm import KeyValueCache, MiniLLM

TINY = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
)
TINY_MOE = ModelConfig(
    vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    use_moe=True, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
)  # fmt: skip


def busy_model(config: ModelConfig) -> MiniLLM:
    """A model in which every weight matters: fresh output projections are zero."""
    torch.manual_seed(1)
    model = MiniLLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.1)
    return model


@pytest.mark.parametrize("width", [64, 192, 512, 768])
def test_untrained_loss_is_within_two_percent_of_ln_vocabulary(width: int) -> None:
    torch.manual_seed(0)
    model = MiniLLM(ModelConfig(hidden_size=width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    ids = torch.randint(0, 6400, (4, 64))
    loss = F.cross_entropy(model(ids)[:, :-1].reshape(-1, 6400), ids[:, 1:].reshape(-1))
    assert abs(loss.item() - math.log(6400)) < 0.02 * math.log(6400)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (ModelConfig(), 25.8),
        (ModelConfig(hidden_size=768, num_hidden_layers=16), 104.0),
        (ModelConfig(hidden_size=640, use_moe=True), 146.0),
    ],
)
def test_presets_have_the_parameters_they_are_named_after(config: ModelConfig, millions: float) -> None:
    with torch.device("meta"):
        assert MiniLLM(config).num_parameters() / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
def test_a_later_token_never_changes_an_earlier_logit(config: ModelConfig) -> None:
    model = busy_model(config)
    ids = torch.randint(0, 97, (2, 12))
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 97
    assert_close(model(ids)[:, :7], model(changed)[:, :7])
    assert not torch.allclose(model(ids)[:, 7:], model(changed)[:, 7:])


def test_a_document_reads_the_same_alone_and_packed_behind_another() -> None:
    model = busy_model(TINY)
    first, second = torch.randint(0, 97, (1, 5)), torch.randint(0, 97, (1, 7))
    packed = torch.cat([first, second], dim=1)
    document_ids = torch.tensor([[0] * 5 + [1] * 7])
    assert_close(model(packed, document_ids=document_ids)[:, 5:], model(second), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
def test_cached_and_full_forward_agree(config: ModelConfig) -> None:
    model = busy_model(config)
    ids = torch.randint(0, 97, (2, 10))
    cache = KeyValueCache.empty(model.config, 2, 10, like=model.output_weight)
    parts = [model.hidden_states(part, cache=cache)[0] for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:])]
    assert_close(torch.cat(parts, dim=1), model.hidden_states(ids)[0], atol=1e-5, rtol=1e-5)


def test_logits_equal_those_of_transformers_qwen3() -> None:
    transformers = pytest.importorskip("transformers")
    model = busy_model(TINY)
    shape = model.config
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=shape.head_dim, intermediate_size=64, rope_theta=shape.rope_theta,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            rms_norm_eps=shape.rms_norm_eps, tie_word_embeddings=True, attention_bias=False,
        )
    ).eval()  # fmt: skip
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    theirs.tie_weights()
    ids = torch.randint(0, 97, (2, 16))
    assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_every_expert_and_the_router_receive_gradient_at_top_one_too() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        use_moe=True, num_experts=4, num_experts_per_tok=1, moe_intermediate_size=48,
    )  # fmt: skip
    model = busy_model(config)
    model(torch.randint(0, 97, (4, 32))).square().sum().backward()
    mlp = model.model.layers[0].mlp
    assert mlp.gate.weight.grad.abs().sum() > 0
    assert all(gradient.abs().sum() > 0 for gradient in mlp.experts.down_proj.grad)


def test_balance_loss_of_a_row_does_not_depend_on_the_other_rows() -> None:
    model = busy_model(TINY_MOE)
    ids = torch.randint(0, 97, (3, 20))
    together = model.hidden_states(ids)[1]
    alone = torch.cat([model.hidden_states(ids[row : row + 1])[1] for row in range(3)])
    assert_close(together, alone)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "num_attention_heads"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, "multiple"),
        ({"use_moe": True, "num_experts": 2, "num_experts_per_tok": 3}, "num_experts"),
        ({"dropout": 1.0}, "dropout"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)
def test_an_impossible_shape_is_refused_with_the_field_named(values: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        ModelConfig(**values)
