"""The network as generation runs it: fewer and larger products, no gradients, a cache of slots.

It computes what `MiniLLM` computes, from a copy of its matrices in the layout that few rows are
multiplied by fastest. Queries, keys and values come from one product, gate and up from another.

What a row gives never depends on the rows beside it, if their number is the same: each text has
attention of its own, in shapes that follow from its own length. With 8-bit weights it does not
depend on the number of rows either (model/quantize.py).

Shapes: B rows of a step, T tokens of a text, N tokens of all texts, C hidden size, H query heads,
K key/value heads, G = H / K heads of a group, D head size, S places that are read, V vocabulary,
I inputs and O outputs of a matrix.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention import product_attention
from model.device import compute_dtype
from model.kv_cache import BORDER, SlotCache
from model.model_minillm import MLP, Attention, Block, MiniLLM, rope_tables
from model.quantize import FusedAttention, FusedMLP, Product

CHUNK = 64
"""Tokens of a prompt that are read at once: up to the next multiple of it. So the shapes in which a
token was computed depend on its place alone, and its keys can be used for another prompt."""
ENDS = 8
"""Ends of prompts whose logits are computed together: always so many rows, so that the number of
prompts does not change a row."""
LARGEST_PACKED = 32
"""Rows from which on packed matrices gain nothing."""


@dataclass(frozen=True)
class Chunk:
    """A part of a prompt that is to be read."""

    slot: int
    start: int
    """Place of its first token: so many tokens of the text are in the slot."""
    ids: Sequence[int]
    is_last: bool
    """Whether the prompt ends with it."""

    @property
    def end(self) -> int:
        """Place behind its last token."""
        return self.start + len(self.ids)


def next_border(place: int) -> int:
    """Where a chunk that begins at this place ends at the latest."""
    return (place // CHUNK + 1) * CHUNK


def bucket_of(count: int) -> int:
    """Rows that are computed for so many texts: the next power of two up to 8, then the next
    multiple of 8.

    Products of a few fixed sizes give a row the same numbers again and again.
    """
    return 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8


class Matrix:
    """Products x W^T with a float matrix, in the layouts that are fastest for few rows.

    One row runs fastest over the matrix as (I, O); so do many rows. In between, a CPU without
    AVX512 reads a matrix that oneDNN has packed in two thirds of the time. It is packed when such a
    batch comes for the first time, since it takes the matrix's memory again.
    """

    def __init__(self, weight: Tensor) -> None:
        """Args: weight (O, I)."""
        self.weight = weight.T.contiguous()  # (I, O)
        self.packs = weight.device.type == "cpu" and weight.dtype == torch.float32 and packing_helps()
        self.packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(N, I) -> (N, O)."""
        if not self.packs or not 1 < len(x) <= LARGEST_PACKED:
            return x @ self.weight
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.T.contiguous())
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return y


def packing_helps() -> bool:
    """Whether this CPU is one on which oneDNN's packed matrices are faster."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.backends.mkldnn.is_available()


def _own_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's attention: q (B, K, rows, D), k, v (B, K, S, D), mask (B, 1, 1 or rows, S)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def normalized(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """RMSNorm in few operations, since each takes longer to start than to compute.

    Args: x (..., C). weight: broadcasts to x. eps: a tensor with one number.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # the square root of the sum of squares
    inverse = torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return torch.mul(x, inverse).mul_(weight)


@dataclass(frozen=True)
class _Layer:
    """One block: its norms, and its products as functions of rows."""

    input_norm: Tensor
    qkv: Product
    head_norms: Tensor
    """(H + K, D): the weights of the norms of queries and keys."""
    output: Product
    mlp_norm: Tensor
    mlp: Callable[[Tensor], Tensor]


