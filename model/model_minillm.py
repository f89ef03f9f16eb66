"""The whole network: Qwen3 (dense) and Qwen3-MoE, with the parameter names of transformers.

Shapes: B batch, T tokens, C hidden size, H query heads, K key/value heads,
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


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32 (arXiv:1910.07467, eq. 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in `size` -> the same shape, in the dtype of the next products."""
        if x.device.type == "cpu":
            return kernels.rms_norm(x, self.weight, self.eps, compute_dtype(x))
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(compute_dtype(x))


def rope_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """The angle by which each pair of a head turns from one position to the next, (D/2,) float32.

    The first pair turns by 1 radian for each token. The later a pair, the slower it turns: the last
    pair turns by nearly 1/theta. So the first pairs distinguish near tokens, and the last pairs
    distinguish places that are far apart.

    YaRN (arXiv:2309.00071, section 3.2) changes the frequencies for longer texts. A pair that turns
    less than once in the original length is slowed down by the factor, so that a longer text has no
    angles that training has never seen. A pair that turns more than 32 times stays as it is,
    because it distinguishes near tokens. The frequencies between these two are mixed linearly.
    """
    head_dim, theta, factor = config.head_dim, config.rope_theta, config.rope_scaling_factor
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    if factor == 1.0:
        return frequencies

    def pair_that_turns(times: float) -> float:
        """Index (a fraction) of the pair that turns `times` times in the original length."""
        length = config.original_max_position_embeddings
        return head_dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(pair_that_turns(32)), 0), min(math.ceil(pair_that_turns(1)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, device=device, dtype=torch.float32)
    stretched = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)  # share of the slower frequency
    return frequencies * (1 - stretched) + frequencies / factor * stretched


