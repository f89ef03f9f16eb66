"""Rounded weights: near to float32, small in memory, and each row the same in any company."""

import ctypes
import gc
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from configs.schema import ModelConfig, UserError
from model import quantize as q
from model.likelihood import nats_of_logits, target_nats
from model.model_minillm import MiniLLM
from model.quantize import KINDS, decode, encode, load_quantized, packer, quantize, quantized_state
from tests.tiny_run import DENSE, MOE

SHAPES = {
    "dense": DENSE,
    "moe": MOE,
    "odd": replace(DENSE, vocab_size=101, hidden_size=24, num_attention_heads=3, num_key_value_heads=1, head_dim=8),
}
ERROR = {"fp16": 0.0005, "int8": 0.02, "int4": 0.11}
"""Kind -> the largest error of a product with normal numbers, as a share of its size."""
BATCHES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 32, 33, 64, 257)
HAS_FBGEMM = torch.backends.quantized.engine in ("x86", "fbgemm")


@pytest.fixture(autouse=True)
def no_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def afresh() -> Iterator[None]:
    """Nothing is known yet about what works here, and nothing will be afterwards."""
    packer.cache_clear()
    yield
    packer.cache_clear()


def lively(shape: ModelConfig, seed: int = 0) -> MiniLLM:
    """A model in which every weight matters: fresh output projections are zero."""
    torch.manual_seed(seed)
    model = MiniLLM(shape).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=shape.hidden_size**-0.5 if "embed" not in name else 1.0)
    return model


def matrix(outputs: int = 96, inputs: int = 512) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(outputs, inputs) / inputs**0.5


