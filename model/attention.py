"""Attention: five ways to compute it, and the choice between them.

`plan` chooses once in a forward pass. `attend` follows the plan in every block. The choice depends
on the device, and on which pairs of tokens may meet. Generation, which has a cache before the new
tokens, calls its ways directly (model/decoder.py).

- `blocked_attention`, whole rows on a CPU and on MPS: batched matrix products. PyTorch's own CPU
  kernel for scaled dot products works in small tiles and reaches a tenth of the speed that the same
  CPU has in matrix products. Here queries are taken in blocks, and a block is multiplied only with
  the keys up to its end. Most of the work that causality forbids is never done, and what is done
  runs at full speed (docs/lab_log.md has the figures).
- `product_attention`, generation on MPS: the same products without blocks. PyTorch's own
  kernels there are left out: in some releases those for few queries read beyond the keys, and give
  wrong numbers without an error (PyTorch's pull request 169222 and its issue 174861).
- `document_attention`, documents packed in rows on a GPU: FlexAttention, one kernel made for this
  mask. It never holds the scores, and passes over each square of them in which no query and key
  share a document.
- `repeated_attention`, other whole rows on a GPU that PyTorch's one kernel for groups can't take:
  with a mask, or in a dtype other than bfloat16.
- `grouped_attention`, all else: PyTorch's choice, which is its flash kernel if there is one.

Shapes: B batch, H query heads, K key/value heads, T tokens, D head size, S tokens attended to, or
queries of a block, E keys up to its end, N squares along a row.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from configs.messages import warn
from model.device import compute_dtype

# --- the choice -----------------------------------------------------------------------------------

PRODUCT_DEVICES = frozenset({"cpu", "mps"})
"""Types of device whose whole rows go through `blocked_attention`."""


@dataclass(frozen=True)
class Plan:
    """How all blocks of one forward pass compute attention."""

    way: Callable[..., Tensor]
    """One of four: queries (B, H, T, D), keys, values (B, K, T, D), pairs -> (B, H, T, D)."""
    pairs: Tensor | BlockMask | None
    """Which query may look at which key. A tensor (B or 1, 1, T, T) is added to the scores: 0 where
    it may, -inf elsewhere. A BlockMask is that of `document_attention`. None: causal."""


def plan(
    x: Tensor,
    *,
    document_ids: Tensor | None,
    flex_works: Callable[[Tensor], bool],
) -> Plan:
    """Choose the way and make the mask, for all blocks at once.

    Args: x (B, T, C): what the first block reads. document_ids (B, T): a token sees only earlier
    tokens of its own document; without them attention is causal. flex_works: whether
    `document_attention` can be used for these document_ids; it is called only if that way would be
    taken.
    """
    device = x.device.type
    if document_ids is not None and flex_works(document_ids):
        return plan_of_documents(document_ids)
    bias = _bias(_allowed(x, document_ids), compute_dtype(x))
    if device in PRODUCT_DEVICES:
        return Plan(blocked_attention, bias)
    # A causal row needs no mask. But in float32, and in float16 on the GPUs that have no bfloat16,
    # PyTorch's one kernel for groups holds all scores. With repeated keys there is one that does
    # not.
    if bias is not None or (device == "cuda" and compute_dtype(x) != torch.bfloat16):
        return Plan(repeated_attention, bias)
    return Plan(grouped_attention, bias)


def plan_of_documents(document_ids: Tensor) -> Plan:
    """FlexAttention over documents packed in rows (B, T)."""
    return Plan(document_attention, document_blocks(document_ids))


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the pairs of the plan: each query head with its group's keys.

    Args: q (B, H, T, D). k, v (B, K, T, D), H a multiple of K. Returns: (B, H, T, D).
    """
    return plan.way(q, k, v, plan.pairs)


def _allowed(x: Tensor, document_ids: Tensor | None) -> Tensor | None:
    """Which pairs may meet, boolean (B or 1, 1, T, T).

    None: causal, told to a kernel that needs no mask for it.
    """
    T, device = x.shape[1], x.device
    if document_ids is not None:
        same = document_ids[:, :, None] == document_ids[:, None, :]  # (B, T, T)
        return (same & torch.ones(T, T, dtype=torch.bool, device=document_ids.device).tril())[:, None]
    if device.type in PRODUCT_DEVICES:  # our own products read a mask
        return torch.ones(T, T, dtype=torch.bool, device=device).tril()[None, None]
    return None


