"""Attention: the right way is chosen, and each gives the values and gradients of PyTorch's own."""

import importlib.util
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from model import attention
from model.attention import (
    SQUARE,
    blocked_attention,
    blocks,
    document_attention,
    document_blocks,
    flex_works,
    plan,
    product_attention,
    repeated_attention,
)
from tests.peak_memory import PeakMemory

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def causal_mask(documents: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, T, T), true where a query may look."""
    T = documents.shape[1]
    return (documents[:, :, None] == documents[:, None, :]) & documents.new_ones(T, T, dtype=torch.bool).tril()


def causal_bias(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T) document numbers -> (B, 1, T, T)."""
    allowed = causal_mask(documents)
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, -math.inf)[:, None]


def packed(B: int, T: int, *, num_documents: int = 4, falling: bool = False) -> Tensor:
    """(B, T) document numbers as packing makes them, or in no order at all.

    The last third of the first row is padding.
    """
    torch.manual_seed(T)
    documents = torch.randint(0, num_documents, (B, T))
    if not falling:
        documents = documents.sort(dim=1).values
    documents[0, T - T // 3 :] = -1
    return documents


def inputs(B: int, H: int, K: int, T: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(B * T)
    heads = [torch.randn(B, T, heads, D).to(dtype).transpose(1, 2) for heads in (H, K, K)]  # as the network makes them
    return [tensor.requires_grad_() for tensor in heads]


FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("device", "dtype", "given", "way", "has_bias"),
    [
        ("cpu", FLOAT32, "", "blocked", True),
        ("cpu", BFLOAT16, "documents", "blocked", True),
        ("mps", FLOAT32, "documents", "blocked", True),
        ("cuda", FLOAT32, "", "repeated", False),
        ("cuda", BFLOAT16, "", "grouped", False),
        ("cuda", BFLOAT16, "documents", "repeated", True),
        ("cuda", BFLOAT16, "documents, flex works", "document", True),
    ],
)
def test_each_device_has_its_way(device: str, dtype: torch.dtype, given: str, way: str, has_bias: bool) -> None:
    T = 4
    x: Any = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(2, T, 8))  # no GPU is needed to choose
    chosen = plan(
        x,
        document_ids=packed(2, T) if "documents" in given else None,
        flex_works=lambda ids: given.endswith("works"),
    )
    assert chosen.way is getattr(attention, f"{way}_attention")
    assert (chosen.pairs is not None) is has_bias
    if isinstance(chosen.pairs, Tensor):
        assert chosen.pairs.dtype == dtype and chosen.pairs.shape[2:] == (T, T)


@pytest.mark.parametrize("block", [3, 8, 128])
@pytest.mark.parametrize(("B", "H", "K", "T"), [(1, 1, 1, 1), (2, 4, 2, 8), (2, 6, 2, 11), (1, 3, 3, 20)])
def test_values_and_gradients_equal_those_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, block: int, B: int, H: int, K: int, T: int
) -> None:
    monkeypatch.setattr(attention, "BLOCK_QUERIES", block)
    documents = torch.randint(0, 3, (B, T)).sort(dim=1).values
    bias = causal_bias(documents, torch.float64)
    q, k, v = inputs(B, H, K, T, 4, torch.float64)
    weights = torch.randn(B, H, T, 4, dtype=torch.float64)
    results = []
    for attend in (
        blocked_attention,
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True),
    ):
        y = attend(q, k, v, bias)
        results.append([y, *torch.autograd.grad((y * weights).sum(), (q, k, v))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_equal_finite_differences() -> None:
    q, k, v = inputs(1, 2, 1, 5, 2, torch.float64)
    bias = causal_bias(torch.tensor([[0, 0, 1, 1, 1]]), torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: blocked_attention(q, k, v, bias), (q, k, v))


def test_bfloat16_is_as_close_to_the_truth_as_pytorchs() -> None:
    q, k, v = inputs(2, 4, 2, 160, 32, torch.bfloat16)
    documents = (torch.arange(160) // 50).expand(2, 160)
    bias = causal_bias(documents, torch.bfloat16)
    truth = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=bias.double(), enable_gqa=True)
    ours = (blocked_attention(q, k, v, bias).double() - truth).abs().mean()
    theirs = (F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True).double() - truth).abs().mean()
    assert ours < 2 * theirs


def test_probabilities_are_kept_for_a_backward_pass_alone() -> None:
    q, k, v = inputs(2, 4, 2, 1024, 4, torch.float32)
    bias = causal_bias(torch.zeros(1, 1024, dtype=torch.long), torch.float32)
    peaks = []
    for tensors in ((q, k, v), [tensor.detach() for tensor in (q, k, v)]):
        with PeakMemory() as peak:
            found = blocked_attention(*tensors, bias)
        peaks.append(peak.num_bytes)
        del found
    with torch.no_grad(), PeakMemory() as peak:
        blocked_attention(q * 1, k * 1, v * 1, bias)
    scores_of_block = 4 * 2 * 4 * attention.BLOCK_QUERIES * 1024
    assert peaks[0] > 4 * scores_of_block  # half of all 8 blocks, and more
    assert peaks[1] < 3 * scores_of_block
    assert peak.num_bytes < 3.5 * scores_of_block


@pytest.mark.parametrize(
    ("B", "H", "K", "T", "S"), [(1, 1, 1, 1, 1), (2, 4, 2, 1, 9), (2, 6, 2, 5, 11), (1, 3, 3, 7, 7)]
)
def test_products_over_a_cache_equal_pytorchs_attention(B: int, H: int, K: int, T: int, S: int) -> None:
    q, _, _ = inputs(B, H, K, T, 4, torch.float64)
    _, k, v = inputs(B, H, K, S + 3, 4, torch.float64)
    k, v = k[:, :, :S], v[:, :, :S]  # as the cache gives them
    allowed = torch.rand(B, 1, T, S) < 0.6
    allowed[..., 0] = True
    bias = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -math.inf)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
    torch.testing.assert_close(product_attention(q, k, v, bias), theirs)