class Decoder:
    """A model ready to generate."""

    def __init__(self, model: MiniLLM) -> None:
        """Args: model: float or quantized, in the mode for evaluation. Its float matrices are
        copied, its norms and the table of tokens are not. If the model is trained on, make a new
        Decoder."""
        self.config, self.device = model.config, model.device
        self.norm = model.model.norm.weight.detach()
        self.eps = self.norm.new_full((), model.config.rms_norm_eps)
        self.layers = [_layer(block) for block in model.model.layers]
        self.embed = model.model.embed_tokens
        self.logits_of: Product = model.logits
        if isinstance(self.embed, torch.nn.Embedding):
            self.logits_of = Matrix(self.embed.weight.detach())
        self.cache = SlotCache(self.config, like=self.norm)
        # On MPS PyTorch's own kernel can't be trusted (model/attention.py).
        self.attention = product_attention if self.device.type == "mps" else _own_kernel
        self.cos, self.sin = self._rope(0)

    def reserve(self, slots: int, places: int) -> None:
        """Make room for so many texts of so many tokens."""
        self.cache.reserve(slots, places)
        if len(self.cos) <= self.cache.num_places:
            self.cos, self.sin = self._rope(self.cache.num_places)

    def _rope(self, places: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines by place, (places + 1, 1, D) each.

        They stand for both halves of a head, and the sines of the first half are negative, so that
        a head is turned by two products (in `_run`).
        """
        cos, sin = rope_tables(torch.arange(places + 1, device=self.device), self.config)  # (places + 1, D/2)
        dtype = compute_dtype(self.norm)
        return (
            torch.cat((cos, cos), dim=-1)[:, None].to(dtype),
            torch.cat((-sin, sin), dim=-1)[:, None].to(dtype),
        )

    # --- prompts ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def read(self, chunks: Sequence[Chunk]) -> Tensor:
        """Read parts of several prompts into their slots.

        Returns: the logits of the token after each prompt whose last chunk is here, (prompts, V).
        """
        sizes = [len(chunk.ids) for chunk in chunks]
        ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        # All tokens go through the products together. They are filled up to a multiple of CHUNK.
        missing = -ends[-1] % CHUNK
        ids = [token for chunk in chunks for token in chunk.ids] + [0] * missing
        places = [place for chunk in chunks for place in range(chunk.start, chunk.end)] + [0] * missing
        masks = [self._causal(chunk) for chunk in chunks]

        def attend(layer: int, q: Tensor, keys_values: Tensor) -> Tensor:
            y = torch.zeros_like(q)  # (N, H, D)
            for chunk, (start, end), mask in zip(chunks, pairwise(ends), masks, strict=True):
                self.cache.write_text(layer, chunk.slot, chunk.start, keys_values[start:end])
                y[start:end] = self._attend_text(layer, q[start:end], chunk, mask)
            return y

        x = self._run(self._to_device(ids), self._to_device(places), attend)
        last = [end - 1 for chunk, end in zip(chunks, ends[1:], strict=True) if chunk.is_last]
        rows = x[self._to_device(last + [0] * (-len(last) % ENDS))]
        logits = [self._logits(part) for part in rows.split(ENDS)]
        return torch.cat(logits)[: len(last)] if last else x.new_zeros(0, self.config.vocab_size)

    def _causal(self, chunk: Chunk) -> Tensor:
        """What is added to the scores: 0 where a query of the chunk may look, (1, 1, G T, S)."""
        T, groups = len(chunk.ids), self.config.num_attention_heads // self.config.num_key_value_heads
        beyond = torch.full((T, chunk.end), -math.inf, dtype=self.norm.dtype, device=self.device)
        return beyond.triu_(chunk.start + 1).repeat(groups, 1)[None, None]

    def _attend_text(self, layer: int, q: Tensor, chunk: Chunk, mask: Tensor) -> Tensor:
        """Attention of a chunk (T, H, D) over its text so far -> (T, H, D)."""
        (T, H, D), K = q.shape, self.config.num_key_value_heads
        keys, values = self.cache.of_slots(layer, chunk.slot, chunk.slot + 1, chunk.end)  # (1, K, S, D)
        # The queries of a group are rows of one product, so each key is read once.
        rows = q.view(T, K, H // K, D).permute(1, 2, 0, 3).reshape(1, K, -1, D)  # (1, K, G T, D)
        y = self.attention(rows, keys, values, mask)
        return y.view(K, H // K, T, D).permute(2, 0, 1, 3).reshape(T, H, D)

    # --- steps ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Read one new token of the texts in the first slots.

        Args: ids (B,): the tokens; any number for a slot without a text. lengths (B,): tokens that
        each slot holds already; -1: the slot has no text, or is not to be touched. At least one
        has a text.
        Returns: the logits after each token, (B, V); those of slots without a text mean nothing.
        """
        rows = torch.arange(len(ids), device=self.device)
        given = torch.tensor(lengths)
        places = given.clamp(min=0).to(self.device)
        targets = torch.where(given < 0, self.cache.num_places, given).to(self.device)
        runs = self._runs(lengths)
        longest = max(places for _, _, places in runs)
        beyond = torch.arange(longest, device=self.device) > places[:, None]
        mask = torch.zeros(beyond.shape, dtype=self.norm.dtype, device=self.device).masked_fill_(beyond, -math.inf)
        masks = [mask[first:end, None, None, :read] for first, end, read in runs]

        def attend(layer: int, q: Tensor, keys_values: Tensor) -> Tensor:
            B, H, D = q.shape
            K = keys_values.shape[2]
            self.cache.write_rows(layer, rows, targets, keys_values)
            queries = q.view(B, K, H // K, D)
            parts = [
                self.attention(queries[first:end], *self.cache.of_slots(layer, first, end, read), part)
                for (first, end, read), part in zip(runs, masks, strict=True)
            ]
            if len(parts[0]) == B:
                return parts[0]
            y = torch.zeros_like(queries)  # zeros stay in rows without a text
            for (first, end, _), part in zip(runs, parts, strict=True):
                y[first:end] = part
            return y

        x = self._run(self._to_device(ids), places, attend)
        return self._logits(x)

    def _runs(self, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
        """Neighbouring slots that read the same number of places: (first, end, places) of each.

        On a CPU slots without a text are in none of them: reading keys is most of the work.
        """
        if self.device.type != "cpu":  # one call for all: a GPU is fast, and starting it is not
            longest = max(lengths) + 1
            return [(0, len(lengths), min(-(-longest // BORDER) * BORDER, self.cache.num_places))]
        runs: list[tuple[int, int, int]] = []
        for row, length in enumerate(lengths):
            places = -(-(length + 1) // BORDER) * BORDER
            if length >= 0 and runs and runs[-1][1:] == (row, places):
                runs[-1] = (runs[-1][0], row + 1, places)
            elif length >= 0:
                runs.append((row, row + 1, places))
        return runs

    # --- both -------------------------------------------------------------------------------------

    def _run(self, ids: Tensor, places: Tensor, attend: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """The blocks: tokens (N,) at these places -> (N, C), before the last norm.

        Args: attend: (layer, q (N, H, D), keys and values (N, 2, K, D)) -> (N, H, D), or its like;
        it also keeps keys and values.
        """
        config = self.config
        H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        cos, sin = self.cos[places], self.sin[places]  # (N, 1, D)
        x = self.embed(ids)  # (N, C)
        for number, layer in enumerate(self.layers):
            heads = layer.qkv(normalized(x, layer.input_norm, self.eps)).view(-1, H + 2 * K, D)
            qk = normalized(heads[:, : H + K], layer.head_norms, self.eps)  # (N, H + K, D)
            # RoPE (see `rotate`). The result goes back beside the values, so that keys and values
            # are written to the cache together.
            torch.addcmul(qk * cos, qk.roll(D // 2, -1), sin, out=heads[:, : H + K])
            y = attend(number, heads[:, :H], heads[:, H:].view(-1, 2, K, D))
            x = x + layer.output(y.reshape(-1, H * D))
            x = x + layer.mlp(normalized(x, layer.mlp_norm, self.eps))
        return x

    def _logits(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, V)."""
        return self.logits_of(normalized(x, self.norm, self.eps))

    def _to_device(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long).to(self.device)


def _layer(block: torch.nn.Module) -> _Layer:
    """The products of a block."""
    assert isinstance(block, Block) and isinstance(block.self_attn, Attention)
    attention = block.self_attn
    norms = [attention.q_norm.weight.expand(attention.num_heads, -1)]
    norms.append(attention.k_norm.weight.expand(attention.num_kv_heads, -1))
    qkv: Product
    output: Product
    if isinstance(attention, FusedAttention):
        qkv, output = attention.qkv_proj.product, attention.output.product
    else:
        qkv = Matrix(
            torch.cat([part.weight.detach() for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
        )
        output = Matrix(attention.o_proj.weight.detach())
    return _Layer(
        input_norm=block.input_layernorm.weight.detach(),
        qkv=qkv,
        head_norms=torch.cat(norms).detach().contiguous(),
        output=output,
        mlp_norm=block.post_attention_layernorm.weight.detach(),
        mlp=_mlp(block.mlp),
    )


def _mlp(mlp: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """The SwiGLU of a block, (N, C) -> (N, C); or its mixture of experts."""
    gate_up: Product
    down: Product
    if isinstance(mlp, FusedMLP):
        gate_up, down = mlp.gate_up_proj.product, mlp.down_proj.product
    elif isinstance(mlp, MLP):
        gate_up = Matrix(torch.cat((mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach())))
        down = Matrix(mlp.down_proj.weight.detach())
    else:
        return lambda x: mlp(x[None])[0][0]

    def swiglu(x: Tensor) -> Tensor:
        gate, up = gate_up(x).chunk(2, dim=-1)
        return down(F.silu(gate).mul_(up))

    return swiglu
