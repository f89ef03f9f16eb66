"""The network, whole: Qwen3 (dense) and Qwen3-MoE, in the parameter names of transformers.

Shapes: B batch, T tokens, S tokens attended to, C hidden size, H query heads, K key/value heads,
D head size, I width of the SwiGLU, E experts, k experts a token, N tokens of all rows,
V vocabulary.
Sources: Qwen3 technical report (arXiv:2505.09388); RMSNorm arXiv:1910.07467; RoPE arXiv:2104.09864;
YaRN arXiv:2309.00071; grouped-query attention arXiv:2305.13245; SwiGLU arXiv:2002.05202;
Mixtral-style routing arXiv:2401.04088.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from configs.schema import ModelConfig, UserError
from model import attention, kernels
from model.attention import Plan, attend
from model.device import compute_dtype
from model.kv_cache import KeyValueCache


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32 (arXiv:1910.07467, eq. 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in `size` -> the same shape, in the dtype of the products to come."""
        if x.device.type == "cpu":
            return kernels.rms_norm(x, self.weight, self.eps, compute_dtype(x))
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(compute_dtype(x))


def rope_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians by which each pair of a head turns from one position to the next, (D/2,) float32.

    They fall from 1 radian a token to nearly 1/theta: the first pairs tell near tokens apart, the
    last ones tell far places apart.

    YaRN (arXiv:2309.00071, section 3.2) divides a frequency by the factor if its pair turns less
    than once in the original length, so that a longer text brings no angle that training has never
    seen. It leaves pairs that turn more than 32 times, as these tell near tokens apart. In between
    it changes linearly from one to the other.
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

    With YaRN they are larger by 0.1 ln(factor) + 1: that sharpens the attention over the longer
    context (arXiv:2309.00071, eq. 22).
    """
    angles = positions[..., None].float() * rope_frequencies(config, positions.device)
    scale = 0.1 * math.log(config.rope_scaling_factor) + 1.0
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of (B, heads, T, D) by the angle of its token's position.

    The product of a query and a key that are turned so depends on the distance of their tokens
    alone: that is how attention learns the order of tokens (RoPE, arXiv:2104.09864). The two
    numbers of a pair stand half a head apart, as in transformers, so that weights mean the same
    there.
    Args: cos, sin: broadcast to (B, 1, T, D/2). Returns: the shape and dtype of x.
    """
    if x.device.type == "cpu":
        return kernels.rotate(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@dataclass(frozen=True)
class Context:
    """What all blocks share in one forward pass."""

    cos: Tensor
    """(B or 1, 1, T, D/2)."""
    sin: Tensor
    plan: Plan
    """Which tokens look at which, and how that is computed (model/attention.py)."""
    real: Tensor | None = None
    """(B, T) boolean, false for padding. None: every token is real."""
    cache: KeyValueCache | None = None


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on queries and keys; no biases.

    H query heads share K key/value heads, H/K each: keys and values are what a cache holds, so it
    is H/K times smaller, at little loss (arXiv:2305.13245). The norms keep the scores from growing
    during training (Qwen3, arXiv:2505.09388).
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
        # Positions enter here alone, and values have none. Keys are cached turned: a token keeps
        # its place.
        q, k = rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k.to(v.dtype), v)  # (B, K, S, D)
        y = attend(q.to(v.dtype), k.to(v.dtype), v, context.plan)  # (B, H, T, D)
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
    """Each group of rows times a matrix of its own.

    Groups may have any size, 0 too. One kernel in bfloat16 on a GPU of a data centre (Hopper,
    Blackwell), elsewhere one product a group, without Python.
    Args: x (rows, in). weight (E, out, in). ends (E,): where each group ends. Returns: (rows, out).
    """
    # torch.compile traced it in bfloat16 alone at first, so other dtypes leave the compiled code
    # for this one call.
    compilable = x.dtype == torch.bfloat16 or not torch.compiler.is_compiling()
    return (GROUPED_MM if compilable else EAGER_GROUPED_MM)(x, weight.transpose(1, 2), offs=ends)


