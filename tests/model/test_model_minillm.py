"""The network: causal, and exact against transformers."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import lookup_backend
from torch.nn import functional as F
from torch.nn.attention import flex_attention
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import PRESETS, ModelConfig, UserError
from dataset.lm_dataset import target_places
from model import attention
from model.model_minillm import Experts, MiniLLM, MoE, rope_frequencies
from tests.tiny_run import DENSE, MOE
from trainer.objectives import NextToken

TINY = replace(DENSE, vocab_size=97, intermediate_size=64)
TINY_MOE = replace(MOE, vocab_size=97, moe_intermediate_size=48)


def busy_model(config: ModelConfig) -> MiniLLM:
    """A model in which every weight matters: fresh output projections are zero."""
    torch.manual_seed(1)
    model = MiniLLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.1)
    return model


class Operations(TorchDispatchMode):
    """Notes what Python and its backward pass ask torch for: names, and shapes of the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func.__name__, [value.shape for value in args if isinstance(value, Tensor)]))
        return func(*args, **kwargs or {})


def gradients(model: MiniLLM) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("shape", [*PRESETS.values(), {"hidden_size": 192}, {"hidden_size": 64}])
def test_untrained_loss_is_within_two_percent_of_ln_vocabulary(shape: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = MiniLLM(ModelConfig(**shape | {"num_hidden_layers": 2}))  # each block starts as the identity
    ids = torch.randint(0, 6400, (4, 64))
    loss = F.cross_entropy(model(ids)[:, :-1].reshape(-1, 6400), ids[:, 1:].reshape(-1))
    assert abs(loss.item() - math.log(6400)) < 0.02 * math.log(6400)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("minillm-26m", 25_830_912), ("minillm-104m", 104_034_048), ("minillm-moe-145m", 146_034_560)],
)
def test_presets_have_the_parameters_they_are_named_after(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert MiniLLM(ModelConfig(**PRESETS[name])).num_parameters() == parameters


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [True, False])
def test_rows_on_a_cpu_have_the_gradients_of_pytorchs_attention(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, packed: bool
) -> None:
    model = busy_model(TINY)
    ids = torch.randint(0, 97, (2, 12))
    document_ids = torch.tensor([[0] * 5 + [1] * 7] * 2) if packed else None
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), Operations() as operations:
        model(ids, document_ids=document_ids).float().square().sum().backward()
    assert not [name for name, _ in operations.calls if "attention" in name]  # blocked, by matrix products
    ours = gradients(model)
    model.zero_grad()
    monkeypatch.setattr(
        attention,
        "blocked_attention",
        lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
    )
    model(ids, document_ids=document_ids).square().sum().backward()
    assert F.cosine_similarity(ours, gradients(model), dim=0) > (0.999 if dtype == torch.bfloat16 else 1 - 1e-6)


