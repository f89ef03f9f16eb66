"""Operations of training, and how many the machine can do in a second: what MFU is made of.

Model FLOPs utilisation (MFU) is tokens a second, times the operations of a token, divided by the
machine's peak. The operations of a token are 6 N + 12 L d T (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B). The causal mask is not subtracted, and the optimizer's work does not
count.

A run shows its MFU where a data sheet gives the peak. A CPU's peak would have to be measured.
Beside other programs and helper processes, and with a clock that rises and falls, a short
measurement can be several times too low, and a long one takes too much time. Benchmarks measure it.
"""

import re
import time
from collections.abc import Callable, Iterable

import torch

from configs.hardware import cpu_name
from configs.schema import ModelConfig
from model.device import DTYPES, dtype_name, has_real_bf16
from trainer.optim import NEWTON_SCHULZ_STEPS

SIDE = {"cpu": 4096, "cuda": 8192, "mps": 4096}
"""Device type -> rows and columns of the square matrices whose product measures a peak. Smaller
ones may be slower."""
REPEATS = 5
"""Products that are timed; the fastest counts."""

TERA = 1e12
"""FLOP/s of 1 TFLOP/s."""
GPU_PEAKS = {
    r"B200": 2250, r"H200 NVL": 835, r"H200": 989.4, r"H100 NVL": 835, r"H100 PCIe": 756, r"G?H[12]00( SXM.*)?": 989.4,
    r"H800 PCIe": 756, r"H800": 989.4, r"H20": 148, r"A[18]00(-SXM4|-PCIE)?": 312, r"A30": 165, r"A40": 149.7, r"A10G": 70,
    r"A10": 125, r"L40S": 362, r"L40": 181, r"L20": 119.5, r"L4": 121, r"RTX A6000": 154.8, r"RTX A5000": 111.1,
    r"RTX 6000 Ada.*": 364.2, r"GeForce RTX 5090": 209.5, r"GeForce RTX 4090": 165.2, r"GeForce RTX 4080": 97.5,
    r"GeForce RTX 3090 Ti": 80, r"GeForce RTX 3090": 71, r"GeForce RTX 3080": 59.5,
}  # fmt: skip
"""Pattern of a GPU's name, without `NVIDIA` -> peak of dense 16-bit products with float32 sums, in
TFLOP/s, from the data sheets of the maker."""


# --- operations -----------------------------------------------------------------------------------


def active_parameters(shape: ModelConfig) -> int:
    """N: parameters that one token meets. The embedding, which is also the output matrix, counts
    once; of a MoE's experts only those that a token goes to."""
    C, D = shape.hidden_size, shape.head_dim
    # Four projections (queries, keys, values, output), and the weights of the two norms of QK-norm.
    attention = C * D * 2 * (shape.num_attention_heads + shape.num_key_value_heads) + 2 * D
    # SwiGLU has three matrices: gate, up and down. A MoE adds its router.
    if shape.use_moe:
        mlp = 3 * C * shape.moe_intermediate_size * shape.num_experts_per_tok + C * shape.num_experts
    else:
        mlp = 3 * C * shape.intermediate_size
    # Each block has two more norms, and the network one at its end.
    return shape.vocab_size * C + shape.num_hidden_layers * (attention + mlp + 2 * C) + C


def training_flops(shape: ModelConfig, row_tokens: int) -> int:
    """Operations of training on one token: 6 N + 12 L d T.

    Forward, a token takes 2 operations for each parameter that it meets, and backward twice as
    many. Attention adds the scores and the weighted sum: 4 d T forward in each of L blocks, and
    twice as many backward.
    Args: row_tokens: T, tokens of a row.
    """
    attention = 12 * shape.num_hidden_layers * shape.hidden_size * row_tokens
    return 6 * active_parameters(shape) + attention


def newton_schulz_flops(shapes: Iterable[tuple[int, int]]) -> int:
    """Operations of Muon's Newton-Schulz products in one step.

    One iteration of a matrix with sides r <= c takes 2 r^2 c for its Gram matrix, 2 r^3 for the
    square of that, and 2 r^2 c for the product with the matrix.
    Args: shapes: (rows, columns) of each matrix.
    """
    total = 0
    for rows, columns in shapes:
        r, c = min(rows, columns), max(rows, columns)
        total += NEWTON_SCHULZ_STEPS * (4 * r**2 * c + 2 * r**3)
    return total


# --- peaks ----------------------------------------------------------------------------------------


def usable_dtypes(device: torch.device) -> list[str]:
    """float32, and bfloat16 where the device has instructions for it."""
    return ["float32", "bfloat16"] if has_real_bf16(device) else ["float32"]


def listed_peak(name: str) -> float | None:
    """Dense 16-bit peak of a GPU in FLOP/s, by the name that its driver gives.

    Returns: None for a GPU that is not listed, and for a slice of one (MIG).
    """
    if " MIG " in name:
        return None
    # What follows the memory's size is not the model: `H100 80GB HBM3` is an `H100`.
    bare = re.sub(r"^NVIDIA |[ -]\d+GB?\b.*", "", name)
    return next((tflops * TERA for pattern, tflops in GPU_PEAKS.items() if re.fullmatch(pattern, bare)), None)


def known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of one device in products of `dtype`, from a data sheet; None where none is known."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return None
    return listed_peak(torch.cuda.get_device_name(device))


def machine_peak(device: torch.device) -> tuple[float, str]:
    """Peak of one device in the best of its dtypes.

    A listed GPU has the figure of its data sheet. For others, square products of each dtype are
    timed now, with the threads that torch uses. That takes seconds, and the machine should do
    nothing else.
    Returns: FLOP/s, and where the figure is from.
    """
    dtypes = [DTYPES[name] for name in usable_dtypes(device)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    if peak := max(known_peak(device, dtype) or 0.0 for dtype in dtypes):
        return peak, f"{name}, dense 16-bit, data sheet"
    side = SIDE[device.type]
    speeds = {dtype: _square_speed(side, dtype, device) for dtype in dtypes}
    best = max(speeds, key=lambda dtype: speeds[dtype])
    return speeds[best], f"{name}, measured: {dtype_name(best)} product of {side} x {side}"


def _square_speed(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the fastest of REPEATS products of two square matrices."""
    own = torch.Generator().manual_seed(0)  # drawing from torch's own would change a run's numbers
    a, b = (torch.randn(side, side, generator=own).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / min(timed(lambda: torch.mm(a, b, out=out), device, REPEATS))


def timed(work: Callable[[], object], device: torch.device, repeat: int) -> list[float]:
    """Seconds of each of `repeat` calls, after one call that is not counted."""
    found: list[float] = []
    work()
    for _ in range(repeat):
        _finish(device)
        start = time.perf_counter()
        work()
        _finish(device)
        found.append(time.perf_counter() - start)
    return found


def _finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