class Experts(nn.Module):
    """The SwiGLUs of all experts, their weights stacked."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))  # (E, 2I, C)
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))  # (E, C, I)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of each token's experts; no token is dropped.

        Args: x (N, C). chosen (N, k): numbers of the experts. weights (N, k). Returns: (N, C).
        """
        # Each token is copied once for each of its experts, and the copies are sorted by expert, so
        # that the rows of one expert lie together and make one product.
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

    With k > 1 the weights are normalised to sum to one, as in Qwen3-MoE. With k = 1 they are not: a
    normalised single weight is the constant 1, and the router would receive no gradient.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.num_experts = config.num_experts_per_tok, config.num_experts
        self.normalize = config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and the balance loss of each row (B,).

        The loss is E * sum over experts of (share of the row's choices) * (mean probability),
        Switch Transformer (arXiv:2101.03961, eq. 4); 1 when all experts are used alike. It is taken
        over the real tokens (B, T) of one row, so that no split of a batch changes it.
        """
        B, T, C = x.shape
        with torch.autocast(x.device.type, enabled=False):  # a rounding here would send a token to another expert
            probabilities = F.linear(x.float(), self.gate.weight.float()).softmax(dim=-1)  # (B, T, E)
        weights, chosen = probabilities.topk(self.top_k, dim=-1)  # (B, T, k)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        y = self.experts(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1))
        # The share of choices has no gradient; the mean probability has one, and it lowers those
        # experts that are chosen more often than others.
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


BlockRunner = Callable[[nn.Module, Tensor, Context], tuple[Tensor, Tensor | None]]


def run_block(block: nn.Module, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
    """One block, as it is written; compiled, this is one piece of code for all blocks."""
    y: tuple[Tensor, Tensor | None] = block(x, context)
    return y


class Backbone(nn.Module):
    """Embedding, blocks and the last norm (`model.` in the checkpoint)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


READOUT_WIDTH = 38.0
"""Hidden size up to which the last norm's weight starts at 1 (docs/lab_log.md, beside 64)."""


class MiniLLM(nn.Module):
    """A causal language model whose output matrix is its embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.resolve()
        self.run_block: BlockRunner = run_block
        """`run_block`, or what the compiler made of it."""
        self.gradient_checkpointing = False
        """Keep of each block only its input, and compute the rest again in the backward pass: less
        memory, about a third more time, the same gradients."""
        self.tries_attention = False
        """Try FlexAttention alone before compiled blocks take it. Blocks that are not compiled
        always do."""
        self.model = Backbone(self.config)
        self.initialize()

    def initialize(self) -> None:
        """Fresh weights from torch's global generator.

        Output projections start at zero, so each block starts as the identity (arXiv:1901.09321).
        The other matrices are uniform with variance 1 / C.

        The weight of the last norm starts at 38 / C. A logit is a sum of C products which all grow
        with AdamW's equal steps, so they are given that much less weight (the output multiplier of
        muP, arXiv:2203.03466, table 8). Else the rate that an embedding needs throws the logits of
        a wide model far off in the first steps (docs/lab_log.md). The first loss is near ln V at
        every width.
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

        Args: input_ids (B, T). document_ids (B, T): a token sees only earlier tokens of its own
        document. Negative ids are padding, which a MoE's balance loss does not count. positions
        (B, T): place of each token, default 0..T-1 behind the cache. mask (B, 1, T, S): boolean,
        true where a token may look; instead of document_ids. cache: what was read before; the
        tokens are added to it.
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
        T = input_ids.shape[1]
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + T, device=input_ids.device)[None]
        x = self.model.embed_tokens(input_ids)  # (B, T, C)
        cos, sin = (table[:, None] for table in rope_tables(positions, self.config))  # (B or 1, 1, T, D/2)
        plan = attention.plan(
            x,
            document_ids=document_ids,
            mask=mask,
            cached_tokens=cache.length if cache is not None else None,
            flex_works=lambda ids: self._flex_works(x, cos, sin, ids),
        )
        real = document_ids >= 0 if document_ids is not None else None
        context = Context(cos, sin, plan, real, cache)
        balances = []
        for block in self.model.layers:
            if self.gradient_checkpointing and learning:
                x, balance = checkpoint(self.run_block, block, x, context, use_reentrant=False)
            else:
                x, balance = self.run_block(block, x, context)
            if balance is not None:
                balances.append(balance)
        if cache is not None:
            cache.length += T
        return self.model.norm(x), torch.stack(balances).mean(dim=0) if balances else None

    def _flex_works(self, x: Tensor, cos: Tensor, sin: Tensor, document_ids: Tensor) -> bool:
        """Whether these documents can go through `document_attention`.

        It is tried in the first block, on a copy of x.
        """
        first = self.model.layers[0].self_attn
        assert isinstance(first, Attention)

        def trial() -> object:  # parameters get no gradient; copies, as a tensor made in inference mode can have none
            context = Context(cos.clone(), sin.clone(), attention.plan_of_documents(document_ids))
            start = x.detach().clone().requires_grad_()
            return torch.autograd.grad(first(start, context).float().sum(), start)

        shape = (first.num_heads, first.num_kv_heads, first.head_dim)
        return attention.flex_works(
            x.device, shape, compute_dtype(x), trial, untried=self.is_compiled and not self.tries_attention
        )

    def forward(self, input_ids: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        hidden, _ = self.hidden_states(input_ids, document_ids=document_ids)
        return F.linear(hidden, self.output_weight.to(hidden.dtype))

    def compile_blocks(self, wanted: bool = True, *, backend: str | Callable[..., object] = "inductor") -> None:
        """Let torch.compile make one piece of code for all blocks, from the next forward pass on.

        Args: wanted: false: run them as they are written again. backend: what makes the code.
        """
        self.run_block = torch.compile(run_block, backend=backend) if wanted else run_block

    @property
    def is_compiled(self) -> bool:
        """Whether the blocks run as compiled code."""
        return self.run_block is not run_block

    def num_parameters(self) -> int:
        """Trainable parameters; the tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
