"""How fast this machine does a training step's matrix products alone.

Counted: in each block the products of attention and SwiGLU with their weights, at the end that of
the targets with the output matrix, each forward and twice backward; and attention's two products
forward and four backward, over the pairs of query and key that the mask lets through. Not counted:
norms, RoPE, softmax, activations, the loss, the optimizer with its Newton-Schulz products, memory
being allocated. So no training step is faster.

Shapes: M tokens of a micro-batch, C hidden size, H query heads, K key/value heads, D head size, I
width of the SwiGLU, V vocabulary, P pieces of n tokens, S keys.
"""

from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.schema import ModelConfig
from model.device import DTYPES
from trainer.flops import timed, usable_dtypes

CPU_REPLAY_TOKENS = 4096
"""On a CPU no more tokens than these are replayed, which takes a second or two; larger products are
no faster."""
TILES = {"cpu": (512, 2048), "cuda": (8192,)}
"""Tokens that a product may take at once; all of them at once is tried, too."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one micro-batch of an arm computes."""

    shape: ModelConfig
    tokens: int
    """M; padding is computed too."""
    target_share: float
    """Share of them that are targets, and so are multiplied with the output matrix."""
    mean_keys: float
    """Keys that a query looks at, itself included."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to do a step's products."""

    dtype: str
    tile: int
    """Tokens that a product takes at once."""
    fused: bool = True
    """Whether queries, keys and values are one product, and gate and up another."""
    flash: bool = False
    """Whether PyTorch's attention stands for attention's products. It also computes the softmax."""

    def __str__(self) -> str:
        joined = "joined" if self.fused else "single"
        return f"{self.dtype}, {self.tile} tokens at a time, {joined} projections, {'SDPA' if self.flash else 'bmm'}"


def mean_keys(document_ids: np.ndarray) -> float:
    """Mean number of keys that a token of packed rows looks at.

    That is a token's place in its document's part of the row, counted from 1.

    Args: document_ids (R, L), -1 for padding, which does not count.
    """
    # A document's part begins at the row's start, or where the document before it ends.
    starts = np.ones(document_ids.shape, np.bool_)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    places = np.arange(document_ids.shape[1])
    # Each place carries on the last start before it: the place of its document's first token.
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    return float((places - first + 1)[document_ids >= 0].mean())


# --- the replay -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Product:
    """Tokens times a weight: (rows, wide) by (out, wide)."""

    rows: int
    wide: int
    out: int