def rope_tables(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE for the given positions (..., T), each (..., T, D/2), in float32.

    With YaRN they are multiplied by 0.1 ln(factor) + 1, which makes the attention sharper in the
    longer context (arXiv:2309.00071, eq. 22).
    """
    angles = positions[..., None].float() * rope_frequencies(config, positions.device)
    scale = 0.1 * math.log(config.rope_scaling_factor) + 1.0
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of (B, heads, T, D) by the angle of its token's position.

    The product of a turned query and a turned key depends on the distance between the two tokens,
    but not on the positions themselves. This is how attention knows the order of tokens (RoPE,
    arXiv:2104.09864). The two numbers of a pair are half a head apart, as in transformers, so both
    programs can use the same weights.
    Args: cos, sin: broadcast to (B, 1, T, D/2). Returns: the shape and dtype of x.
    """
    if x.device.type == "cpu":
        return kernels.rotate(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@dataclass(frozen=True)
class Context:
    """The data that all blocks use in one forward pass."""

    cos: Tensor
    """(1, 1, T, D/2)."""
    sin: Tensor
    plan: Plan
    """Which tokens can see which other tokens, and how attention computes this
    (model/attention.py)."""
    real: Tensor | None = None
    """(B, T) boolean, false for padding. None: every token is real."""


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on queries and keys; no biases.

    Each key/value head serves H/K query heads. A cache holds only keys and values, so it becomes
    H/K times smaller, and the model hardly gets worse (arXiv:2305.13245). Without the norms the
    scores could grow during training (Qwen3, arXiv:2505.09388).
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

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values: (B, T, C) -> (B, T, H D), (B, T, K D) twice."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, _ = x.shape
        q, k, v = self.project(x)
        q = self.q_norm(q.view(B, T, self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(k.view(B, T, self.num_kv_heads, self.head_dim)).transpose(1, 2)  # (B, K, T, D)
        v = v.view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        # Only here the network gets the positions, and values get none.
        q, k = rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin)
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
    """Multiply each group of rows by the matrix of this group.

    A group may have any size, also 0. On a data-centre GPU (Hopper, Blackwell) in bfloat16, one
    kernel computes all groups. Otherwise torch computes one product for each group, without Python.
    Args: x (rows, in). weight (E, out, in). ends (E,): where each group ends. Returns: (rows, out).
    """
    # The first versions of torch.compile can trace this operation only in bfloat16. So with other
    # dtypes this one call runs outside the compiled code.
    compilable = x.dtype == torch.bfloat16 or not torch.compiler.is_compiling()
    return (GROUPED_MM if compilable else EAGER_GROUPED_MM)(x, weight.transpose(1, 2), offs=ends)


class Experts(nn.Module):
    """The SwiGLUs of all experts. Their weights are stacked in two tensors."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))  # (E, 2I, C)
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))  # (E, C, I)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of each token's experts; no token is dropped.

        Args: x (N, C). chosen (N, k): numbers of the experts. weights (N, k). Returns: (N, C).
        """
        # Copy each token once for each of its experts, and sort the copies by expert. Then the rows
        # of one expert are neighbours, and one product computes them all.
        (N, k), dtype = chosen.shape, compute_dtype(x)
        order = chosen.flatten().argsort(stable=True)  # (N k): places of the choices, sorted by expert
        ends = F.one_hot(chosen, len(self.down_proj)).sum(dim=(0, 1)).cumsum(0, dtype=torch.int32)  # (E,)
        sorted_x = x.to(dtype)[order // k]  # (N k, C)
        gate, up = grouped_linear(sorted_x, self.gate_up_proj.to(dtype), ends).chunk(2, dim=-1)  # (N k, I)
        y = grouped_linear(F.silu(gate) * up, self.down_proj.to(dtype), ends)  # (N k, C)
        y = y[order.argsort()].view(N, k, -1)  # back in the order of the tokens
        return (y * weights[..., None].to(dtype)).sum(dim=1)


class Router(nn.Linear):
    """The scores of a token's experts, in float32: a rounding would send a token to another
    expert."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, E) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


class MoE(nn.Module):
    """Sends each token through its top-k experts. The router's probabilities are the weights.

    With k > 1 the weights are normalised so that their sum is 1, as in Qwen3-MoE. With k = 1 they
    are not normalised, because the only weight would always be 1, and the router would get no
    gradient.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.num_experts = config.num_experts_per_tok, config.num_experts
        self.normalize = config.norm_topk_prob
        self.gate = Router(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and the balance loss of each row (B,).

        The loss is E * sum over experts of (share of the row's choices) * (mean probability),
        from Switch Transformer (arXiv:2101.03961, eq. 4). It is 1 if all experts are used equally
        often. It is computed for each row alone, over its real tokens, so it does not depend on how
        rows are divided into batches.
        """
        B, T, C = x.shape
        probabilities = self.gate(x).softmax(dim=-1)  # (B, T, E) float32
        weights, chosen = probabilities.topk(self.top_k, dim=-1)  # (B, T, k)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        y = self.experts(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1))
        # The share of choices has no gradient, but the mean probability has one. This gradient
        # makes an expert less likely if it is chosen more often than others.
        choices = F.one_hot(chosen, self.num_experts).sum(dim=2).float()  # (B, T, E)
        counted = torch.ones(B, T, 1, device=x.device) if real is None else real[..., None].float()
        num_tokens = counted.sum(dim=1).clamp(min=1)  # (B, 1)
        share = (choices * counted).sum(dim=1) / (self.top_k * num_tokens)  # (B, E)
        mean_probability = (probabilities * counted).sum(dim=1) / num_tokens  # (B, E)
        return y.view(B, T, C), self.num_experts * (share * mean_probability).sum(dim=-1)


class Block(nn.Module):
    """Attention, then SwiGLU. Each gets a normalised input, and its output is added to x."""

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
    """Run one block. torch.compile turns this function into one piece of code for all blocks."""
    y: tuple[Tensor, Tensor | None] = block(x, context)
    return y


class TiedEmbedding(nn.Embedding):
    """The embedding, which is also the output matrix."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V), in the dtype of `hidden`."""
        return F.linear(hidden, self.weight.to(hidden.dtype))


class Backbone(nn.Module):
    """Embedding, blocks and the last norm (`model.` in the checkpoint)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = TiedEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


READOUT_WIDTH = 38.0
"""Up to this hidden size the weight of the last norm starts at 1 (docs/lab_log.md)."""


class MiniLLM(nn.Module):
    """A causal language model. Its output matrix and its embedding are the same matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.resolve()
        self.run_block: BlockRunner = run_block
        """`run_block`, or what the compiler made of it."""
        self.gradient_checkpointing = False
        """Keep only the input of each block, and compute the rest again in the backward pass. This
        takes less memory and about a third more time. The gradients are the same."""
        self.tries_attention = False
        """Test FlexAttention by itself before compiled blocks use it. Blocks that are not compiled
        always test it first."""
        self.model = Backbone(self.config)
        self.initialize()

    def initialize(self) -> None:
        """Set new weights, with random numbers from torch's global generator.

        Output projections start at zero, so at the start each block returns its input
        (arXiv:1901.09321). The other matrices are uniform with variance 1 / C.

        The weight of the last norm starts at 38 / C, because a logit is a sum of C products. Each
        step of AdamW changes all of these products, so the logits of a wide model change more. The
        small weight balances this (the output multiplier of muP, arXiv:2203.03466, table 8).
        Without it, the learning rate of the embedding would make the logits of a wide model far too
        large in the first steps (docs/lab_log.md). At every width, the first loss is near ln V.
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

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.norm.weight.device

    def logits(self, hidden: Tensor) -> Tensor:
        """Normalised output of the last block (..., C) -> (..., V); rounded weights do it their
        way."""
        return self.model.embed_tokens.logits(hidden)

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        document_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the output of the last block, normalised.

        Args: input_ids (B, T). document_ids (B, T): a token sees only itself and earlier tokens of
        the same document. A negative id means padding; the balance loss of a MoE does not count it.
        Returns: (B, T, C), and for a MoE the mean balance loss of all blocks, for each row (B,).
        Raises: UserError if a model with YaRN is trained.
        """
        learning = self.training and torch.is_grad_enabled()
        if learning and self.config.rope_scaling_factor != 1.0:
            raise UserError(
                f"rope_scaling_factor = {self.config.rope_scaling_factor:g}: longer contexts are for inference. "
                "Train with 1, and set it when the weights are used.",
                "训练时只能为 1：请在使用权重时再设置",
            )
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.model.embed_tokens(input_ids)  # (B, T, C)
        cos, sin = (table[:, None] for table in rope_tables(positions, self.config))  # (1, 1, T, D/2)
        plan = attention.plan(
            x,
            document_ids=document_ids,
            flex_works=lambda ids: self._flex_works(x, cos, sin, ids),
        )
        real = document_ids >= 0 if document_ids is not None else None
        context = Context(cos, sin, plan, real)
        balances = []
        for block in self.model.layers:
            if self.gradient_checkpointing and learning:
                x, balance = checkpoint(self.run_block, block, x, context, use_reentrant=False)
            else:
                x, balance = self.run_block(block, x, context)
            if balance is not None:
                balances.append(balance)
        return self.model.norm(x), torch.stack(balances).mean(dim=0) if balances else None

    def _flex_works(self, x: Tensor, cos: Tensor, sin: Tensor, document_ids: Tensor) -> bool:
        """Whether `document_attention` works for these documents on this machine.

        The test runs the attention of the first block on a copy of x.
        """
        first = self.model.layers[0].self_attn
        assert isinstance(first, Attention)

        def trial() -> object:  # copies, because tensors of inference mode can't have gradients
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
        return self.logits(hidden)

    def compile_blocks(self, wanted: bool = True, *, backend: str | Callable[..., object] = "inductor") -> None:
        """From the next forward pass on, torch.compile makes one piece of code for all blocks.

        Args: wanted: False: run the blocks without compiling again. backend: torch.compile's
        backend.
        """
        self.run_block = torch.compile(run_block, backend=backend) if wanted else run_block

    @property
    def is_compiled(self) -> bool:
        """Whether the blocks run as compiled code."""
        return self.run_block is not run_block

    def num_parameters(self) -> int:
        """Number of trainable parameters. The matrix that is used twice counts once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