def new_documents(step: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    """Tokens and document numbers of one step, (rows, 150), other ones each time.

    The first row ends in padding.
    """
    torch.manual_seed(step)
    document_ids = torch.randint(0, 4, (rows, 150)).sort(dim=1).values
    document_ids[0, 110 + step :] = -1
    return torch.randint(0, 97, (rows, 150)), document_ids


def learn(model: MiniLLM, ids: Tensor, document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and gradients. The logits of padding are in neither, as in a loss."""
    model.zero_grad()
    logits = model(ids, document_ids=document_ids)[document_ids >= 0].float()
    logits.square().mean().backward()
    return logits.detach(), gradients(model)


def without_blocks(
    model: MiniLLM, patch: pytest.MonkeyPatch, ids: Tensor, document_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """The same by a mask of all pairs (B, 1, T, T)."""
    with patch.context() as context:
        context.setattr(attention, "flex_works", lambda *arguments, **options: False)
        return learn(model, ids, document_ids)


@pytest.mark.parametrize("compiled", ["attention", "block"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_learns_as_the_dense_mask_and_compiles_nothing_for_new_documents(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, checkpointing: bool, compiled: str
) -> None:
    if not hasattr(flex_attention, "_validate_device"):
        pytest.skip("FlexAttention's refusal of gradients on a CPU cannot be lifted in this PyTorch")
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        """Operation by operation: PyTorch makes no backward kernel for a CPU."""
        compilations.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    dense = busy_model(TINY).train()
    model = copy.deepcopy(dense)
    model.gradient_checkpointing = checkpointing
    monkeypatch.setattr(attention, "flex_works", lambda *arguments, **options: True)
    monkeypatch.setattr(
        attention, "_compiled_flex_attention", lambda: torch.compile(flex_attention.flex_attention, backend=backend)
    )
    if compiled == "block":
        model.compile_blocks(backend=backend)
    for step, rows in enumerate((2, 2, 3, 5)):
        ids, document_ids = new_documents(step, rows)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found = learn(model, ids, document_ids)
            wanted = without_blocks(dense, monkeypatch, ids, document_ids)
        assert all(
            F.cosine_similarity(ours, theirs, dim=-1).min() > (0.999 if dtype == torch.bfloat16 else 1 - 1e-5)
            for ours, theirs in zip(found, wanted, strict=True)
        )
        assert len(compilations) == (1 if rows == 2 else 2)  # for all layers; the second is for any number of rows


def test_trying_flex_attention_leaves_no_gradient_and_draws_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(
        attention, "flex_works", lambda device, shape, dtype, trial, **options: bool(tried.append(trial()))
    )
    monkeypatch.setattr(
        attention,
        "document_attention",
        lambda q, k, v, documents: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    )
    model, (ids, document_ids) = busy_model(replace(TINY, dropout=0.5)).train(), new_documents(0)
    state = torch.get_rng_state()
    model.hidden_states(ids, document_ids=document_ids)
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    monkeypatch.setattr(attention, "flex_works", lambda *arguments, **options: False)
    model.hidden_states(ids, document_ids=document_ids)
    assert tried and all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(drawn, torch.get_rng_state())


def test_compiled_blocks_take_flex_attention_untried_unless_they_failed_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    class Asked(Exception):
        pass

    def flex_works(*arguments: object, untried: bool) -> bool:
        asked.append(untried)
        raise Asked

    monkeypatch.setattr(attention, "flex_works", flex_works)
    model, (ids, document_ids) = busy_model(TINY).train(), new_documents(0)
    for compiled, tries_attention in ((False, False), (True, False), (True, True)):
        model.compile_blocks(compiled)
        model.tries_attention = tries_attention
        assert model.is_compiled is compiled
        with pytest.raises(Asked):
            model.hidden_states(ids, document_ids=document_ids)
    assert asked == [False, True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager blocks", "compiled blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_packed_documents_learn_as_with_the_dense_mask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: torch.dtype, compiled: bool
) -> None:
    torch._dynamo.reset()
    config = replace(TINY, hidden_size=128, intermediate_size=256)
    dense = busy_model(config).train().cuda()
    model = copy.deepcopy(dense)
    if compiled:
        model.compile_blocks()
    used = []
    blocks = attention.document_blocks
    monkeypatch.setattr(attention, "document_blocks", lambda ids: used.append(ids) or blocks(ids))
    for step, rows in enumerate((2, 2, 3)):  # a last batch of another size too
        ids, document_ids = (tensor.cuda() for tensor in new_documents(step, rows))
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            found = learn(model, ids, document_ids)
            wanted = without_blocks(dense, monkeypatch, ids, document_ids)
        assert used.pop() is document_ids
        assert all(
            F.cosine_similarity(ours, theirs, dim=-1).min() > (0.995 if dtype == torch.bfloat16 else 1 - 1e-4)
            for ours, theirs in zip(found, wanted, strict=True)
        )
    assert "FlexAttention" not in capsys.readouterr().err


def as_in_transformers(config: ModelConfig) -> dict[str, Any]:
    """A shape as keyword arguments of transformers' Qwen3Config and Qwen3MoeConfig."""
    shape = config.resolve()
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_scaling_factor != 1.0:
        rope |= {
            "rope_type": "yarn",
            "factor": shape.rope_scaling_factor,
            "original_max_position_embeddings": shape.original_max_position_embeddings,
        }
    names = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "max_position_embeddings", "rope_theta", "rms_norm_eps", "num_experts",
        "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
    )  # fmt: skip
    return {name: getattr(shape, name) for name in names} | {
        "rope_parameters": rope,
        "rope_scaling": rope,
        "tie_word_embeddings": True,
        "attention_bias": False,
    }


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, rope_scaling_factor=4.0, original_max_position_embeddings=16)],
    ids=["plain", "yarn"],
)
def test_logits_equal_those_of_transformers_qwen3(config: ModelConfig) -> None:
    transformers = pytest.importorskip("transformers")
    model = busy_model(config)
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**as_in_transformers(config))).eval()
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    theirs.tie_weights()
    ids = torch.randint(0, 97, (2, 64))  # with YaRN: four times as long as the original
    assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_logits_equal_those_of_transformers_qwen3_moe_read_from_a_folder(top_k: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file  # comes with transformers

    config = replace(TINY_MOE, num_experts_per_tok=top_k)
    model = busy_model(config)
    tensors = {}
    for name, tensor in model.state_dict().items():  # in the files each expert has its own three matrices
        place, _, matrix = name.rpartition(".experts.")
        for number, of_expert in enumerate(tensor if place else []):
            parts = of_expert.chunk(2) if matrix == "gate_up_proj" else (of_expert,)
            names = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else ("down_proj",)
            for part_name, part in zip(names, parts, strict=True):
                tensors[f"{place}.experts.{number}.{part_name}.weight"] = part.contiguous()
        if not place:
            tensors[name] = tensor
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    transformers.Qwen3MoeConfig(**as_in_transformers(config)).save_pretrained(tmp_path)
    theirs = transformers.Qwen3MoeForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 97, (2, 16))
    assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_yarn_stretches_pairs_between_32_turns_and_one_linearly() -> None:
    config = replace(TINY, head_dim=64, rope_theta=1e6, original_max_position_embeddings=2048).resolve()
    plain, stretched = (
        rope_frequencies(replace(config, rope_scaling_factor=factor), torch.device("cpu")) for factor in (1.0, 4.0)
    )
    # In 2,048 tokens pair p turns 2048 / (2 pi 1e6**(p / 32)) times: 32 times at p = 5.4, once at
    # p = 13.4. From the pair below the first to the one above the second the stretched share climbs
    # by a ninth a pair.
    share = torch.tensor([min(max((pair - 5) / 9, 0.0), 1.0) for pair in range(32)])
    assert_close(stretched / plain, 1 - share * 0.75)


