"""A stand-in for Apple's GPU, on a machine that has none.

All tensors really lie on the CPU. `StandIn` marks the memory of those that were moved to `mps` or
made there, and the program sees them on `mps`. A tensor that is brought back loses its mark. With
marked tensors the stand-in refuses what MPS does not have: float64, operations without an MPS
kernel, operands on two devices, and copies without waiting.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import resources
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # when it is loaded it looks at functions that are replaced below, so it comes first
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MPS, CPU = torch.device("mps", 0), torch.device("cpu")
AVOIDED = {
    "index_copy", "index_copy_", "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_flash_attention_for_cpu",
}  # fmt: skip
"""Operations that are missing, very slow or wrong on MPS in a PyTorch release that we support."""
ACROSS_DEVICES = {"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"}
"""Operations whose operands may lie on two devices."""
LOCAL = {"_local_scalar_dense", "equal", "_has_compatible_shallow_copy_type"}
"""Operations whose result is a plain number or truth value: it lies on no device."""


@cache
def without_kernel() -> frozenset[str]:
    """Operations with a kernel for CPUs and none for MPS.

    They are read from the list that PyTorch generates its code from.
    """
    text = (
        resources.files("torchgen").joinpath("packaged/ATen/native/native_functions.yaml").read_text(encoding="utf-8")
    )
    entries = dict(re.findall(r"^- func: ([\w.]+)\((.*?)(?=^- func: |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    return frozenset(name for name in entries if not _runs_on_mps(name, entries))


def _runs_on_mps(name: str, entries: dict[str, str]) -> bool:
    """Whether an operation has a kernel for MPS, or is made of other operations.

    Args: entries: operation -> its text in PyTorch's list.
    """
    entry = entries[name]
    if delegate := re.search(r"^  structured_delegate: ([\w.]+)", entry, flags=re.MULTILINE):
        return _runs_on_mps(delegate[1], entries)
    kernels = re.findall(r"^    ([A-Z]\w+(?:, ?\w+)*): ", entry, flags=re.MULTILINE)
    keys = {key.strip() for line in kernels for key in line.split(",")}
    return not keys or "MPS" in keys or any(key.startswith("Composite") for key in keys)


class _Marks:
    """The memory that counts as MPS's."""

    def __init__(self) -> None:
        self.storages: dict[int, StorageWeakRef] = {}
        self.in_move = False
        """Whether a call in Python that moves a tensor is running."""
        self.in_call = False
        """Whether a call in Python with a marked tensor is running."""

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor, or the one that it is a view of, is marked."""
        reference = self.storages.get(tensor.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def put(self, tensor: Tensor, on: bool) -> None:
        """Mark the memory of a tensor, or take the mark off."""
        storage = tensor.untyped_storage()
        self.storages.pop(storage._cdata, None)
        if on:
            self.storages[storage._cdata] = StorageWeakRef(storage)


class StandIn(TorchDispatchMode):
    """Sees every operation below autograd: checks it, and marks its results."""

    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self.marks = marks
        self.operations: set[str] = set()
        """Operations that ran on marked tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with self:  # in inference mode an operation that is made of others comes here as a whole
            if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                return result
        name, given = func._schema.name.removeprefix("aten::"), kwargs.get("device")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on = any(map(self.marks.has, tensors))
        goes_on = self.goes_on(on if tensors else self.marks.in_call, given)  # is the result on MPS?
        if given is not None:
            kwargs["device"] = CPU
        if kwargs.pop("non_blocking", False) and goes_on and not on:
            raise RuntimeError(f"MPS: {name} with non_blocking=True may read memory that was freed")
        result = func(*args, **kwargs)
        if name in LOCAL:
            return result
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if on or goes_on:
            self.operations.add(name)
            self.refuse(func, name, tensors, found if goes_on else [])
        # A view shares the memory of its base, so it has the same mark already.
        if not func.is_view and not func._schema.is_mutable:
            for tensor in found:
                self.marks.put(tensor, goes_on)
        return result

    def goes_on(self, on: bool, device: Any) -> bool:
        """Whether a result lies on MPS.

        PyTorch's own code passes on the device of a tensor, and believes that it is the CPU. So a
        request for the CPU only counts if a call in Python moves a tensor (`in_move`).
        Args: on: whether an operand lies on MPS; for a new tensor, whether one of the call does.
        device: the device that was asked for, if any.
        """
        if device is None or torch.device(device).type == "mps":
            return on or device is not None
        return on and not self.marks.in_move

    def refuse(self, func: Any, name: str, operands: list[Tensor], results: list[Tensor]) -> None:
        """Raise the error that MPS would raise, or should, where it can't do this."""
        marked = [tensor for tensor in operands if self.marks.has(tensor)]
        if any(tensor.dtype == torch.float64 for tensor in (*marked, *results)):
            raise TypeError(f"MPS: {name}: the MPS framework doesn't support float64")
        overload = func._schema.overload_name
        if name in AVOIDED or f"{name}.{overload}".rstrip(".") in without_kernel():
            raise NotImplementedError(f"MPS: {name} is not implemented for the MPS device")
        elsewhere = [tensor for tensor in operands if tensor.dim() and not self.marks.has(tensor)]
        if marked and elsewhere and name not in ACROSS_DEVICES:
            raise RuntimeError(f"MPS: {name}: expected all tensors to be on the same device")


class _Names(TorchFunctionMode):
    """Shows Python that marked tensors are on `mps`, and notes which calls move one."""

    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self.marks = marks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return MPS if self.marks.has(args[0]) else CPU
        if func is torch.device:
            return func(*args, **kwargs)
        # `mps` without a number would make PyTorch ask a driver for the current one. There is none.
        args = tuple(MPS if _is_mps(word) else word for word in args)
        kwargs = {key: MPS if _is_mps(word) else word for key, word in kwargs.items()}
        if func is Tensor.backward:  # within, Python code asks for devices again
            with self:
                return torch.autograd.backward(args[0])
        if func is Tensor.numpy and self.marks.has(args[0]):
            raise TypeError("MPS: can't convert an mps tensor to numpy. Use Tensor.cpu() first")
        if func is torch.tensor and _is_mps(kwargs.get("device")):  # its making does not come through StandIn
            func, args = Tensor.to, (func(*args, **kwargs | {"device": CPU}), MPS)
            kwargs = {}
        if func is Tensor.cpu:
            func, args = Tensor.to, (args[0], CPU)
        if func is Tensor.to and self.marks.has(args[0]):
            kwargs["copy"] = True  # PyTorch believes that it is on the CPU, and would return it unchanged
        self.marks.in_move = func is Tensor.to
        self.marks.in_call = any(isinstance(leaf, Tensor) and self.marks.has(leaf) for leaf in tree_leaves(args))
        try:
            return func(*args, **kwargs)
        finally:
            self.marks.in_move = self.marks.in_call = False


def _is_mps(word: object) -> bool:
    return (isinstance(word, str) and word == "mps") or (isinstance(word, torch.device) and word.type == "mps")


@contextmanager
def mps() -> Iterator[StandIn]:
    """Within, this is a machine with MPS. Its random generator is one of the CPU."""
    marks, generator = _Marks(), torch.Generator()
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.backends.mps.is_available", return_value=True))
        stack.enter_context(mock.patch("torch.mps.get_rng_state", generator.get_state))
        stack.enter_context(mock.patch("torch.mps.set_rng_state", generator.set_state))
        stack.enter_context(_Names(marks))
        yield stack.enter_context(StandIn(marks))