def error(y: Tensor, wanted: Tensor) -> float:
    return float((y - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


# --- one matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [16, 50, 96])
@pytest.mark.parametrize("inputs", [24, 32, 192, 512])
def test_a_product_is_near_that_of_float32_in_every_shape(kind: str, outputs: int, inputs: int) -> None:
    weight, x = matrix(outputs, inputs), torch.randn(9, inputs)
    parts = encode(weight, kind)
    y = packer(kind)(parts)(x)
    assert y.shape == (9, outputs)
    assert error(y, x @ weight.T) < ERROR[kind]
    # All that is lost beyond the rounding of the weights is the rounding of the inputs.
    assert error(y, x @ decode(parts, kind)[:, :inputs].T) < 0.016


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_is_rounded_to_the_nearest_step(kind: str) -> None:
    weight = matrix(8, 64)
    weight[3] = 0
    parts = encode(weight, kind)
    off = (decode(parts, kind) - weight).abs()
    if kind == "fp16":
        assert bool((off <= weight.abs() * 2**-11 + 1e-7).all())
    elif kind == "int8":
        assert bool((off <= parts["scale"][:, None] * 0.5001).all())
        assert int(parts[""].min()) >= -127  # symmetric: -128 has no counterpart
    else:
        scale, zero = (parts[name].float().repeat_interleave(32, dim=1) for name in ("scale", "zero"))
        within = (weight >= zero - 8 * scale) & (weight <= zero + 7 * scale)
        assert bool((off <= scale * 0.501)[within].all())
        # Some are cut off, so that all others get finer steps; together they lose less.
        low, high = (limit(weight.unflatten(1, (-1, 32)), dim=2, keepdim=True) for limit in (torch.amin, torch.amax))
        wide = (high - low) / 15
        rounded = ((weight.unflatten(1, (-1, 32)) - low) / wide.clamp_min(1e-9)).round() * wide + low
        assert float(off.square().sum()) < 0.9 * float((rounded.flatten(1) - weight).square().sum())
    assert float(decode(parts, kind)[3].abs().max()) < 1e-6


def test_half_precision_holds_its_largest_number_instead_of_infinity() -> None:
    parts = encode(torch.tensor([[1e6, -1e6]]), "fp16")
    assert decode(parts, "fp16").tolist() == [[65504.0, -65504.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_to_the_last_bit_in_every_batch_and_beside_anything(kind: str) -> None:
    product, row = packer(kind)(encode(matrix(), kind)), torch.randn(1, 512)
    alone = product(row)
    for batch in BATCHES:
        others = torch.randn(batch - 1, 512)
        assert torch.equal(product(torch.cat((row, others)))[:1], alone), batch
        assert torch.equal(product(torch.cat((others, row)))[-1:], alone), batch
    for neighbour in (float("nan"), float("inf"), 0.0):
        y = product(torch.cat((row, torch.full((3, 512), neighbour), row)))
        assert torch.equal(y[:1], alone)
        assert torch.equal(y[-1:], alone)
        assert neighbour == 0.0 or not bool(y[1:-1].isfinite().any())  # what is broken stays visible
    assert torch.equal(product(torch.cat((row, torch.randn(3, 512) * 20)))[:1], alone)


@pytest.mark.skipif(not HAS_FBGEMM, reason="without FBGEMM there is no such operation")
def test_a_row_loses_nothing_beside_one_that_is_20_times_larger() -> None:
    weight, x = matrix(), torch.randn(2, 512)
    x[1] *= 20
    assert error(packer("int8")(encode(weight, "int8"))(x)[:1], x[:1] @ weight.T) < 0.03
    # PyTorch's own operation measures one scale over the whole batch. That is why it is not used.
    parts = encode(weight, "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch._make_per_channel_quantized_tensor(
            parts[""], parts["scale"].double(), torch.zeros(96, dtype=torch.long), 0
        )
    theirs = torch.ops.quantized.linear_dynamic(x, torch.ops.quantized.linear_prepack(tensor, None), True)
    assert error(theirs[:1], x[:1] @ weight.T) > 0.1


def test_512_ones_times_ones_are_512() -> None:
    """AVX2 adds pairs of 8-bit products in 16 bits, and 8 bits of input overflow them."""
    assert packer("int8")(encode(torch.ones(16, 512), "int8"))(torch.ones(3, 512)).unique().tolist() == [512.0]


@pytest.mark.parametrize(
    ("kind", "packed_by", "operation"),
    [("int8", q.bf16_int8, "_weight_int8pack_mm"), ("int4", q.bf16_int4, "_weight_int4pack_mm_for_cpu")],
)
def test_kernels_that_are_slow_in_float32_are_given_bfloat16(
    kind: str, packed_by: q.Packer, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    product, seen = packed_by(encode(matrix(), kind)), []
    real = getattr(torch.ops.aten, operation)
    monkeypatch.setattr(torch.ops.aten, operation, lambda x, *rest: seen.append(x.dtype) or real(x, *rest))
    assert product(torch.randn(2, 512)).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_what_pytorch_says_about_its_quantized_tensors_does_not_reach_the_user(afresh: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packer("int8")(encode(matrix(), "int8"))


# --- machines that lack an operation --------------------------------------------------------------


def missing(parts: q.Parts) -> q.Product:
    raise RuntimeError("no kernel\nand more lines")


def wrong(parts: q.Parts) -> q.Product:
    """As AVX2 with 8 bits of input."""
    return lambda x: torch.full((len(x), len(parts[""])), 259.0)


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_fast_operation_the_result_is_that_of_the_rounded_weights(
    kind: str, afresh: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(q.PACKERS, kind, (missing, wrong))
    weight, x = matrix(50, 40), torch.randn(4, 40)
    parts = encode(weight, kind)
    for _ in range(3):
        assert_close(packer(kind)(parts)(x), x @ decode(parts, kind)[:, :40].T)
    said = capsys.readouterr().err
    assert said.count("\n") == 1  # once
    assert "missing: no kernel; wrong: 512 ones give 259" in said


def test_int8_without_fbgemm_takes_the_next_way_and_says_so(
    afresh: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(q.PACKERS, "int8", (missing, q.bf16_int8))
    assert packer("int8") is q.bf16_int8
    assert capsys.readouterr().err.startswith("warning: int8: PyTorch")
    weight, x = matrix(), torch.randn(4, 512)
    assert error(q.bf16_int8(encode(weight, "int8"))(x), x @ weight.T) < 0.02


def test_nothing_is_said_where_the_fastest_way_works(
    afresh: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(q.PACKERS, "int8", (q.bf16_int8,))
    assert packer("int8") is q.bf16_int8
    assert not capsys.readouterr().err


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_model_computes_with_the_weights_that_its_plain_numbers_stand_for(shape: ModelConfig, kind: str) -> None:
    model, rounded = lively(shape), quantize(lively(shape), kind)
    for name in q.matrix_names(model):  # float32 weights of the same values
        tensor = model.get_parameter(name)
        tensor.copy_(decode(encode(tensor, kind), kind)[..., : tensor.shape[-1]])
    ids = torch.randint(0, shape.vocab_size, (3, 20))
    assert torch.equal(rounded.model.embed_tokens(ids), model.model.embed_tokens(ids))
    if not shape.use_moe:  # a rounded input may send a token to another expert
        assert error(rounded(ids), model(ids)) < (0.001 if kind == "fp16" else 0.05)
    assert error(rounded(ids), model(ids)) < 0.3


@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "moe"])
def test_logits_of_int8_are_the_same_to_the_last_bit_in_every_batch(shape: ModelConfig) -> None:
    model = quantize(lively(shape), "int8")
    for length in (1, 9):
        row = torch.randint(0, shape.vocab_size, (1, length))
        alone = model(row)
        for batch in (2, 3, 8, 17):
            others = torch.randint(0, shape.vocab_size, (batch - 1, length))
            assert torch.equal(model(torch.cat((row, others)))[:1], alone), (length, batch)


def test_experts_agree_with_the_stacked_ones() -> None:
    model = lively(MOE)
    stacked = model.model.layers[0].mlp
    single = quantize(lively(MOE), "fp16").model.layers[0].mlp
    x = torch.randn(2, 7, MOE.hidden_size)
    assert_close(single(x)[0], stacked(x)[0], rtol=0.005, atol=0.005)
    assert_close(single(x)[1], stacked(x)[1])  # the router is not rounded
    assert_close(single(x[:, :0])[0], x[:, :0])  # no token at all


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_work_with_rounded_weights(kind: str) -> None:
    model = quantize(lively(DENSE), kind)
    ids = torch.randint(0, DENSE.vocab_size, (2, 10))
    whole, _ = model.hidden_states(ids)
    places = torch.arange(20)
    nats = nats_of_logits(model.logits, whole, ids, places, chunk_tokens=7)
    wanted = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="none")
    assert_close(nats, wanted)


def test_both_ways_to_likelihoods_agree() -> None:
    model, ids = lively(DENSE), torch.randint(0, DENSE.vocab_size, (2, 10))
    hidden, _ = model.hidden_states(ids)
    places = torch.tensor([0, 3, 17])
    ours = nats_of_logits(model.logits, hidden, ids, places, chunk_tokens=2)
    assert_close(ours, target_nats(hidden, model.output_weight, ids, places, chunk_tokens=2))


def test_inputs_of_autocast_keep_their_dtype() -> None:
    layer = quantize(lively(DENSE), "int8").model.layers[0].self_attn.qkv_proj
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer(torch.randn(2, 3, 32)).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "moe"])
def test_no_float_copy_of_a_matrix_is_kept(shape: ModelConfig, kind: str) -> None:
    model = lively(shape)
    floats = [weakref.ref(parameter) for name, parameter in model.named_parameters() if name in q.matrix_names(model)]
    assert len(floats) == 1 + shape.num_hidden_layers * (6 if shape.use_moe else 7)
    quantize(model, kind)
    gc.collect()
    assert not [1 for one in floats if one() is not None]
    assert {name.split(".")[-2] for name, _ in model.named_parameters()} <= {
        "input_layernorm",
        "post_attention_layernorm",
        "q_norm",
        "k_norm",
        "norm",
        "gate",
    }
    assert not any(parameter.requires_grad for parameter in model.parameters())


def resident_bytes() -> int:
    """Memory that this process holds and that is no file."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("kind", "share"), [("int8", 0.35), ("int4", 0.22), ("fp16", 0.58)])
def test_512_by_8_takes_this_share_of_the_memory_of_float32(kind: str, share: float) -> None:
    shape = ModelConfig(hidden_size=512, num_hidden_layers=8)
    with torch.device("meta"):
        in_float32 = 4 * MiniLLM(shape).num_parameters()
        wanted, metadata = quantized_state(MiniLLM(shape), kind)
    packer(kind)
    before = resident_bytes()
    state = {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in wanted.items()}
    model, _ = load_quantized(state, metadata, "weights")
    del state
    model(torch.zeros(1, 2, dtype=torch.long))
    assert (resident_bytes() - before) / in_float32 <= share + 0.01  # this process has other things in memory too


# --- plain numbers for a file ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_model_from_plain_numbers_equals_the_one_that_was_rounded_at_load(shape: ModelConfig, kind: str) -> None:
    model = lively(shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, metadata = quantized_state(model, kind, {"stage": "sft"})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # left as it was
    assert all(isinstance(text, str) for text in metadata.values())
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert q.is_quantized(metadata)
    assert not q.is_quantized({"format": "pt"})
    assert not q.is_quantized(None)
    loaded, manifest = load_quantized(state, metadata, "weights", rope_scaling_factor=1.0)
    assert manifest == {"stage": "sft"}
    assert loaded.config == model.config
    ids = torch.randint(0, shape.vocab_size, (2, 9))
    assert torch.equal(loaded(ids), quantize(lively(shape), kind)(ids))
    assert not any(tensor.is_meta for tensor in loaded.parameters())


def test_plain_numbers_take_as_many_bits_as_the_kind_says() -> None:
    shape = replace(DENSE, hidden_size=64, head_dim=16, vocab_size=6400)
    model = lively(shape)
    weights = sum(model.get_parameter(name).numel() for name in q.matrix_names(model))
    for kind, bits in (("fp16", 16), ("int8", 8.6), ("int4", 5)):
        state, _ = quantized_state(model, kind)
        packed = sum(tensor.nbytes for name, tensor in state.items() if "norm" not in name)
        assert packed * 8 / weights <= bits, kind


def test_a_damaged_file_is_refused_in_one_line() -> None:
    state, metadata = quantized_state(lively(DENSE), "int8")
    name = "model.layers.1.mlp.up_proj.weight"
    for broken in (
        {key: tensor for key, tensor in state.items() if key != f"{name}.scale"},
        state | {"model.more": torch.ones(1)},
        state | {name: state[name].short()},
        state | {name: state[name][1:]},
    ):
        with pytest.raises(UserError, match=r"^w\.safetensors: 1 tensors are missing, unknown, or of another shape"):
            load_quantized(broken, metadata, "w.safetensors")
    with pytest.raises(UserError, match="quantize = int3: not one of fp16, int8, int4"):
        load_quantized(state, metadata | {"quantize": "int3"}, "w.safetensors")


def test_another_device_than_the_cpu_is_refused_in_one_line() -> None:
    with torch.device("meta"):
        model = MiniLLM(DENSE)
    with pytest.raises(UserError, match="--quantize int8: runs on the CPU, and the model is on meta"):
        quantize(model, "int8")
    assert quantize(model, "none") is model