def test_blocks_cover_every_query_once() -> None:
    for num_tokens in (1, 127, 128, 129, 300):
        covered = [place for start, end in blocks(num_tokens) for place in range(start, end)]
        assert covered == list(range(num_tokens))


# --- documents packed in rows ---------------------------------------------------------------------

LENGTHS = [1, 40, SQUARE, SQUARE + 72, 4 * SQUARE]


@pytest.mark.parametrize("T", LENGTHS)
def test_document_blocks_allow_the_pairs_that_the_dense_mask_allows(T: int) -> None:
    documents = packed(3, T)
    place = torch.arange(T)
    visible = document_blocks(documents).mask_mod(
        torch.arange(3)[:, None, None], torch.zeros((), dtype=torch.long), place[None, :, None], place[None, None, :]
    )
    assert torch.equal(visible, causal_mask(documents))
    assert visible.diagonal(dim1=1, dim2=2).all()  # no row is empty, of padding neither


def squares(count: Tensor, order: Tensor) -> Tensor:
    """The two lists of a BlockMask as booleans, (B, N, N)."""
    N = order.shape[-1]
    listed = torch.zeros(len(order), N, N, dtype=torch.bool)
    for row, query in ((row, query) for row in range(len(order)) for query in range(N)):
        listed[row, query, order[row, 0, query, : count[row, 0, query]]] = True
    return listed


@pytest.mark.parametrize("num_documents", [1, 2, 9])
@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
def test_squares_that_are_passed_over_hold_no_pair_and_whole_ones_every_pair(
    T: int, falling: bool, num_documents: int
) -> None:
    documents = packed(3, T, num_documents=num_documents, falling=falling)
    found = document_blocks(documents)
    partial, whole = (
        squares(found.kv_num_blocks, found.kv_indices),
        squares(found.full_kv_num_blocks, found.full_kv_indices),
    )
    N = partial.shape[-1]
    pairs = F.pad(causal_mask(documents), (0, N * SQUARE - T, 0, N * SQUARE - T)).view(3, N, SQUARE, N, SQUARE)
    some, every = pairs.any(dim=4).any(dim=2), pairs.all(dim=4).all(dim=2)
    assert not (partial & whole).any()
    assert every[whole].all()
    assert (partial | whole)[some].all()
    if not falling:
        assert torch.equal(partial | whole, some) and torch.equal(whole, every)
    # the backward pass goes through the same squares by their keys
    assert torch.equal(squares(found.q_num_blocks, found.q_indices), partial.mT)
    assert torch.equal(squares(found.full_q_num_blocks, found.full_q_indices), whole.mT)


@pytest.mark.parametrize(("H", "K", "D"), [(4, 4, 16), (4, 2, 16), (6, 2, 16), (4, 1, 16), (4, 2, 80), (4, 2, 96)])
@pytest.mark.parametrize("T", [40, SQUARE + 72])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as a reference it may be slow
def test_document_attention_equals_the_dense_one(
    monkeypatch: pytest.MonkeyPatch, T: int, H: int, K: int, D: int
) -> None:
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_attention)
    documents = packed(2, T)
    q, k, v = (x.detach() for x in inputs(2, H, K, T, D, torch.float32))
    dense = blocked_attention(q, k, v, causal_bias(documents, torch.float32))
    torch.testing.assert_close(document_attention(q, k, v, document_blocks(documents)), dense)


@pytest.mark.parametrize("compiling", [False, True])
def test_short_rows_do_not_take_the_kernel_for_decoding(monkeypatch: pytest.MonkeyPatch, compiling: bool) -> None:
    asked: list[dict[str, Any]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        asked.append(options["kernel_options"])
        return q

    monkeypatch.setattr(attention, "flex_attention", attend)
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: attend)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    document_attention(*inputs(1, 2, 1, 40, 16, torch.float32), document_blocks(packed(1, 40)))
    assert asked == [{"FORCE_USE_FLEX_ATTENTION": True}]


