"""Where a program computes and with which numbers: device, dtype, threads, memory, seed."""

import ctypes
import os
import platform
import random
import sys

import numpy as np
import torch
from torch import Tensor

from configs.hardware import cpu_has_bf16, num_cores
from configs.schema import DEVICES, UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# --- device and threads ---------------------------------------------------------------------------


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    It also limits torch's threads to the cores that this process may use (`keep_to_quota`).
    Raises: UserError if the device asked for is not there.
    """
    keep_to_quota()
    if name == "auto":
        if torch.cuda.is_available():
            return _gpu(int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"device {name}: unknown. Use one of {', '.join(DEVICES)}, or cuda:N.", "没有这种设备：请用列出的名称"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device {name}: this PyTorch ({torch.__version__}) sees no CUDA GPU. "
            "Run python scripts/doctor.py to see why, or pass --device cpu.",
            "PyTorch 找不到显卡：请运行该命令查原因，或用 --device cpu",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {name}: this PyTorch has no MPS. Pass --device cpu.", "没有 MPS：请用 --device cpu")
    if device.type == "cuda":
        return _gpu(int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index)
    return device


def keep_to_quota() -> None:
    """Lower torch's threads to the cores that this process may use.

    By itself torch starts one for each core of the machine. A number that the user has set in
    OMP_NUM_THREADS stays.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > num_cores():
        torch.set_num_threads(num_cores())


def leave_a_core() -> None:
    """Let torch use one core fewer than there are, for a program that does other work beside it.

    Torch's threads wait for each other after each operation. While the other work has one of their
    cores, all of them wait. A number that the user has set in OMP_NUM_THREADS stays.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() - 1)))


def _gpu(number: int) -> torch.device:
    if number >= torch.cuda.device_count():
        raise UserError(
            f"cuda:{number}: the GPUs here are numbered 0 to {torch.cuda.device_count() - 1}. Pass another --device, or start "
            "fewer processes (NUM_GPUS, --nproc_per_node).",
            "没有这块显卡：请换 --device，或减少进程数",
        )
    return torch.device("cuda", number)


# --- dtype ----------------------------------------------------------------------------------------


def has_real_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices by instructions of its own.

    CUDA does from Ampere on, a CPU with avx512_bf16 or amx_bf16. Elsewhere such a product is
    emulated, on a CPU a hundred times as slow as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_bf16()


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 if the hardware has it; else float16 on CUDA, and float32 elsewhere."""
    if name != "auto":
        return DTYPES[name]
    if has_real_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, without the `torch.` before it."""
    return str(dtype).removeprefix("torch.")


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products with `x`: autocast's if it is active, else that of `x`."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype


# --- memory ---------------------------------------------------------------------------------------

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; another C library is left as it is.

    By itself it gives every large tensor back to the system and asks for it again. Each time the
    system fills it with zeros page by page, which takes a sixteenth of a step's time at 512 x 8
    (docs/lab_log.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    # No tensor gets pages of its own (mmap), and the end of the heap is never given back.
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


CARD_MARGIN = 0.05
"""Share of a GPU's memory that is left free for the desktop and libraries if the driver spills."""


def driver_spills() -> bool:
    """Whether the GPU's driver lends the host's memory when its own is full.

    That of Windows does, WSL2 included. Then nothing is ever out of memory; a step that does not
    fit is many times slower instead.
    """
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def stay_on_card(device: torch.device) -> None:
    """Let PyTorch run out of memory when the card's own memory is full.

    This process may take what is free now, less `CARD_MARGIN`.
    """
    free, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(max(0.0, free / total - CARD_MARGIN), device)


# --- seed -----------------------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
