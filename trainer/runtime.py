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
"""How long processes wait while one of them tokenizes the data or computes a reference for all.
NCCL alone would give up after 10 minutes."""


@dataclass(frozen=True)
class Runtime:
    """Where one process computes, and its place among the others."""

    device: torch.device
    dtype: torch.dtype
    """That of products; weights are float32."""
    rank: int = 0
    """Number of this process; 0 is the main one."""
    world_size: int = 1
    """How many processes train together."""

    @classmethod
    def start(cls, device: str, dtype: str, *, deterministic: bool = False, group: Group | None = None) -> "Runtime":
        """Choose device and dtype, and join the other processes.

        Args: device, dtype: as the flags name them; `auto` chooses. deterministic: use only kernels
        that give the same bits each time; those of a CPU always do. group: the processes that this
        run started on a CPU. None: those of torchrun, or this process alone.
        Raises: UserError where the device is not there.
        """
        chosen = choose_device(device)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU's first product is made
            torch.use_deterministic_algorithms(True)
            # It also fills new tensors. That guards against bugs, and costs time.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # Memory. Where a driver would move a GPU's memory to the host in silence, a limit keeps the
        # process on the card. On a CPU, what a step frees is kept for the next one.
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
        """What dtype and number of threads are chosen by.

        A run that resumes where all of this is the same repeats its choice. Elsewhere it chooses
        again.
        """
        return {
            "device": self.device.type,
            "gpu": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "",
            "dtype": dtype_name(choose_dtype("auto", self.device)),
            "cores": num_cores(),
        }

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    @property
    def is_asynchronous(self) -> bool:
        """Whether calls return before their work is done, as on a GPU."""
        return self.device.type != "cpu"

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def pinned(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A copy of the batch in memory that a GPU can read by itself, while it and the CPU work.

        Without a CUDA GPU it is the batch itself.
        """
        if self.device.type != "cuda":
            return batch
        try:
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        except RuntimeError:  # WSL2 allows little pinned memory; from other memory a copy is only slower
            return batch

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch to the device; to a CUDA GPU without waiting for the copy.

        On MPS such a copy may read memory that has been freed meanwhile (PyTorch's issue 189690).
        """
        at_once = self.device.type == "cuda"
        return {name: tensor.to(self.device, non_blocking=at_once) for name, tensor in batch.items()}

    def fetched(self, numbers: Tensor) -> Callable[[], list[float]]:
        """Send a few numbers (n,) to the host, without waiting for them.

        Returns: a function that waits until they are there, and gives them. It does not wait for
        work that the GPU was given later.
        """
        if self.device.type != "cuda":
            return numbers.tolist
        host = self.pinned({"numbers": torch.empty(numbers.shape, dtype=numbers.dtype)})["numbers"]
        host.copy_(numbers, non_blocking=True)
        # An event marks this place in the GPU's queue, so that `read` can wait for just this.
        arrived = torch.cuda.Event()
        arrived.record()

        def read() -> list[float]:
            arrived.synchronize()
            values: list[float] = host.tolist()
            return values

        return read

    def autocast(self) -> AbstractContextManager[object]:
        """Within, products are computed in `dtype`, and what needs precision in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def validates_compiled(self) -> bool:
        """Whether a validation goes through compiled blocks too.

        Code without gradients must be compiled a second time. On a CPU that costs more than the few
        batches of a validation save. On a GPU the attention needs its compiled kernel.
        """
        return self.device.type != "cpu"

    def validating(self) -> AbstractContextManager[object]:
        """Within, compiled blocks run without the compiler, if `validates_compiled` is false."""
        return nullcontext() if self.validates_compiled else torch.compiler.set_stance("force_eager")

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in each of them."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sum_gradients(self, model: nn.Module) -> None:
        """Put the sum over all processes in place of each gradient, with one message for all.

        Every process must have a gradient of every weight that is trained.
        """
        if self.world_size == 1:
            return
        # Many small messages would take longer than one large one, so the gradients are joined.
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) == sum(p.requires_grad for p in model.parameters())
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def least_over_ranks(self, number: int) -> int:
        """The smallest number that a process has, in each of them."""
        if self.world_size == 1:
            return number
        least = torch.tensor(number, device=self.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least.item())

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is true in at least one process."""
        if self.world_size == 1:
            return flag
        return bool(self.sum_over_ranks(torch.tensor(float(flag), device=self.device)).item() > 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def rng_states(runtime: Runtime) -> dict[str, Tensor]:
    """State of torch's random generators in every process, each uint8 (processes, bytes)."""
    states = {"cpu": torch.get_rng_state()}
    if runtime.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(runtime.device)
    elif runtime.device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    # Each process puts its state into its own row, zeros elsewhere. The sum has all of them.
    gathered = {}
    for name, state in states.items():
        rows = torch.zeros(runtime.world_size, len(state), dtype=torch.uint8, device=runtime.device)
        rows[runtime.rank] = state
        gathered[name] = runtime.sum_over_ranks(rows).cpu()
    return gathered


def set_rng_states(states: dict[str, Tensor], runtime: Runtime) -> None:
    """Put this process's random generators back to what `rng_states` has saved."""
    # torch reads a state from the start of a tensor's memory. For a row of a larger tensor that is
    # the start of the first row, so each row is copied.
    torch.set_rng_state(states["cpu"][runtime.rank].clone())
    if runtime.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"][runtime.rank].clone(), runtime.device)
    elif runtime.device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"][runtime.rank].clone())


class ParentWatch:
    """Notices that the pipeline which started this trainer is gone.

    After `kill -9` of the pipeline nothing else tells the trainer.
    """

    def __init__(self) -> None:
        value = os.environ.get(PARENT_VARIABLE, "")
        self.pid = int(value) if value.isdigit() else None
        self.direct = self.pid == os.getppid()  # false under torchrun, whose process stands between us

    def is_gone(self) -> bool:
        """Whether there was a pipeline, and it has ended."""
        if self.pid is None:
            return False
        if self.direct:
            return os.getppid() != self.pid  # a process whose parent ended gets another one
        try:
            os.kill(self.pid, 0)  # signal 0 does nothing but check that the process is there
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
