"""The network, whole: Qwen3 (dense) and Qwen3-MoE, in the parameter names of transformers.

Shapes: B batch, T tokens, S tokens attended to, C hidden size, H query heads, K key/value heads, D head size,
I width of the SwiGLU, E experts, k experts a token, N tokens of all rows, V vocabulary.
Sources: Qwen3 technical report (arXiv:2505.09388); RMSNorm arXiv:1910.07467; RoPE arXiv:2104.09864;
YaRN arXiv:2309.00071; grouped-query attention arXiv:2305.13245; SwiGLU arXiv:2002.05202; Mixtral-style routing
arXiv:2401.04088.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from configs.schema import ModelConfig, UserError
from model import kernels
from model.attention import (
    PRODUCT_DEVICES,
    blocked_attention,
    document_attention,
    document_blocks,
    flex_works,
    masked_attention,
    product_attention,
)
from model.device import compute_dtype


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32 (arXiv:1910.07467, eq. 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last dimension is `size`; returns the same shape, in the dtype of the products to come."""
        if x.device.type == "cpu":
            return kernels.rms_norm(x, self.weight, self.eps, compute_dtype(x))
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(compute_dtype(x))


def rope_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians by which each pair of a head turns from one position to the next, (D/2,) float32.

    YaRN (arXiv:2309.00071, section 3.2) divides by the factor where a pair turns less than once in the original
    length, leaves it where it turns more than 32 times, and goes linearly from one to the other in between.
    """
    head_dim, theta, factor = config.head_dim, config.rope_theta, config.rope_scaling_factor
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    if factor == 1.0:
        return frequencies

    def pair_that_turns(times: float) -> float:
        """Index of the pair, a fraction, that turns so often in the original length."""
        length = config.original_max_position_embeddings
        return head_dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(pair_that_turns(32)), 0), min(math.ceil(pair_that_turns(1)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, device=device, dtype=torch.float32)
    stretched = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)  # share of the stretched frequency
    return frequencies * (1 - stretched) + frequencies / factor * stretched


def rope_tables(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE for the given positions (..., T), each (..., T, D/2), in float32.

    With YaRN they are larger by 0.1 ln(factor) + 1: that sharpens the attention over the longer context
    (arXiv:2309.00071, eq. 22).
    """
    angles = positions[..., None].float() * rope_frequencies(config, positions.device)
    scale = 0.1 * math.log(config.rope_scaling_factor) + 1.0
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of (B, heads, T, D) by its angle; cos and sin broadcast to (B, 1, T, D/2)."""
    if x.device.type == "cpu":
        return kernels.rotate(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@dataclass
class KeyValueCache:
    """Keys and values of the tokens seen so far, one pair of (B, K, capacity, D) a layer, filled up to `length`."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> "KeyValueCache":
        """Room for `capacity` tokens in the dtype and on the device of `like`."""
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        return cls([like.new_zeros(shape) for _ in layers], [like.new_zeros(shape) for _ in layers])

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new tokens behind the ones of this layer; returns all of them, (B, K, S, D)."""
        end = self.length + key.shape[2]
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


@dataclass(frozen=True)
class Context:
    """What all layers share in one forward pass."""

    cos: Tensor
    """(B or 1, 1, T, D/2)."""
    sin: Tensor
    mask: Tensor | None
    """(B or 1, 1, T, S), added to the attention scores: 0 where a query may look, else -inf. None: causal."""
    documents: BlockMask | None = None
    """In place of a mask: causal, and within documents."""
    real: Tensor | None = None
    """(B, T) boolean, false for padding. None: every token is real."""
    cache: KeyValueCache | None = None


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on queries and keys; no biases.

    Whole rows with a mask or with documents go through model/attention.py; all else through PyTorch's product, which
    takes its flash kernel where there is one. Each key and value is read for all the queries of its group, so that
    neither is copied, but for `masked_attention` and for float32 on a GPU.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(self.k_proj(x).view(B, T, self.num_kv_heads, self.head_dim)).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        q, k = rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k.to(v.dtype), v)  # (B, K, S, D)
        q, k, mask = q.to(v.dtype), k.to(v.dtype), context.mask
        if context.documents is not None:
            y = document_attention(q, k, v, context.documents)  # (B, H, T, D)
        elif mask is not None and context.cache is None:
            y = (blocked_attention if x.device.type in PRODUCT_DEVICES else masked_attention)(q, k, v, mask)
        elif mask is not None and x.device.type == "mps":
            y = product_attention(q, k, v, mask)
        else:
            if x.device.type == "cuda" and v.dtype != torch.bfloat16 and context.cache is None:
                # In float32, and in float16 on the GPUs that have no bfloat16, PyTorch's one kernel for groups holds all
                # scores; with copied keys there is one that doesn't
                k, v = (part.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1) for part in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.num_heads * self.head_dim))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


GROUPED_MM = getattr(F, "grouped_mm", None) or torch._grouped_mm  # the name that it had before torch 2.10
EAGER_GROUPED_MM = torch.compiler.disable(GROUPED_MM)


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each group of rows times a matrix of its own: (rows, in), (E, out, in), where groups end (E,) -> (rows, out).

    Groups may have any size, 0 too. One kernel in bfloat16 on a GPU of a data centre (Hopper, Blackwell), elsewhere one
    product a group, without Python.
    """
    # torch.compile traced it in bfloat16 alone at first, so other dtypes leave the compiled code for this one call
    compilable = x.dtype == torch.bfloat16 or not torch.compiler.is_compiling()
    return (GROUPED_MM if compilable else EAGER_GROUPED_MM)(x, weight.transpose(1, 2), offs=ends)


