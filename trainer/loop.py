"""The one supervised loop, which pretraining, SFT and DPO share."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from configs.schema import TrainConfig
from dataset.lm_dataset import rows_of_step
from trainer.checkpoint import ResumeState
from trainer.metrics import Metrics
from trainer.optim import MuonAdamW, build_optimizer, lr_at, set_lr
from trainer.runtime import ParentWatch, Runtime, dtype_name, rng_states, set_rng_states

MAX_SKIPPED_STEPS = 5
"""Steps in a row without a finite loss or gradient after which a run gives up."""

Batch = dict[str, Tensor]


class Rows(Protocol):
    """A data set with random access: `dataset/lm_dataset.py`."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """The rows of these numbers as tensors."""
        ...


class Objective(Protocol):
    """What a recipe minimises."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of a micro-batch, summed over its targets."""
        ...

    def num_targets(self, batch: Batch) -> int:
        """Supervised tokens, or pairs, of a micro-batch."""
        ...

    def num_tokens(self, batch: Batch) -> int:
        """Tokens that are not padding, for the speed shown."""
        ...


class TrainingStopped(Exception):
    """The run was asked to end before its last step; its state is saved."""


class TrainingDiverged(Exception):
    """Too many steps in a row had no finite loss."""


@dataclass
class StopSignal:
    """Raised by a signal handler; the loop looks at it between two steps."""

    exit_code: int = 0
    reason: str = ""