def test_repeated_attention_equals_the_blocked_one() -> None:
    q, k, v = inputs(2, 6, 2, 20, 4, torch.float64)
    bias = causal_bias(packed(2, 20), torch.float64)
    results = []
    for attend in (repeated_attention, blocked_attention):
        y = attend(q, k, v, bias)
        results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@ON_CUDA
@pytest.mark.parametrize(
    ("T", "D", "dtype"),
    [
        (40, 64, torch.bfloat16),
        (SQUARE + 72, 64, torch.float32),
        (4 * SQUARE, 64, torch.bfloat16),
        (4 * SQUARE, 80, torch.bfloat16),
        (SQUARE + 72, 96, torch.bfloat16),
    ],
)
def test_on_cuda_values_and_gradients_equal_those_of_the_dense_mask(T: int, D: int, dtype: torch.dtype) -> None:
    documents = packed(2, T).cuda()
    q, k, v = (x.detach().cuda().requires_grad_() for x in inputs(2, 8, 2, T, D, dtype))
    bias = causal_bias(documents, torch.float64)
    precise = [x.double() for x in (q, k, v)]
    truth = F.scaled_dot_product_attention(*precise, attn_mask=bias, enable_gqa=True)
    fused = document_attention(q, k, v, document_blocks(documents))
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # refuses where that kernel does not take it
        masked = repeated_attention(q, k, v, bias.to(dtype))
    wanted = [truth, *torch.autograd.grad(truth.square().sum(), (q, k, v))]
    tolerance = {"atol": 0.1, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-3, "rtol": 1e-3}
    for y in (fused, masked):
        found = [y, *torch.autograd.grad(y.float().square().sum(), (q, k, v))]
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), **tolerance)


@ON_CUDA
def test_on_cuda_the_mask_is_made_without_waiting_for_the_device() -> None:
    documents = packed(4, 4 * SQUARE).cuda()
    document_blocks(documents)
    torch.cuda.set_sync_debug_mode("error")
    try:
        document_blocks(documents)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Trial:
    """Stands for the attention that is tried: it counts the trials, and fails if it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.count = error, 0

    def __call__(self) -> None:
        self.count += 1
        if self.error is not None:
            raise self.error


SHAPE = (4, 2, 64)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Make torch answer as if there were a GPU that can do all; nothing has been tried on it."""
    monkeypatch.setattr(attention, "_TRIED", {})
    attention._tell.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Model T")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return torch.device("cuda", 0)


def test_flex_attention_is_tried_once_and_then_used(gpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial()
    assert all(flex_works(gpu, SHAPE, torch.bfloat16, trial) for _ in range(3))
    assert trial.count == 1
    assert capsys.readouterr().err == ""


def test_blocks_that_make_kernels_of_their_own_are_told_without_a_trial(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(RuntimeError("out of resource"))
    assert flex_works(gpu, SHAPE, torch.bfloat16, trial, untried=True) and trial.count == 0
    assert not flex_works(gpu, SHAPE, torch.bfloat16, trial) and trial.count == 1
    assert not flex_works(gpu, SHAPE, torch.bfloat16, trial, untried=True)  # known by now
    old(monkeypatch)
    assert not flex_works(gpu, SHAPE, torch.float16, trial, untried=True) and trial.count == 1


def test_where_flex_attention_fails_one_line_says_why_and_it_is_not_tried_again(
    gpu: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(RuntimeError("Failed to find C compiler.\nMore lines"))
    assert not any(flex_works(gpu, SHAPE, dtype, trial) for dtype in (torch.bfloat16, torch.float16) for _ in range(2))
    assert trial.count == 2  # once a dtype
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "RuntimeError: Failed to find C compiler." in lines[0] and "无法使用" in lines[0]


def old(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))


def without_triton(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("change", "device", "head_dim", "words"),
    [
        (old, "cuda:0", 64, "Model T is older than Ampere"),
        (without_triton, "cuda:0", 64, "Triton is not installed"),
        (lambda patch: None, "cuda:0", 8, "head_dim 8"),
        (lambda patch: None, "xpu", 64, "no backward pass on xpu"),
    ],
)
def test_flex_attention_is_not_even_tried_where_it_cannot_work(
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[pytest.MonkeyPatch], None],
    device: str,
    head_dim: int,
    words: str,
) -> None:
    change(monkeypatch)
    trial = Trial()
    assert not flex_works(torch.device(device), (4, 2, head_dim), torch.float32, trial)
    assert trial.count == 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_cpu_and_mps_have_their_own_attention_and_nothing_to_say(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not flex_works(torch.device(device), SHAPE, torch.float32, Trial())
    assert capsys.readouterr().err == ""


def test_a_full_memory_is_not_taken_for_a_missing_kernel(gpu: torch.device) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        flex_works(gpu, SHAPE, torch.float32, Trial(torch.OutOfMemoryError("CUDA out of memory")))
    assert flex_works(gpu, SHAPE, torch.float32, Trial())
