"""Weights of 16, 8 or 4 bits for a CPU: how they are rounded, multiplied, kept as plain numbers.

Every private operation of PyTorch that this needs stands here. The norms and the router stay in
float32: they are small, and a rounded router sends tokens to other experts.

Shapes: O outputs of a matrix, I inputs, G groups of 32 inputs, N rows, E experts, V vocabulary, C
hidden size, k experts a token.
Sources: GPTQ arXiv:2210.17323.
"""

import functools
import itertools
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.load import from_mapping
from configs.messages import warn
from configs.schema import ModelConfig, UserError
from model.device import compute_dtype
from model.model_minillm import MLP, Attention, Experts, MiniLLM, Router, TiedEmbedding

KINDS = ("fp16", "int8", "int4")
"""How a weight can be kept: a float of 16 bits; 8 bits and a scale for each output; 4 bits and a
scale and a middle for each 32 inputs."""
NONE = "none"
"""`--quantize none`: float32, as the weight file holds it."""

GROUP = 32
"""Inputs that share a scale in int4. The kernel takes 32 or more; fewer lose less."""
ENDS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a group's smallest and largest weight at which int4's steps may end."""
LARGEST_HALF = torch.finfo(torch.float16).max
TINY = 1e-30
"""Stands for the scale of a row of zeros, so that nothing is divided by zero."""

Parts = dict[str, Tensor]
"""A rounded matrix (..., O, I) as plain numbers. "" are its values: fp16 (..., O, I) float16; int8
(..., O, I); int4 (..., O, I/2) uint8, two values a byte, the first in the low half. int8 has
"scale" (..., O) float32, int4 "scale" and "zero" (..., O, G) bfloat16. A last group of int4 that is
not full is filled with zeros."""
Product = Callable[[Tensor], Tensor]
"""(N, I) float32 -> (N, O) float32. Each row is computed for itself, whatever lies beside it."""
Rounding = Callable[[str, Tensor], Parts]
"""Name of a parameter and its numbers (..., O, I) -> their parts."""
EMBEDDING = "model.embed_tokens"
"""The module that is the embedding and the output matrix."""
Packer = Callable[[Parts], Product]
"""Parts of one matrix (O, I) -> its product, in the layout that a kernel reads."""


# --- rounding -------------------------------------------------------------------------------------


def encode(weight: Tensor, kind: str) -> Parts:
    """Round a matrix, or several of one shape.

    Args: weight (..., O, I) float32. kind: one of KINDS.
    """
    if kind == "fp16":
        return {"": weight.clamp(-LARGEST_HALF, LARGEST_HALF).half()}
    if kind == "int8":
        scale = weight.abs().amax(dim=-1).clamp_min(TINY) / 127  # (..., O)
        return {"": (weight / scale[..., None]).round().to(torch.int8), "scale": scale}
    groups = F.pad(weight, (0, -weight.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))  # (..., O, G, 32)
    scale, zero = group_range(groups)
    return {"": two_in_a_byte(nearest(groups, scale, zero).flatten(-2)), "scale": scale, "zero": zero}


def decode(parts: Parts, kind: str) -> Tensor:
    """The numbers that a rounded matrix stands for, (..., O, I) float32; int4 with its filling."""
    values = parts[""]
    if kind == "fp16":
        return values.float()
    if kind == "int8":
        return values.float() * parts["scale"][..., None]
    steps = torch.stack((values & 15, values >> 4), dim=-1).flatten(-2).float() - 8  # (..., O, I)
    groups = steps.unflatten(-1, (-1, GROUP)) * parts["scale"].float()[..., None] + parts["zero"].float()[..., None]
    return groups.flatten(-2)


def group_range(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and middle of each group, (..., G) bfloat16, for values of (step - 8) * scale + middle.

    From the smallest weight to the largest, the 16 steps are wide. Where both ends move inwards, a
    few weights are cut off and all others get finer steps. The pair of ends with the smallest
    squared error is taken. Scale and middle are rounded before the steps are chosen, so that a
    step makes up for it.
    Args: groups (..., G, 32).
    """
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    least, best_scale, best_zero = torch.full_like(low, torch.inf), low.bfloat16(), low.bfloat16()
    for low_share, high_share in itertools.product(ENDS, ENDS):
        scale = ((high * high_share - low * low_share) / 15).clamp_min(TINY).bfloat16()
        zero = (low * low_share + 8 * scale.float()).bfloat16()
        steps = nearest(groups, scale, zero).float() - 8
        error = steps.mul_(scale.float()[..., None]).add_(zero.float()[..., None]).sub_(groups).square_().sum(dim=-1)
        better = error < least
        least = torch.where(better, error, least)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def nearest(groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The nearest of the 16 steps, (..., G, 32) uint8."""
    steps = (groups - zero.float()[..., None]) / scale.float()[..., None] + 8
    return steps.round().clamp(0, 15).to(torch.uint8)


def two_in_a_byte(steps: Tensor) -> Tensor:
    """(..., I) uint8 below 16 -> (..., I/2)."""
    return steps[..., ::2] | steps[..., 1::2] << 4


# --- multiplying ----------------------------------------------------------------------------------


def fbgemm_int8(parts: Parts) -> Product:
    """Products of 8-bit numbers (FBGEMM, x86).

    The operation takes one scale for all rows: PyTorch's own `linear_dynamic` measures it over the
    whole batch, so that a large row beside a small one wipes it out. Here each row is divided by
    its largest number before and multiplied by it after. Inputs have 7 bits: AVX2 adds pairs of
    products in 16 bits, which 8 bits overflow.
    """
    values, scale = parts[""], parts["scale"].double()
    zeros = torch.zeros(len(scale), dtype=torch.long)
    with warnings.catch_warnings():
        # PyTorch 2.13 and later say that such tensors will be removed. `packer` finds out when.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
        weight = torch._make_per_channel_quantized_tensor(values, scale, zeros, 0)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    operation = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def product(x: Tensor) -> Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(TINY)  # (N, 1)
        y: Tensor = operation(x / largest, 1 / 63, 64, packed)
        return y.mul_(largest)

    return product


def bf16_int8(parts: Parts) -> Product:
    """Products of bfloat16 inputs with 8-bit weights: for other CPUs.

    Float32 inputs are slow here.
    """
    values, scale = parts[""], parts["scale"]
    ones = torch.ones(len(values), dtype=torch.bfloat16)  # the scale would be rounded to bfloat16 too

    def product(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.bfloat16(), values, ones)
        return y.float() * scale

    return product


def bf16_int4(parts: Parts) -> Product:
    """Products of bfloat16 inputs with 4-bit weights. Float32 inputs are slow here."""
    values = parts[""]
    outputs, inputs = values.shape[0], 2 * values.shape[1]
    # The kernel takes outputs by the 32: rows of zeros are added, and their results cut off.
    steps = torch.stack((values & 15, values >> 4), dim=-1).flatten(-2).int()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(F.pad(steps, (0, 0, 0, -outputs % 32)), 1)
    scale_and_zero = torch.stack((parts["scale"], parts["zero"]), dim=-1).transpose(0, 1)  # (G, O, 2)
    scale_and_zero = F.pad(scale_and_zero, (0, 0, 0, -outputs % 32)).contiguous()

    def product(x: Tensor) -> Tensor:
        x = F.pad(x, (0, inputs - x.shape[-1])).bfloat16()
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scale_and_zero)
        return y[:, :outputs].float()

    return product


def fbgemm_fp16(parts: Parts) -> Product:
    """Products of float32 inputs with float16 weights, which become float32 in the CPU's
    registers."""
    packed = torch.ops.quantized.linear_prepack_fp16(parts[""].float(), None)
    operation = torch.ops.quantized.linear_dynamic_fp16

    def product(x: Tensor) -> Tensor:
        y: Tensor = operation(x, packed)
        return y

    return product


def plain(kind: str, parts: Parts) -> Product:
    """The float32 weight made anew for each product: slow, and right on every machine."""
    return lambda x: F.linear(x, decode(parts, kind)[:, : x.shape[-1]])


PACKERS: dict[str, tuple[Packer, ...]] = {
    "fp16": (fbgemm_fp16,),
    "int8": (fbgemm_int8, bf16_int8),
    "int4": (bf16_int4,),
}
"""Kind -> what can make its products, the fastest first."""


@functools.cache
def packer(kind: str) -> Packer:
    """The fastest way to multiply that works on this machine; a line on stderr where it is not the
    first one."""
    reasons = []
    for candidate in PACKERS[kind]:
        reason = _fault(candidate, kind)
        if not reason:
            break
        reasons.append(f"{candidate.__name__}: {reason}")
    else:
        candidate = functools.partial(plain, kind)
    if reasons:
        warn(
            f"{kind}: PyTorch {torch.__version__} multiplies such weights more slowly on this CPU ({'; '.join(reasons)}).",
            "此处没有该格式的快速算子，改用较慢的实现",
        )
    return candidate


def _fault(candidate: Packer, kind: str) -> str:
    """What is wrong with this way here; empty where it works.

    A name alone tells little: an operation may lack its kernel, or overflow on this CPU. So 512
    ones are multiplied by 512 ones, the sum that 8 bits get wrong without VNNI.
    """
    try:
        y = candidate(encode(torch.ones(32, 512), kind))(torch.ones(2, 512))
    except Exception as error:  # whatever a private operation may raise
        return str(error).split("\n", 1)[0][:120] or type(error).__name__
    return "" if torch.allclose(y, torch.full((2, 32), 512.0), rtol=0.02) else f"512 ones give {y[0, 0].item():g}"


# --- the model ------------------------------------------------------------------------------------


class QuantizedLinear(nn.Module):
    """A linear layer of rounded weights, without a bias."""

    def __init__(self, parts: Parts, kind: str) -> None:
        super().__init__()
        self.product = packer(kind)(parts)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), in the dtype of the products around it."""
        y = self.product(x.flatten(0, -2).float().contiguous())
        return y.unflatten(0, x.shape[:-1]).to(compute_dtype(x))


class FusedAttention(Attention):
    """Attention whose queries, keys and values come from one product of rounded weights."""

    def __init__(self, old: Attention, qkv: QuantizedLinear, output: QuantizedLinear) -> None:
        nn.Module.__init__(self)  # not Attention's: it would make matrices
        self.layer, self.head_dim = old.layer, old.head_dim
        self.num_heads, self.num_kv_heads = old.num_heads, old.num_kv_heads
        self.qkv_proj = qkv
        self.add_module("o_proj", output)
        self.q_norm, self.k_norm = old.q_norm, old.k_norm

    @property
    def output(self) -> QuantizedLinear:
        """`o_proj`, as what it is here."""
        assert isinstance(self.o_proj, QuantizedLinear)
        return self.o_proj

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values: (B, T, C) -> (B, T, H D), (B, T, K D) twice."""
        sizes = [heads * self.head_dim for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        return self.qkv_proj(x).split(sizes, dim=-1)


class FusedMLP(nn.Module):
    """SwiGLU whose gate and up come from one product of rounded weights."""

    def __init__(self, gate_up: QuantizedLinear, down: QuantizedLinear) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up, down

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        y: Tensor = self.down_proj(F.silu(gate) * up)
        return y


class QuantizedEmbedding(nn.Module):
    """The embedding, packed as the output matrix and plain as the table in which tokens are looked
    up."""

    def __init__(self, parts: Parts, kind: str, hidden_size: int) -> None:
        super().__init__()
        self.table, self.kind, self.hidden_size = parts, kind, hidden_size
        self.output = QuantizedLinear(parts, kind)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C) float32."""
        rows = {name: part[input_ids] for name, part in self.table.items()}
        return decode(rows, self.kind)[..., : self.hidden_size]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        y: Tensor = self.output(hidden)
        return y


class RowRouter(nn.Module):
    """The router, not rounded, one expert after the other.

    A product of float matrices may add up a row in another order when more rows lie beside it. Then
    a token's weights would depend on its neighbours, in their last bit.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)  # (E, C)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, E) float32."""
        return torch.stack([(x.float() * expert).sum(dim=-1) for expert in self.weight], dim=-1)


class QuantizedExperts(nn.Module):
    """The SwiGLUs of all experts."""

    def __init__(self, gate_up: Parts, down: Parts, kind: str) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = (
            nn.ModuleList(
                QuantizedLinear({name: part[expert] for name, part in parts.items()}, kind)
                for expert in range(len(parts[""]))
            )
            for parts in (gate_up, down)
        )

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of each token's experts.

        Args: x (N, C). chosen (N, k): numbers of the experts. weights (N, k). Returns: (N, C).
        """
        y = x.new_empty(*chosen.shape, x.shape[-1], dtype=compute_dtype(x))  # (N, k, C)
        for expert in chosen.unique().tolist():
            rows, choices = (chosen == expert).nonzero(as_tuple=True)
            gate, up = self.gate_up_proj[expert](x[rows]).chunk(2, dim=-1)
            y[rows, choices] = self.down_proj[expert](F.silu(gate) * up)
        return (y * weights[..., None].to(y.dtype)).sum(dim=1)


def quantize(model: MiniLLM, kind: str) -> MiniLLM:
    """Round the matrices of a model where it stands, embedding and experts included.

    One after the other, so that no second copy of the model exists. No float copy is kept, and the
    model can no longer be trained.
    Args: kind: `none` or one of KINDS. Raises: UserError where the model is not on the CPU.
    """
    if kind == NONE:
        return model
    if model.device.type != "cpu":
        raise UserError(
            f"--quantize {kind}: runs on the CPU, and the model is on {model.device}. Add --device cpu.",
            "只能在 CPU 上使用：请加 --device cpu",
        )
    _pack(model, kind, lambda name: encode(model.get_parameter(name).detach(), kind))
    return model.requires_grad_(False).eval()


def matrix_names(model: MiniLLM) -> list[str]:
    """Names of the parameters that are rounded: all but those of norms and routers."""
    return [
        f"{name}.{weight}"
        for name, module in model.named_modules()
        if isinstance(module, Experts | TiedEmbedding) or (isinstance(module, nn.Linear) and name.endswith("_proj"))
        for weight, _ in module.named_parameters()
    ]


def _pack(model: MiniLLM, kind: str, parts_of: Callable[[str], Parts]) -> None:
    """Put products of rounded weights in the place of all matrices, one block after the other.

    Args: parts_of: name of a parameter -> its parts.
    """

    def linear(*names: str) -> QuantizedLinear:
        """One product of matrices that read the same input: their outputs one after the other."""
        parts = [parts_of(f"{name}.weight") for name in names]
        return QuantizedLinear({part: torch.cat([one[part] for one in parts]) for part in parts[0]}, kind)

    embedding = QuantizedEmbedding(parts_of(f"{EMBEDDING}.weight"), kind, model.config.hidden_size)
    model.set_submodule(EMBEDDING, embedding)
    for number in range(model.config.num_hidden_layers):
        at = f"model.layers.{number}.self_attn"
        attention = model.get_submodule(at)
        assert isinstance(attention, Attention)
        qkv = linear(f"{at}.q_proj", f"{at}.k_proj", f"{at}.v_proj")
        model.set_submodule(at, FusedAttention(attention, qkv, linear(f"{at}.o_proj")))
        at = f"model.layers.{number}.mlp"
        if isinstance(model.get_submodule(at), MLP):
            model.set_submodule(at, FusedMLP(linear(f"{at}.gate_proj", f"{at}.up_proj"), linear(f"{at}.down_proj")))
        else:
            gate_up, down = (parts_of(f"{at}.experts.{name}") for name in ("gate_up_proj", "down_proj"))
            model.set_submodule(f"{at}.experts", QuantizedExperts(gate_up, down, kind))
    _free_routers(model)


def _free_routers(model: MiniLLM) -> None:
    """Make each token's experts independent of the tokens beside it."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Router):
            model.set_submodule(name, RowRouter(module.weight))


# --- plain numbers for a file ---------------------------------------------------------------------


def quantized_state(
    model: MiniLLM, kind: str, manifest: Mapping[str, Any] | None = None, rounding: Rounding | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a quantized file, and its metadata: text by name, as safetensors keeps it.

    A rounded matrix has the name that it has in float32, its scales that name with `.scale` or
    `.zero` behind it (see Parts). The rest is float32. The packed form is not stored: it differs
    from machine to machine.
    Args: model: in float32; it stays as it is. kind: one of KINDS. manifest: how the weights were
    made. rounding: another than `encode`, as that of model/gptq.py for int4.
    """
    rounded = set(matrix_names(model))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in rounded}
    for name in matrix_names(model):
        weight = model.get_parameter(name).detach()
        parts = rounding(name, weight) if rounding else encode(weight, kind)
        for part, values in parts.items():
            state[f"{name}.{part}".rstrip(".")] = values
    metadata = {"format": "pt", "quantize": kind}
    metadata |= {"config": json.dumps(asdict(model.config)), "manifest": json.dumps(dict(manifest or {}))}
    return state, metadata


def is_quantized(metadata: Mapping[str, str] | None) -> bool:
    """Whether a safetensors file with this metadata is one of ours with rounded weights."""
    return metadata is not None and {"quantize", "config", "manifest"} <= metadata.keys()


def load_quantized(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], source: str, *, rope_scaling_factor: float = 1.0
) -> tuple[MiniLLM, dict[str, Any]]:
    """The model and the manifest of a quantized file; nothing is made in float32.

    Args: state, metadata: from `quantized_state`. source: the file, for messages.
    Raises: UserError when a tensor is missing, unknown, or of another shape or dtype.
    """
    kind = metadata["quantize"]
    if kind not in KINDS:
        raise UserError(
            f"{source}: quantize = {kind}: not one of {', '.join(KINDS)}. Convert the weights again.",
            "没有这种量化方式：请重新转换权重",
        )
    config = json.loads(metadata["config"]) | {"rope_scaling_factor": rope_scaling_factor}
    with torch.device("meta"):  # names and shapes alone
        model = MiniLLM(from_mapping(ModelConfig(), config, source)).eval()
        wanted, _ = quantized_state(model, kind)
    wrong = sorted(name for name in wanted.keys() | state.keys() if not _alike(wanted.get(name), state.get(name)))
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} tensors are missing, unknown, or of another shape ({', '.join(wrong[:3])}). "
            "Convert the weights again.",
            "文件与模型形状不符：请重新转换",
        )
    _pack(model, kind, lambda name: _parts_of(state, name))
    model.load_state_dict({name: state[name] for name in model.state_dict()}, strict=True, assign=True)
    return model.requires_grad_(False), json.loads(metadata["manifest"])


def _alike(wanted: Tensor | None, given: Tensor | None) -> bool:
    return wanted is not None and given is not None and (wanted.shape, wanted.dtype) == (given.shape, given.dtype)


def _parts_of(state: Mapping[str, Tensor], name: str) -> Parts:
    found = {part: state.get(f"{name}.{part}".rstrip(".")) for part in ("", "scale", "zero")}
    return {part: tensor for part, tensor in found.items() if tensor is not None}