class BatchStream:
    """The micro-batches of each step. Which rows a step takes depends on the step and the seed alone."""

    def __init__(self, rows: Rows, config: TrainConfig, runtime: Runtime) -> None:
        self.rows, self.config, self.runtime = rows, config, runtime
        self.rows_per_step = config.batch_size * config.accumulation_steps * runtime.world_size

    def num_steps(self) -> int:
        """Steps of the whole run."""
        by_epochs = max(1, math.ceil(self.config.epochs * len(self.rows) / self.rows_per_step))
        return min(by_epochs, self.config.max_steps) if self.config.max_steps else by_epochs

    def row_numbers(self, step: int) -> np.ndarray:
        """Rows of all processes in a step: (rows_per_step,)."""
        return rows_of_step(step, self.rows_per_step, len(self.rows), self.config.seed)

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of this process in a step, on the device."""
        mine = self.row_numbers(step)[self.runtime.rank :: self.runtime.world_size]
        parts = mine.reshape(self.config.accumulation_steps, self.config.batch_size)
        return [self.to_device(self.rows.batch(part)) for part in parts]

    def to_device(self, batch: Batch) -> Batch:
        """Move a batch."""
        return {name: tensor.to(self.runtime.device, non_blocking=True) for name, tensor in batch.items()}


def train(
    config: TrainConfig,
    model: nn.Module,
    stream: BatchStream,
    objective: Objective,
    run: "Run",
) -> None:
    """One optimizer update a step over `accumulation_steps` micro-batches.

    Losses are summed and divided once by the targets of the whole step (all processes), so that 1 x 8 and 8 x 1
    accumulation agree, and 1 and N processes.
    Raises: TrainingStopped when asked to end (the state is saved), TrainingDiverged after five steps without a
    finite loss.
    """
    runtime = run.runtime
    optimizer = build_optimizer(model, config, run.newton_schulz_dtype)
    model.train()
    for step in range(run.restore(model, optimizer), run.num_steps):
        lr = lr_at(step, run.num_steps, config)
        set_lr(optimizer, lr)
        micro = stream.step(step)
        counts = torch.tensor(
            [
                float(sum(objective.num_targets(batch) for batch in micro)),
                float(sum(objective.num_tokens(batch) for batch in micro)),
            ],
            dtype=torch.float64 if runtime.device.type != "mps" else torch.float32,
            device=runtime.device,
        )
        counts = runtime.sum_over_ranks(counts)
        total = torch.zeros((), device=runtime.device)  # nats per target
        for batch in micro:
            with runtime.autocast():
                loss = objective.loss_sum(model, batch) / counts[0].float()
            run.scaler.scale(loss).backward()
            total += loss.detach()
        runtime.sum_gradients(model)
        run.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(model, config.grad_clip)
        total = runtime.sum_over_ranks(total)
        if run.is_finite(step, total, grad_norm, stream):
            run.scaler.step(optimizer)
        run.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        run.after_step(
            step + 1, model, optimizer, loss=total.item(), lr=lr, grad_norm=grad_norm.item(), tokens=counts[1]
        )


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients down to `max_norm` (0: leave them); returns the norm before."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


class Run:
    """What happens around the steps: restore, log, evaluate, save, stop."""

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        *,
        num_steps: int,
        state: ResumeState,
        resume: dict[str, Any] | None,
        metrics: Metrics | None,
        validate: Callable[[nn.Module], dict[str, float]] | None,
        stop: StopSignal,
    ) -> None:
        self.config, self.runtime, self.num_steps = config, runtime, num_steps
        self.state, self.resume, self.metrics, self.validate, self.stop = state, resume, metrics, validate, stop
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        self.newton_schulz_dtype = torch.bfloat16 if runtime.dtype == torch.bfloat16 else torch.float32
        self.parent = ParentWatch()
        self.skipped = 0
        self.tokens = 0.0
        self.started = self.clock = time.perf_counter()
        self.tokens_at_clock = 0.0
        self.eval_steps = set(eval_steps(num_steps, config.eval_interval))
        self.last_validation: dict[str, float] = {}

    def restore(self, model: nn.Module, optimizer: MuonAdamW) -> int:
        """Put everything back where the saved state was; returns the step to go on with."""
        if self.resume is None:
            return 0
        model.load_state_dict(self.resume["model"], strict=True)
        optimizer.load_state_dict(self.resume["optimizer"])
        self.scaler.load_state_dict(self.resume["scaler"])
        set_rng_states(self.resume["rng"], self.runtime)
        self.tokens = self.tokens_at_clock = self.resume["tokens"]
        self.skipped = self.resume["skipped"]
        step: int = self.resume["step"]
        self.resume = None  # frees the memory of a second copy of everything
        return step

    def is_finite(self, step: int, loss: Tensor, grad_norm: Tensor, stream: BatchStream) -> bool:
        """Whether the step can be taken; otherwise says which rows caused it.

        Raises: TrainingDiverged after five such steps in a row.
        """
        # float16: the scaler itself skips a step whose gradients overflowed, and halves the scale
        if torch.isfinite(loss) and (self.scaler.is_enabled() or torch.isfinite(grad_norm)):
            self.skipped = 0
            return True
        self.skipped += 1
        rows = ", ".join(str(row) for row in sorted(stream.row_numbers(step)))
        self.say(
            f"step {step + 1}: loss {loss.item():.4g}, gradient norm {grad_norm.item():.4g}: step skipped. "
            f"Its rows: {rows}"
        )
        if self.skipped >= MAX_SKIPPED_STEPS:
            raise TrainingDiverged(
                f"{self.skipped} steps in a row without a finite loss (last rows: {rows}). "
                "Lower --learning_rate, or look at the rows with export_embeddings.py --inspect."
            )
        return False

    def after_step(
        self,
        step: int,
        model: nn.Module,
        optimizer: MuonAdamW,
        *,
        loss: float,
        lr: float,
        grad_norm: float,
        tokens: Tensor,
    ) -> None:
        """Log, evaluate and save, each when due. `step` counts the finished steps."""
        self.tokens += float(tokens)
        last = step == self.num_steps
        if self.metrics is not None:
            seconds = time.perf_counter() - self.clock
            speed = (self.tokens - self.tokens_at_clock) / max(seconds, 1e-9)
            self.metrics.progress(
                loss=f"{loss:.3f}", lr=f"{lr:.1e}", tok_s=f"{speed:,.0f}",
                **{key.replace("validation_loss", "val"): f"{value:.3f}" for key, value in self.last_validation.items()},
            )  # fmt: skip
            if step % self.config.log_interval == 0 or last:
                values = {
                    "loss": loss,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "tokens": self.tokens,
                    "tokens_per_second": speed,
                    "seconds": time.perf_counter() - self.started,
                }
                self.metrics.log(step, {key: value for key, value in values.items() if math.isfinite(value)})
                self.clock, self.tokens_at_clock = time.perf_counter(), self.tokens
        if step in self.eval_steps and self.validate is not None:
            started = time.perf_counter()
            self.last_validation = self.validate(model)
            if self.metrics is not None:
                self.metrics.log(step, self.last_validation)
                shown = ", ".join(f"{key} {value:.4f}" for key, value in self.last_validation.items())
                self.metrics.say(f"step {step}/{self.num_steps}: {shown}")
            self.clock += time.perf_counter() - started
        stopping = not last and self.runtime.any_rank(self.stop.exit_code != 0 or self.parent.is_gone())
        if stopping or (step % self.config.save_interval == 0 and not last):
            self.save(step, model, optimizer)
        if stopping:
            raise TrainingStopped(self.stop.reason or "the pipeline that started this trainer is gone")

    def save(self, step: int, model: nn.Module, optimizer: MuonAdamW) -> None:
        """Write the resume state."""
        rng = rng_states(self.runtime)  # asks all processes, so it stands before the main one's part
        if self.runtime.is_main:
            self.state.save(
                {
                    "step": step,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "rng": rng,
                    "tokens": self.tokens,
                    "skipped": self.skipped,
                    "choices": choices(self.runtime),
                }
            )
        self.runtime.barrier()

    def say(self, text: str) -> None:
        """Print a line from the main process."""
        if self.metrics is not None:
            self.metrics.say(text)


def choices(runtime: Runtime) -> dict[str, Any]:
    """The automatic choices that a resumed run repeats, so that its arithmetic is the same."""
    return {
        "dtype": dtype_name(runtime.dtype),
        "threads": torch.get_num_threads(),
        "world_size": runtime.world_size,
    }


def eval_steps(num_steps: int, interval: int) -> Iterator[int]:
    """Steps after which the validation loss is taken: every `interval`, or five times evenly; always after the last."""
    if interval:
        yield from range(interval, num_steps, interval)
    else:
        yield from (round(num_steps * part / 5) for part in range(1, 5))
    yield num_steps