def block_products(step: Step, *, fused: bool) -> list[Product]:
    """The products of one block with its weights."""
    shape, rows, C = step.shape, step.tokens, step.shape.hidden_size
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    into = [q + 2 * kv] if fused else [q, kv, kv]
    products = [Product(rows, C, width) for width in into] + [Product(rows, q, C)]
    copies, width = 1, shape.intermediate_size
    if shape.use_moe:
        # The router looks at every token; then each token meets so many experts, taken as evenly
        # spread.
        products.append(Product(rows, C, shape.num_experts))
        copies, width = shape.num_experts, shape.moe_intermediate_size
        rows = max(1, rows * shape.num_experts_per_tok // copies)
    up = [2 * width] if fused else [width, width]
    return products + copies * ([Product(rows, C, part) for part in up] + [Product(rows, width, C)])


def step_flops(step: Step) -> float:
    """Operations of one replay."""
    shape = step.shape
    weights = sum(product.rows * product.wide * product.out for product in block_products(step, fused=True))
    attention = 2 * step.tokens * step.mean_keys * shape.num_attention_heads * shape.head_dim
    output = step.tokens * step.target_share * shape.hidden_size * shape.vocab_size
    # A multiplication and an addition are two operations; a product is done once forward and twice
    # backward. Attention has two products: queries with keys, scores with values.
    return 6 * (shape.num_hidden_layers * (weights + attention) + output)


class Replay:
    """A step's products with random numbers, in the order of a step.

    Each block has weights and inputs of its own, as in a real step. Results go where the last ones
    went, so nothing is allocated while the clock runs.
    """

    def __init__(self, step: Step, plan: Plan, device: torch.device) -> None:
        self.step, self.plan, self.device = step, plan, device
        self.dtype = DTYPES[plan.dtype]
        self.results: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        shape = step.shape
        layers = range(shape.num_hidden_layers)
        self.blocks = [[self._operands(p) for p in block_products(step, fused=plan.fused)] for _ in layers]
        targets = max(1, round(step.tokens * step.target_share))
        self.output = self._operands(Product(targets, shape.hidden_size, shape.vocab_size), hold_result=False)
        # In a causal piece of n tokens a query looks at (n + 1) / 2 keys: so long must the pieces
        # be.
        S = max(1, round(step.mean_keys))
        n = min(max(1, round(2 * step.mean_keys) - 1), step.tokens)
        P = max(1, round(step.tokens / n))
        H, K, D = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        if plan.flash:
            self.q = self._random(P, H, n, D).requires_grad_()
            self.k, self.v = (self._random(P, K, n, D).requires_grad_() for _ in range(2))
            self.do = self._random(P, H, n, D)
        else:
            self.q, self.do = (self._random(P * K, H // K * n, D) for _ in range(2))
            self.k, self.v = (self._random(P * K, S, D) for _ in range(2))
            self.scores = self._random(P * K, H // K * n, S)

    def _random(self, *size: int) -> Tensor:
        return (torch.randn(size, device=self.device) * 0.1).to(self.dtype)

    def _operands(self, product: Product, *, hold_result: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Input (rows, wide), weight (out, wide), and the gradient of the result (rows, out).

        Without `hold_result` the gradient has the rows of one tile.
        """
        rows = product.rows if hold_result else min(product.rows, self.plan.tile)
        gradient = self._shared("gradient", rows, product.out)
        return self._random(product.rows, product.wide), self._random(product.out, product.wide), gradient

    def _shared(self, kind: str, *size: int) -> Tensor:
        """A tensor that all products of that kind and size write to."""
        if (kind, size) not in self.results:
            self.results[kind, size] = self._random(*size)
        return self.results[kind, size]

    def run(self) -> None:
        """All products once, forward and backward."""
        for block in self.blocks:
            for x, weight, gradient in block:
                self._forward(x, weight, gradient)
            if not self.plan.flash:
                torch.bmm(self.q, self.k.mT, out=self.scores)
                torch.bmm(self.scores, self.v, out=self._shared("queries", *self.q.shape))
        self._output()
        for block in reversed(self.blocks):
            for x, weight, gradient in reversed(block):
                self._backward(x, weight, gradient)
            if self.plan.flash:
                shown = F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=True, enable_gqa=True)
                torch.autograd.grad(shown, (self.q, self.k, self.v), self.do)
            else:
                torch.bmm(self.do, self.v.mT, out=self.scores)
                torch.bmm(self.scores, self.k, out=self._shared("queries", *self.q.shape))
                for rows in (self.q, self.do):
                    torch.bmm(self.scores.mT, rows, out=self._shared("keys", *self.k.shape))

    def _forward(self, x: Tensor, weight: Tensor, result: Tensor) -> None:
        for start in range(0, len(x), self.plan.tile):
            rows = slice(start, start + self.plan.tile)
            torch.mm(x[rows], weight.T, out=result[rows])

    def _backward(self, x: Tensor, weight: Tensor, gradient: Tensor) -> None:
        of_input, of_weight = self._shared("input", *x.shape), self._shared("weight", *weight.shape)
        for start in range(0, len(x), self.plan.tile):
            rows = slice(start, start + self.plan.tile)
            torch.mm(gradient[rows], weight, out=of_input[rows])
            if start:
                of_weight.addmm_(gradient[rows].T, x[rows])
            else:
                torch.mm(gradient[rows].T, x[rows], out=of_weight)

    def _output(self) -> None:
        """A tile of logits at a time, forward and backward.

        A loss that never holds all logits does it so.
        """
        x, weight, logits = self.output
        for start in range(0, len(x), self.plan.tile):
            part = x[start : start + self.plan.tile]
            self._forward(part, weight, logits[: len(part)])
            self._backward(part, weight, logits[: len(part)])


class Bound:
    """The rate of a step's products, measured as often as wanted between other measurements."""

    def __init__(self, step: Step, device: torch.device) -> None:
        most = CPU_REPLAY_TOKENS if device.type == "cpu" else step.tokens
        self.step, self.device = replace(step, tokens=min(step.tokens, most)), device
        self.seconds: list[float] = []
        self.plan = self._best_plan()

    def _best_plan(self) -> Plan:
        """The fastest way to do the products.

        Its parts are varied one after the other, and the best is kept each time.
        """
        tokens = self.step.tokens
        plans = [Plan(dtype, tokens) for dtype in usable_dtypes(self.device)]
        best = min(plans, key=self._try)
        choices: list[dict[str, int | bool]] = [{"tile": tile} for tile in TILES[self.device.type] if tile < tokens]
        choices += [{"fused": False}, {"flash": True}]
        seconds = self._try(best)
        for choice in choices:
            plan = replace(best, **choice)  # type: ignore[arg-type]
            if (other := self._try(plan)) < seconds:
                best, seconds = plan, other
        return best

    def _try(self, plan: Plan) -> float:
        return min(timed(Replay(self.step, plan, self.device).run, self.device, 2))

    def measure(self, repeat: int = 3) -> None:
        """Replay again."""
        self.seconds += timed(Replay(self.step, self.plan, self.device).run, self.device, repeat)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the step a second, by the median of all replays."""
        return self.step.tokens / median(self.seconds)

    @property
    def flops_per_second(self) -> float:
        """Operations a second, by the same median."""
        return step_flops(self.step) / median(self.seconds)
