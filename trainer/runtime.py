"""One training process: where it computes, its place among the others, its random generators."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.hardware import num_cores
from model.device import choose_device, choose_dtype, driver_spills, dtype_name, keep_freed_memory, stay_on_card
from trainer.processes import Group

PARENT_VARIABLE = "MINILLM_PARENT_PID"
"""Set by `run.sh` to its own process id: a trainer whose pipeline is gone saves and ends."""
PATIENCE = timedelta(hours=12)
"""How long processes wait for one that tokenizes the data or computes a reference for all. By
itself NCCL gives up after 10 minutes."""


@dataclass(frozen=True)
class Runtime:
    """Where one process computes, and its place among the others."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world_size: int = 1

    @classmethod
    def start(cls, device: str, dtype: str, *, deterministic: bool = False, group: Group | None = None) -> "Runtime":
        """Choose device and dtype, and join the other processes.

        Args: deterministic: take only kernels that give the same bits each time, as those of a CPU
        do anyway. group: our own processes on a CPU; without it those of torchrun, if any.
        """
        chosen = choose_device(device)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU's first product is made
            torch.use_deterministic_algorithms(True)
            # by itself fills new tensors, a guard against bugs which costs time
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
            if driver_spills():
                stay_on_card(chosen)
        elif chosen.type == "cpu":
            keep_freed_memory()
        if group is not None:
            group.join(PATIENCE)
            return cls(chosen, choose_dtype(dtype, chosen), group.rank, group.world_size)
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size > 1 and not dist.is_initialized():
            on_gpu = chosen.type == "cuda"
            dist.init_process_group(
                "nccl" if on_gpu else "gloo", timeout=PATIENCE, device_id=chosen if on_gpu else None
            )
        return cls(chosen, choose_dtype(dtype, chosen), int(os.environ.get("RANK", "0")), world_size)

    @property
    def machine(self) -> dict[str, Any]:
        """What dtype and threads are chosen by.

        A run that resumes where this is the same repeats them; elsewhere they are chosen again.
        """
        return {
            "device": self.device.type,
            "gpu": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "",
            "dtype": dtype_name(choose_dtype("auto", self.device)),
            "cores": num_cores(),
        }

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @property
    def is_asynchronous(self) -> bool:
        """Whether a step may still be computed after it was asked for, as on a GPU."""
        return self.device.type != "cpu"

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def pinned(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch that the GPU can fetch while it works; elsewhere the batch itself."""
        if self.device.type != "cuda":
            return batch
        try:
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        except RuntimeError:  # WSL2 allows little pinned memory, and from other memory the GPU can be served too
            return batch

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch; to a CUDA GPU without waiting for it.

        On MPS a copy that nobody waits for may read memory which has been freed (PyTorch's issue
        189690).
        """
        at_once = self.device.type == "cuda"
        return {name: tensor.to(self.device, non_blocking=at_once) for name, tensor in batch.items()}

    def fetched(self, numbers: Tensor) -> Callable[[], list[float]]:
        """Send a few numbers (n,) to the host.

        Returns: a function that gives them. It waits until they are there, and for nothing that the
        GPU was asked for later.
        """
        if self.device.type != "cuda":
            return numbers.tolist
        host = self.pinned({"numbers": torch.empty(numbers.shape, dtype=numbers.dtype)})["numbers"]
        host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def read() -> list[float]:
            arrived.synchronize()
            values: list[float] = host.tolist()
            return values

        return read

    def autocast(self) -> AbstractContextManager[object]:
        """Products in `dtype`, everything delicate in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def validates_compiled(self) -> bool:
        """Whether a validation goes through compiled blocks too.

        Code without gradients has to be compiled anew. On a CPU that costs more than its few
        batches save; a GPU's attention needs its kernel.
        """
        return self.device.type != "cpu"

    def validating(self) -> AbstractContextManager[object]:
        """Compiled blocks run as they are written, where a validation does not go through them."""
        return nullcontext() if self.validates_compiled else torch.compiler.set_stance("force_eager")

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up the gradients of all processes, in one message.

        Each process has a gradient of every weight that is trained.
        """
        if self.world_size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) == sum(p.requires_grad for p in model.parameters())
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def least_over_ranks(self, number: int) -> int:
        """The least of the processes' numbers."""
        if self.world_size == 1:
            return number
        least = torch.tensor(number, device=self.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least.item())

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is up in at least one process."""
        if self.world_size == 1:
            return flag
        return bool(self.sum_over_ranks(torch.tensor(float(flag), device=self.device)).item() > 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def rng_states(runtime: Runtime) -> dict[str, Tensor]:
    """State of torch's generators in every process, each (processes, bytes)."""
    states = {"cpu": torch.get_rng_state()}
    if runtime.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(runtime.device)
    elif runtime.device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    gathered = {}
    for name, state in states.items():
        rows = torch.zeros(runtime.world_size, len(state), dtype=torch.uint8, device=runtime.device)
        rows[runtime.rank] = state
        gathered[name] = runtime.sum_over_ranks(rows).cpu()
    return gathered


def set_rng_states(states: dict[str, Tensor], runtime: Runtime) -> None:
    """Put this process's generators back where `rng_states` saw them."""
    # torch reads a state from where its tensor's memory begins, which for a row of several is
    # another row's. Hence the copies.
    torch.set_rng_state(states["cpu"][runtime.rank].clone())
    if runtime.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"][runtime.rank].clone(), runtime.device)
    elif runtime.device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"][runtime.rank].clone())


class ParentWatch:
    """Notices that the pipeline which started this trainer is gone.

    `kill -9` leaves no other trace.
    """

    def __init__(self) -> None:
        value = os.environ.get(PARENT_VARIABLE, "")
        self.pid = int(value) if value.isdigit() else None
        self.direct = self.pid == os.getppid()  # false below torchrun, whose process lies between

    def is_gone(self) -> bool:
        """Whether the pipeline was there and is no more."""
        if self.pid is None:
            return False
        if self.direct:
            return os.getppid() != self.pid
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