def _bias(allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The same as numbers to add to the scores: 0 where a query may look, -inf elsewhere.

    PyTorch also takes booleans, but then it makes these numbers again in every block.
    """
    if allowed is None:
        return None
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -math.inf)


# --- products: on a CPU and on MPS ----------------------------------------------------------------

BLOCK_QUERIES = 128
"""Queries of one block."""


class _BlockedAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D) + bias) v, block by block.

    The probabilities p are kept if a backward pass may follow. With g = dL/dout it computes
    dL/dv = p^T g, and from the gradient of the scores, softmax'(g v^T), those of q and k.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        B, H, T, D = q.shape
        K = k.shape[1]
        scaled = q * D**-0.5
        keys, values = k.reshape(B * K, T, D), v.reshape(B * K, T, D)
        out = torch.empty_like(q)
        kept = []
        for start, end in blocks(T):
            # A block of queries meets the keys up to its own end; what lies beyond is never
            # computed.
            scores = torch.bmm(_grouped(scaled[:, :, start:end], K), keys[:, :end].mT)  # (B K, H/K S, E)
            scores = scores.view(B, H, end - start, end).add_(bias[:, :, start:end, :end])
            p = scores.softmax(dim=-1).view(B * K, -1, end)
            out[:, :, start:end] = torch.bmm(p, values[:, :end]).view(B, H, end - start, D)
            if any(ctx.needs_input_grad):  # all blocks together hold half the scores of all heads
                kept.append(p)
        ctx.save_for_backward(scaled, keys, values, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grad_outputs
        scaled, keys, values, *probabilities = ctx.saved_tensors
        B, H, T, D = scaled.shape
        K = keys.shape[0] // B
        grad_q, grad_k, grad_v = torch.empty_like(scaled), torch.zeros_like(keys), torch.zeros_like(values)
        for (start, end), p in zip(blocks(T), probabilities, strict=True):
            grad_block = _grouped(grad[:, :, start:end], K)  # (B K, H/K S, D)
            grad_v[:, :end] += torch.bmm(p.mT, grad_block)
            grad_p = torch.bmm(grad_block, values[:, :end].mT)  # (B K, H/K S, E)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, start:end] = torch.bmm(grad_scores, keys[:, :end]).view(B, H, end - start, D)
            grad_k[:, :end] += torch.bmm(grad_scores.mT, _grouped(scaled[:, :, start:end], K))
        return grad_q * D**-0.5, grad_k.view(B, K, T, D), grad_v.view(B, K, T, D), None


def blocks(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Where each block of queries begins and ends."""
    for start in range(0, num_tokens, BLOCK_QUERIES):
        yield start, min(start + BLOCK_QUERIES, num_tokens)


def _grouped(x: Tensor, num_kv_heads: int) -> Tensor:
    """The queries that share a key head, one after another: (B, H, S, D) -> (B K, H/K S, D).

    So each key and value is read once for all queries of its group, and never copied.
    """
    B, _, _, D = x.shape
    return x.reshape(B * num_kv_heads, -1, D)


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Grouped-query attention, with gradients for q, k and v.

    Args: q (B, H, T, D). k, v (B, K, T, D), H a multiple of K. bias (B or 1, 1, T, T) in their
    dtype: 0 where a query may look, -inf elsewhere. It is causal: all above the diagonal is -inf,
    and is never read beyond a block's end. Returns: (B, H, T, D).
    """
    out: Tensor = _BlockedAttention.apply(q, k, v, bias)
    return out


def product_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Grouped-query attention of T queries over S keys as two products; all scores exist at once.

    Args: q (B, H, T, D). k, v (B, K, S, D), H a multiple of K. bias (B or 1, 1, T, S) in their
    dtype: 0 where a query may look, -inf elsewhere. Returns: (B, H, T, D).
    """
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    scores = torch.bmm(_grouped(q * D**-0.5, K), k.reshape(B * K, S, D).mT)  # (B K, H/K T, S)
    p = (scores.view(B, H, T, S) + bias).softmax(dim=-1).view(B * K, -1, S)
    return torch.bmm(p, v.reshape(B * K, S, D)).view(B, H, T, D)


# --- documents packed in rows, on a GPU -----------------------------------------------------------

SQUARE = 128
"""Queries and keys of one square of scores, which FlexAttention computes or passes over whole."""

KERNEL_OPTIONS: Any = {"FORCE_USE_FLEX_ATTENTION": True}
"""Without it rows of fewer than 128 tokens would take the kernel for decoding. Its tiles hold all
queries of a group at once, and it fails if these are more than a square: in rows of 33 tokens, 8
query heads on 2 key heads are."""


def document_blocks(document_ids: Tensor) -> BlockMask:
    """What FlexAttention computes: causal, and within one document.

    Negative numbers are padding, a document of its own.

    PyTorch's `create_block_mask` would ask for every pair of tokens, (B, T, T). The lowest and the
    highest number in each square's rows and columns tell enough, in a few small operations: nothing
    to compile, no wait for the device. A square that is listed without need only costs time, as
    `visible` still decides each of its pairs. A square listed as whole is not checked again. Both
    lists are exact if the numbers of a row never fall, as packing makes them.

    Each token sees itself, padding too, so no row of scores is empty: no softmax over nothing, and
    no NaN.

    Args: document_ids (B, T), below 2**31 - 2.
    Returns: the mask of (B, 1, T, T), which holds no tensor of that shape.
    """
    T = document_ids.shape[1]
    beyond = torch.iinfo(torch.int32).max
    ids = document_ids.to(torch.int32).masked_fill(document_ids < 0, beyond - 1)  # (B, T): padding as the last document

    # The kernel is compiled once for this code; the tensor `ids` becomes an argument to it.
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (ids[batch, query] == ids[batch, key])

    # Places beyond the row have a number that no token has. So a square that reaches there is
    # never whole, and `visible` decides about its pairs.
    squares = F.pad(ids, (0, -T % SQUARE), value=beyond).unflatten(1, (-1, SQUARE))  # (B, N, SQUARE)
    low, high = squares.amin(dim=-1), squares.amax(dim=-1)  # (B, N)
    # Two squares can share a document only if their ranges of numbers overlap.
    meet = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])  # (B, N queries, N keys)
    single = low == high
    whole = (meet & single[:, :, None] & single[:, None, :]).tril(-1)  # one document, before the diagonal
    partial = meet.tril() & ~whole
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(whole), BLOCK_SIZE=SQUARE, mask_mod=visible, seq_lengths=(T, T)
    )