def test_a_longer_context_is_refused_while_training_and_only_then() -> None:
    model = MiniLLM(replace(TINY, rope_scaling_factor=4.0))
    ids = torch.randint(0, 97, (1, 8))
    with pytest.raises(UserError, match="rope_scaling_factor = 4"):
        model.train()(ids)
    model.eval()(ids)
    with torch.no_grad():
        model.train()(ids)


def one_expert_after_the_other(experts: Experts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What the experts compute, one token and one expert at a time."""
    y = torch.zeros_like(x)
    for token, slot in ((token, slot) for token in range(len(x)) for slot in range(chosen.shape[1])):
        expert = chosen[token, slot]
        gate, up = (experts.gate_up_proj[expert] @ x[token]).chunk(2)
        y[token] += weights[token, slot] * (experts.down_proj[expert] @ (F.silu(gate) * up))
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chosen", [[[0, 1], [2, 3], [1, 0]], [[2, 0], [2, 0], [2, 0]]], ids=["spread", "two of four"])
def test_grouped_experts_equal_one_expert_after_the_other(chosen: list[list[int]], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    experts = Experts(4, 32, 48)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, weights = torch.randn(3, 32, requires_grad=True), torch.rand(3, 2, requires_grad=True)
    inputs = (x, weights, *experts.parameters())
    slow = one_expert_after_the_other(experts, x, torch.tensor(chosen), weights)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        fast = experts(x, torch.tensor(chosen), weights)
    assert fast.dtype == dtype
    tolerance = {"atol": 0.05, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    assert_close(fast.float(), slow, **tolerance)
    direction = torch.randn(3, 32)
    for ours, theirs in zip(
        torch.autograd.grad((fast.float() * direction).sum(), inputs),
        torch.autograd.grad((slow * direction).sum(), inputs),
        strict=True,
    ):
        assert_close(ours, theirs, **tolerance)


def test_more_experts_are_no_more_operations() -> None:
    counts = []
    for num_experts in (4, 32):
        model = busy_model(replace(TINY_MOE, num_experts=num_experts))
        with Operations() as operations:
            model(torch.randint(0, 97, (2, 16))).sum().backward()
        counts.append(len(operations.calls))
    assert counts[0] == counts[1]


def test_every_expert_and_the_router_receive_gradient_at_top_one_too() -> None:
    model = busy_model(replace(TINY_MOE, num_experts_per_tok=1))
    model(torch.randint(0, 97, (4, 32))).square().sum().backward()  # without the balance loss
    for block in model.model.layers:
        assert block.mlp.gate.weight.grad.abs().sum() > 0
        assert all(gradient.abs().sum() > 0 for gradient in block.mlp.experts.down_proj.grad)


def test_the_router_decides_in_float32_under_autocast() -> None:
    moe = MoE(TINY_MOE)
    torch.nn.init.normal_(moe.gate.weight)
    seen = []
    moe.experts.forward = lambda x, chosen, weights: seen.append(weights) or x  # type: ignore[method-assign]
    x = torch.randn(1, 8, 32)
    moe(x)
    with torch.autocast("cpu", torch.bfloat16):
        moe(x)
    assert torch.equal(*seen)


def test_balance_loss_is_one_where_no_expert_is_preferred_and_more_where_one_is() -> None:
    moe = MoE(TINY_MOE)
    moe.experts.forward = lambda x, chosen, weights: x  # type: ignore[method-assign]
    x = torch.ones(2, 6, 32)
    torch.nn.init.zeros_(moe.gate.weight)
    assert_close(moe(x)[1], torch.ones(2))
    moe.gate.weight.data[0] = 10.0  # everyone's first choice, with all the probability; another one is the second
    assert_close(moe(x)[1], torch.full((2,), TINY_MOE.num_experts / TINY_MOE.num_experts_per_tok))


def test_balance_loss_of_a_row_does_not_depend_on_the_other_rows() -> None:
    model = busy_model(TINY_MOE)
    ids = torch.randint(0, 97, (3, 20))
    together = model.hidden_states(ids)[1]
    alone = torch.cat([model.hidden_states(ids[row : row + 1])[1] for row in range(3)])
    assert_close(together, alone)


def test_balance_loss_does_not_count_padding() -> None:
    model = busy_model(TINY_MOE)
    ids = torch.randint(0, 97, (1, 20))
    document_ids = torch.tensor([[0] * 13 + [-1] * 7])
    padded = model.hidden_states(ids, document_ids=document_ids)[1]
    assert_close(padded, model.hidden_states(ids[:, :13])[1])
    assert_close(model.hidden_states(ids, document_ids=torch.full((1, 20), -1))[1], torch.zeros(1))


def test_one_batch_of_eight_rows_and_eight_of_one_learn_the_same() -> None:
    model = busy_model(replace(TINY_MOE, router_aux_loss_coef=1.0)).train()
    document_ids = torch.tensor([[0] * 9 + [1] * 7] * 5 + [[0] * (16 - row) + [-1] * row for row in range(3)])
    labels = torch.randint(0, 97, (8, 16)).masked_fill(document_ids < 0, -100)
    labels[2:4, :11] = -100
    rows = {"input_ids": torch.randint(0, 97, (8, 16)), "labels": labels, "document_ids": document_ids}
    objective, num_targets = NextToken(), len(target_places(labels))
    found = []
    for size in (8, 1):
        model.zero_grad()
        total = torch.zeros(())
        for start in range(0, 8, size):
            part = {name: tensor[start : start + size] for name, tensor in rows.items()}
            loss = objective.loss_sum(model, part | {"target_places": target_places(part["labels"])}) / num_targets
            loss.backward()
            total += loss.detach()
        found.append((total, gradients(model)))
    assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_keeps_less_and_changes_no_gradient_nor_dropout(config: ModelConfig, dtype: torch.dtype) -> None:
    model = busy_model(replace(config, dropout=0.3)).train()
    ids, document_ids = torch.randint(0, 97, (2, 12)), torch.tensor([[0] * 5 + [1] * 7] * 2)
    found, kept = [], []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(5)
        saved: list[Tensor] = []

        def keep(tensor: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(tensor)
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            hidden, balance = model.hidden_states(ids, document_ids=document_ids)
        loss = hidden.float().square().sum() + (balance.sum() if balance is not None else 0.0)
        loss.backward()
        found.append(gradients(model))
        kept.append(sum(tensor.numel() for tensor in saved))
    assert torch.equal(found[0], found[1])
    assert kept[1] < kept[0] / 4


def test_dropout_follows_the_seed_and_is_off_outside_training() -> None:
    model = busy_model(replace(TINY, dropout=0.5))
    ids = torch.randint(0, 97, (2, 8))
    without = model(ids)
    assert torch.equal(without, model(ids))
    model.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model(ids))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], without)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "num_attention_heads"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, "multiple"),
        ({"use_moe": True, "num_experts": 2, "num_experts_per_tok": 3}, "num_experts"),
        ({"dropout": 1.0}, "dropout"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"use_moe": True, "moe_intermediate_size": 100}, "moe_intermediate_size = 100: must be a multiple of 8"),
        ({"rope_scaling_factor": 0.5}, "rope_scaling_factor"),
    ],
)
def test_an_impossible_shape_is_refused_with_the_field_named(values: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        ModelConfig(**values)