class Experts(nn.Module):
    """The SwiGLUs of all experts, their weights stacked."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))  # (E, 2I, C)
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))  # (E, C, I)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Sum of each token's experts: x (N, C), their numbers and weights (N, k) -> (N, C). No token is dropped."""
        (N, k), dtype = chosen.shape, compute_dtype(x)
        order = chosen.flatten().argsort(stable=True)  # (N k): expert by expert, the places of its choices
        ends = F.one_hot(chosen, len(self.down_proj)).sum(dim=(0, 1)).cumsum(0, dtype=torch.int32)  # (E,)
        sorted_x = x.to(dtype)[order // k]  # (N k, C)
        gate, up = grouped_linear(sorted_x, self.gate_up_proj.to(dtype), ends).chunk(2, dim=-1)  # (N k, I)
        y = grouped_linear(F.silu(gate) * up, self.down_proj.to(dtype), ends)  # (N k, C)
        y = y[order.argsort()].view(N, k, -1)  # back in the order of the tokens
        return (y * weights[..., None].to(dtype)).sum(dim=1)


class MoE(nn.Module):
    """Each token through its top-k experts, weighted by the router's probabilities.

    With k > 1 the weights are normalised to sum to one, as in Qwen3-MoE. With k = 1 they are not: a normalised
    single weight is the constant 1, and the router would receive no gradient.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.num_experts = config.num_experts_per_tok, config.num_experts
        self.normalize = config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and the balance loss of each row (B,): 1 when all experts are used alike.

        The loss is E * sum over experts of (share of the row's choices) * (mean probability), Switch Transformer
        (arXiv:2101.03961, eq. 4), over the real tokens (B, T) of one row, so that no split of a batch changes it.
        """
        B, T, C = x.shape
        with torch.autocast(x.device.type, enabled=False):  # a rounding here would send a token to another expert
            probabilities = F.linear(x.float(), self.gate.weight.float()).softmax(dim=-1)  # (B, T, E)
        weights, chosen = probabilities.topk(self.top_k, dim=-1)  # (B, T, k)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        y = self.experts(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1))
        choices = F.one_hot(chosen, self.num_experts).sum(dim=2).float()  # (B, T, E)
        counted = torch.ones(B, T, 1, device=x.device) if real is None else real[..., None].float()
        num_tokens = counted.sum(dim=1).clamp(min=1)  # (B, 1)
        share = (choices * counted).sum(dim=1) / (self.top_k * num_tokens)  # (B, E)
        mean_probability = (probabilities * counted).sum(dim=1) / num_tokens  # (B, E)
        return y.view(B, T, C), self.num_experts * (share * mean_probability).sum(dim=-1)


class Block(nn.Module):
    """Attention and SwiGLU, each on a normalised input and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.use_moe else MLP(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> (B, T, C), and the balance loss of a MoE block (B,)."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), context))
        hidden = self.post_attention_layernorm(x)
        y, balance = self.mlp(hidden, context.real) if isinstance(self.mlp, MoE) else (self.mlp(hidden), None)
        return x + self.dropout(y), balance


class Backbone(nn.Module):
    """Embedding, blocks and the last norm (`model.` in the checkpoint)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


READOUT_WIDTH = 38.0
"""Hidden size up to which the last norm's weight starts at 1; 38 and 64 did equally well (docs/lab_log.md)."""


class MiniLLM(nn.Module):
    """A causal language model whose output matrix is its embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.resolve()
        self.gradient_checkpointing = False
        """Keep of each block only its input, and compute the rest again in the backward pass: less memory, about a
        third more time, the same gradients."""
        self.tries_attention = False
        """Try FlexAttention alone before compiled blocks take it. Blocks that are not compiled always do."""
        self.model = Backbone(self.config)
        self.initialize()

    def initialize(self) -> None:
        """Fresh weights from torch's global generator.

        Output projections start at zero, so each block starts as the identity (arXiv:1901.09321). The other
        matrices are uniform with variance 1 / C. The weight of the last norm starts at 38 / C: a logit is a sum of C
        products which all grow with AdamW's equal steps, so they are given that much less weight (the output
        multiplier of muP, arXiv:2203.03466, table 8). Else the rate that an embedding needs throws the logits of a
        wide model far off in the first steps (docs/lab_log.md). The first loss is near ln V at every width.
        """
        config = self.config
        bound = math.sqrt(3.0 / config.hidden_size)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                nn.init.zeros_(parameter)
            elif name == "model.norm.weight":
                nn.init.constant_(parameter, min(1.0, READOUT_WIDTH / config.hidden_size))
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            elif name.endswith("embed_tokens.weight"):
                nn.init.normal_(parameter, std=config.initializer_range)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    @property
    def output_weight(self) -> Tensor:
        """(V, C): the embedding, used again as the output matrix."""
        return self.model.embed_tokens.weight

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        document_ids: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised output of the last block.

        Args: input_ids (B, T). document_ids (B, T): a token sees only earlier tokens of its own document.
        Negative ids are padding, which a MoE's balance loss does not count.
        positions (B, T): place of each token, default 0..T-1 behind the cache. mask (B, 1, T, S) boolean, true where
        a token may look: given outright, instead of document_ids.
        Returns: (B, T, C), and for MoE the mean balance loss of each row over its blocks (B,).
        Raises: UserError when a model with YaRN is trained.
        """
        learning = self.training and torch.is_grad_enabled()
        if learning and self.config.rope_scaling_factor != 1.0:
            raise UserError(
                f"rope_scaling_factor = {self.config.rope_scaling_factor:g}: longer contexts are for inference. "
                "Train with 1, and set it when the weights are used.",
                "训练时只能为 1：请在使用权重时再设置",
            )
        T, device = input_ids.shape[1], input_ids.device
        start = cache.length if cache is not None else 0
        if positions is None:
            positions = torch.arange(start, start + T, device=device)[None]
        x = self.model.embed_tokens(input_ids)  # (B, T, C)
        cos, sin = (table[:, None] for table in rope_tables(positions, self.config))  # (B or 1, 1, T, D/2)
        documents = None
        if document_ids is not None and cache is None and self._flex_works(x, cos, sin, document_ids):
            documents = document_blocks(document_ids)
        elif document_ids is not None:
            same = document_ids[:, :, None] == document_ids[:, None, :]  # (B, T, T)
            mask = (same & torch.ones(T, T, dtype=torch.bool, device=device).tril())[:, None]
        elif mask is None and (start > 0 or device.type == "mps" or (cache is None and device.type == "cpu")):
            mask = torch.ones(T, start + T, dtype=torch.bool, device=device).tril(start)[None, None]
        if mask is not None:  # added to the scores; a boolean one would be turned into this again in every block
            mask = torch.zeros(mask.shape, dtype=compute_dtype(x), device=device).masked_fill_(~mask, -math.inf)
        real = document_ids >= 0 if document_ids is not None else None
        context = Context(cos, sin, mask, documents, real, cache)
        balances = []
        for block in self.model.layers:
            if self.gradient_checkpointing and learning:
                x, balance = checkpoint(block, x, context, use_reentrant=False)
            else:
                x, balance = block(x, context)
            if balance is not None:
                balances.append(balance)
        if cache is not None:
            cache.length += T
        return self.model.norm(x), torch.stack(balances).mean(dim=0) if balances else None

    def _flex_works(self, x: Tensor, cos: Tensor, sin: Tensor, document_ids: Tensor) -> bool:
        """Whether these documents can go through `document_attention`: tried in the first block, on a copy of x."""
        attention = self.model.layers[0].self_attn
        assert isinstance(attention, Attention)

        def trial() -> object:  # parameters get no gradient; copies, as a tensor made in inference mode can have none
            context = Context(cos.clone(), sin.clone(), mask=None, documents=document_blocks(document_ids))
            start = x.detach().clone().requires_grad_()
            return torch.autograd.grad(attention(start, context).float().sum(), start)

        shape = (attention.num_heads, attention.num_kv_heads, attention.head_dim)
        return flex_works(
            x.device, shape, compute_dtype(x), trial, untried=self.is_compiled and not self.tries_attention
        )

    def forward(self, input_ids: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        hidden, _ = self.hidden_states(input_ids, document_ids=document_ids)
        return F.linear(hidden, self.output_weight.to(hidden.dtype))

    def compile_blocks(self, wanted: bool = True) -> None:
        """Let torch.compile make one piece of code for all blocks, from the next forward pass on; or have none again."""
        for block in self.model.layers:
            block.compile() if wanted else setattr(block, "_compiled_call_impl", None)  # where compile() puts it

    @property
    def is_compiled(self) -> bool:
        """Whether the blocks run as compiled code."""
        return self.model.layers[0]._compiled_call_impl is not None

    def num_parameters(self) -> int:
        """Trainable parameters; the tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
