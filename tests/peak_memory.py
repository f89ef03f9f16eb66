"""How many bytes of tensors lie in memory at one time."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the tensors that are made within it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, tuple[StorageWeakRef, int]] = {}
        self.num_bytes = 0
        """The most that lived after an operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in given:
                self.living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.living = {place: pair for place, pair in self.living.items() if not pair[0].expired()}
        self.num_bytes = max(self.num_bytes, sum(size for _, size in self.living.values()))
        return result