def _listed(squares: Tensor) -> tuple[Tensor, Tensor]:
    """How many squares of each row are true, (B, 1, N), and their places, true ones first,
    (B, 1, N, N)."""
    order = squares.int().argsort(dim=-1, descending=True, stable=True)
    return squares.sum(dim=-1, dtype=torch.int32)[:, None], order.int()[:, None]


def document_attention(q: Tensor, k: Tensor, v: Tensor, documents: BlockMask) -> Tensor:
    """Grouped-query attention within documents, with gradients for q, k and v.

    Keys and values are not copied. A head of any even size is taken: the kernel rounds it up to a
    power of two and masks the rest.
    Args: q (B, H, T, D). k, v (B, K, T, D), H a multiple of K. documents: from `document_blocks`.
    Returns: (B, H, T, D).
    """
    if torch.compiler.is_compiling():  # the block around it, which it becomes a part of
        return flex_attention(q, k, v, block_mask=documents, enable_gqa=True, kernel_options=KERNEL_OPTIONS)
    compiled = _compiled_flex_attention()  # uncompiled it holds all scores
    return compiled(q, k, v, block_mask=documents, enable_gqa=True, kernel_options=KERNEL_OPTIONS)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention as one kernel, which the first call makes.

    When the number of rows changes, a second one is made, for any number of rows.
    """
    return torch.compile(flex_attention)


_TRIED: dict[Hashable, bool] = {}
"""What `flex_works` found out."""


def flex_works(
    device: torch.device,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    trial: Callable[[], object],
    *,
    untried: bool = False,
) -> bool:
    """Whether `document_attention` can be used. If not, a line on stderr says why, once.

    Only a trial can tell: a compiler may be missing, or a head may be too large for the memory on
    the GPU's chip. So the first call computes attention forward and backward. Its result is thrown
    away, but the training uses its kernels.

    Args: shape (H, K, D). trial: computes attention that way, and its gradients. untried: take it
    for working without a trial, unless something is known against it. That is for compiled blocks:
    they make kernels of their own, so those of a trial would not be used.
    """
    if device.type in PRODUCT_DEVICES:
        return False  # no backward pass there, and `blocked_attention` is fast
    key = (device, shape, dtype)
    if key not in _TRIED:
        reason = _obstacle(device, head_dim=shape[-1])
        if untried and not reason:
            return True
        reason = reason or _failure(trial)
        _TRIED[key] = not reason
        if reason:
            _tell(reason)
    return _TRIED[key]


def _obstacle(device: torch.device, *, head_dim: int) -> str:
    """Why FlexAttention need not be tried; empty if it may work."""
    if device.type != "cuda":
        return f"it has no backward pass on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if head_dim < 16:
        return f"head_dim {head_dim} is below 16"
    return ""


def _failure(trial: Callable[[], object]) -> str:
    """How the trial fails; empty if it does not."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            trial()
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel
    except Exception as error:  # whatever a compiler may raise
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:200]}"
    return ""


@functools.cache
def _tell(reason: str) -> None:
    warn(
        f"FlexAttention cannot be used here ({reason}); packed documents take PyTorch's masked attention, with the same "
        "results, more slowly and in more memory.",
        "无法使用 FlexAttention，改用较慢、占用内存较多的实现，结果相同",
    )


# --- PyTorch's kernels ----------------------------------------------------------------------------


def repeated_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention in which each query head has keys and values of its own, copied from its group's.

    Of PyTorch's CUDA kernels flash takes no mask and no float32, and the memory-efficient one no
    groups. Asked for both, PyTorch computes and keeps all scores. So keys and values are repeated
    here, which costs little beside that.
    Args: q (B, H, T, D). k, v (B, K, T, D), H a multiple of K. bias (B or 1, 1, T, T), added to the
    scores; None: causal. Returns: (B, H, T, D).
    """
    groups = q.shape[1] // k.shape[1]
    k, v = (x[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for x in (k, v))  # (B, H, T, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Grouped-query attention by the kernel that PyTorch chooses; keys and values are not copied.

    Args: q (B, H, T, D). k, v (B, K, T, D), H a multiple of K. bias (B or 1, 1, T, T), added to the
    scores; None: causal. Returns: (B, H, T, D).
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=True)
