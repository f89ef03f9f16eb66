"""The training loop of all stages that do not generate while they learn."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from configs.paths import display
from configs.progress import is_wide
from configs.schema import TrainConfig, UserError
from configs.stage_table import DATA_STEMS, STAGE_TABLE
from dataset.lm_dataset import Batch, ChoosesRows, rows_of_step
from model.weights import require_finite
from trainer.autoconfig import chosen_values
from trainer.metrics import Metrics
from trainer.optim import MuonAdamW, build_optimizer, lr_at, set_lr
from trainer.resume import ResumeState, fitting, frozen_state
from trainer.runtime import ParentWatch, Runtime, rng_states, set_rng_states

MAX_SKIPPED_STEPS = 5
"""A run gives up after this number of steps in a row whose loss or gradient is not finite. If the
whole run has 2 to 5 steps, it already gives up when all steps but one are skipped."""
MAX_OVERFLOWS = 21
"""A run gives up after this number of steps in a row whose loss is finite but whose gradients are
too large for float16. Each such step halves the loss scale. A few such steps at the start are
normal. The scale begins at 65,536. After 21 halvings it is 1/32, so it can't be the cause any
more."""


class Rows(Protocol):
    """A data set with random access, such as those of `dataset/lm_dataset.py`."""

    def __len__(self) -> int:
        """How many rows (or pairs) there are."""
        ...

    def batch(self, indices: np.ndarray) -> Batch:
        """The rows with these numbers (B,), as tensors."""
        ...

    def largest(self, count: int) -> np.ndarray:
        """Numbers of `count` rows that need as much memory as any others, (count,)."""
        ...


class Objective(Protocol):
    """What a training stage minimises. All objectives are in `trainer/objectives.py`."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of a micro-batch in nats, summed over its targets (or pairs), ()."""
        ...

    def num_targets(self, batch: Batch) -> int:
        """Number of targets (or pairs) of a micro-batch. The micro-batch is still in CPU memory."""
        ...

    def num_tokens(self, batch: Batch) -> int:
        """Number of tokens of a micro-batch, without padding. The shown speed counts them."""
        ...


class TrainingStopped(Exception):
    """Something asked the run to stop before its last step. Its state is saved."""


class TrainingDiverged(UserError):
    """Too many steps in a row were skipped: no finite loss, or gradients too large for float16."""


@dataclass
class StopSignal:
    """A signal handler sets this. The loop looks at it after each step."""

    exit_code: int = 0
    """The exit code that the process will return. 0: there was no signal."""
    reason: str = ""
    """Name of the signal, such as `SIGTERM`."""


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The data that one process reads for one step."""

    micro: list[Batch]
    """The micro-batches."""
    counts: Tensor
    """Targets (or pairs), and tokens that are not padding, of all these micro-batches: (2,)."""


def steps_of_run(config: TrainConfig, num_rows: int, world_size: int) -> int:
    """How many steps the epochs need, at least 1. If `max_steps` is not 0, it is the most."""
    rows_per_step = config.batch_size * config.accumulation_steps * world_size
    by_epochs = max(1, math.ceil(config.epochs * num_rows / rows_per_step))
    return min(by_epochs, config.max_steps) if config.max_steps else by_epochs


class BatchStream:
    """The micro-batches of each step.

    The rows of a step depend only on the number of the step and on the seed. So a resumed run finds
    its next rows without a saved position.
    """

    def __init__(self, rows: Rows, objective: Objective, config: TrainConfig, runtime: Runtime) -> None:
        self.rows, self.objective, self.config, self.runtime = rows, objective, config, runtime
        self.rows_per_step = config.batch_size * config.accumulation_steps * runtime.world_size

    def num_steps(self) -> int:
        """Steps of the whole run."""
        return steps_of_run(self.config, len(self.rows), self.runtime.world_size)

    def row_numbers(self, step: int) -> np.ndarray:
        """Numbers of the rows that all processes together take in a step, (rows_per_step,)."""
        if isinstance(self.rows, ChoosesRows):
            return self.rows.rows_of_step(step, self.rows_per_step, self.config.seed)
        return rows_of_step(step, self.rows_per_step, len(self.rows), self.config.seed)

    def read(self, step: int) -> StepBatches:
        """The micro-batches of this process in a step, in CPU memory.

        Targets and tokens are counted here on the CPU, so nobody has to wait for a GPU to count
        them.
        """
        # This process takes every world_size-th row. So all processes together take each row once.
        mine = self.row_numbers(step)[self.runtime.rank :: self.runtime.world_size]
        parts = mine.reshape(self.config.accumulation_steps, self.config.batch_size)
        micro = [self.rows.batch(part) for part in parts]
        targets, tokens = sum(map(self.objective.num_targets, micro)), sum(map(self.objective.num_tokens, micro))
        counts = {"counts": torch.tensor([float(targets), float(tokens)])}
        return StepBatches([self.runtime.pinned(batch) for batch in micro], self.runtime.pinned(counts)["counts"])

    def steps(self, first: int, end: int) -> Iterator[StepBatches]:
        """The batches of each step from `first` to before `end`, on the device."""
        # While one step is computed, a thread reads the rows of the next step. So a GPU never waits
        # for rows.
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as reader:
            coming = reader.submit(self.read, first)
            for step in range(first, end):
                batches = coming.result()
                if step + 1 < end:
                    coming = reader.submit(self.read, step + 1)
                counts = self.runtime.to_device({"counts": batches.counts})["counts"]
                yield StepBatches([self.runtime.to_device(batch) for batch in batches.micro], counts)


def train(
    config: TrainConfig,
    model: nn.Module,
    stream: BatchStream,
    objective: Objective,
    run: "Run",
) -> None:
    """Train the model. Each step is one update of the optimizer, over all its micro-batches.

    The losses of a step are summed. The sum is divided by the number of targets of the whole step,
    in all processes. So the result does not depend on how the rows of a step are divided: one
    micro-batch of 8 rows or 8 micro-batches of 1 row, one process or several.

    Python does not wait for a GPU within a step: the numbers of a step are read later. There are
    two exceptions. In float16, loss scaling waits once in each step. On a GPU without a grouped
    kernel, the experts of a MoE wait in each product.

    Raises: TrainingStopped if the run was asked to stop; the state is saved. TrainingDiverged after
    MAX_SKIPPED_STEPS steps in a row without a finite loss, or after MAX_OVERFLOWS steps in a row
    whose gradients are too large for float16.
    """
    runtime = run.runtime
    optimizer = build_optimizer(model, config, run.newton_schulz_dtype)
    model.train()
    first_step = run.restore(model, optimizer)
    for step, batches in enumerate(stream.steps(first_step, run.num_steps), start=first_step):
        lr = lr_at(step, run.num_steps, config)
        set_lr(optimizer, lr)
        # The loss of each micro-batch is divided by the targets of the whole step. So the gradients
        # of the micro-batches add up, in `.grad`, to the gradient of the step's mean loss.
        counts = runtime.sum_over_ranks(batches.counts)  # (2,): targets, tokens
        total = torch.zeros((), device=runtime.device)  # nats per target
        for batch in batches.micro:
            with runtime.autocast():
                loss = objective.loss_sum(model, batch) / counts[0]
            run.scaler.scale(loss).backward()
            total += loss.detach()
        # So far each process has only the gradient of its own rows. Add up the gradients of all
        # processes and undo the loss scale of float16, before the norm is computed.
        runtime.sum_gradients(model)
        run.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(model, config.grad_clip)
        total = runtime.sum_over_ranks(total)
        # Update the weights. A single NaN would make all weights useless, so a step that has a NaN
        # is skipped.
        finite = run.is_finite(total, grad_norm)
        loss_scale = run.scaler.scale(torch.ones_like(total))  # save it now: `update` may change it
        run.scaler.step(optimizer, taken=finite)
        run.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        # Add up the wish to stop over all processes, so that all of them stop after the same step.
        asked_to_stop = runtime.sum_over_ranks(torch.full_like(total, float(run.is_asked_to_stop())))
        # Copy all numbers to CPU memory together. We do not wait for this copy here.
        found = Found(finite.float(), total, grad_norm, counts[0], counts[1], asked_to_stop, loss_scale)
        run.after_step(Outcome(step + 1, lr, runtime.fetched(torch.stack(found))), model, optimizer, stream)


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients by one factor, so that their norm is `max_norm` at most.

    Args: max_norm: 0 leaves them as they are.
    Returns: the norm before, () on the device.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


class Found(NamedTuple):
    """The results of a step. First they are tensors () on the device, later plain numbers."""

    finite: Any
    """1 or 0: the result of `Run.is_finite`. If it is 0, the step was skipped."""
    loss: Any
    """Nats per target (or pair)."""
    grad_norm: Any
    """Norm of the gradients before clipping."""
    targets: Any
    """Targets (or pairs) of all processes."""
    tokens: Any
    """Tokens of all processes that are not padding."""
    asked_to_stop: Any
    """How many processes were asked to stop. Every process has the same number here."""
    loss_scale: Any
    """Loss scale of float16; 1 in other dtypes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step whose results a GPU may still be computing."""

    step: int
    """Number of the step; 1 is the first."""
    lr: float
    """Its learning rate."""
    fetch: Callable[[], list[float]]
    """Waits until the step is computed, and returns the numbers of Found."""

    def read(self) -> Found:
        """The results of the step. Waits until they are computed."""
        return Found(*self.fetch())


class Run:
    """All that happens before, between and after the steps: restore, log, evaluate, save, stop."""

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
        token_cost: float = 0.0,
    ) -> None:
        """Args: resume: the state to continue from. None: a fresh run. metrics: None in all
        processes except the main process. token_cost: the operations for training one token,
        divided by the operations that the machine can do in a second. 0: unknown."""
        self.config, self.runtime, self.num_steps = config, runtime, num_steps
        self.state, self.resume, self.metrics, self.validate, self.stop = state, resume, metrics, validate, stop
        self.token_cost = token_cost
        # float16 has no numbers below 6e-8, so small gradients would become 0. The scaler
        # multiplies the loss by a large number, and divides the gradients by it before the update.
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        self.newton_schulz_dtype = torch.bfloat16 if runtime.dtype == torch.bfloat16 else torch.float32
        self.parent = ParentWatch()
        self.unread: list[Outcome] = []  # steps whose results we have not read yet
        self.skipped = self.overflows = 0  # skipped steps in a row, until now
        self.skips_allowed = max(1, min(MAX_SKIPPED_STEPS, num_steps - 1))
        self.tokens = self.targets = 0.0  # of all steps since the first
        # The shown speed is measured from the last line of metrics, which was written at `clock`.
        self.started = self.clock = time.perf_counter()
        self.tokens_at_clock = 0.0
        self.eval_steps = set(eval_steps(num_steps, config.eval_interval))
        self.last_validation: dict[str, float] = {}

    def restore(self, model: nn.Module, optimizer: MuonAdamW) -> int:
        """Load the saved model, optimizer, loss scale and random generators.

        Returns: how many steps are done; 0 in a fresh run.
        Raises: UserError with the name of the state file, if a part of it does not fit.
        """
        if self.resume is None:
            return 0
        state, self.resume = self.resume, None  # so that memory does not keep a second copy of everything
        with fitting(state["path"]):
            model.load_state_dict(frozen_state(model) | state["model"], strict=True)
            optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty if the saved run did not use float16
                self.scaler.load_state_dict(state["scaler"])
            set_rng_states(state["rng"], self.runtime)
        self.tokens = self.tokens_at_clock = state["tokens"]
        self.targets, self.skipped, self.overflows = state["targets"], state["skipped"], state["overflows"]
        step: int = state["step"]
        return step

    def is_finite(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Whether the loss and the gradients are finite, () boolean."""
        # In float16 the scaler itself skips a step whose gradients are too large, and halves the
        # scale. So here only the loss counts.
        if self.scaler.is_enabled():
            return torch.isfinite(loss)
        return torch.isfinite(loss) & torch.isfinite(grad_norm)

    def after_step(self, outcome: Outcome, model: nn.Module, optimizer: MuonAdamW, stream: BatchStream) -> None:
        """Read the results of steps, and log, evaluate and save when it is time.

        A GPU may still be computing this step. So only the results of earlier steps are read now,
        and the GPU never has to wait for us. Before an evaluation, before a save and at the end,
        the results of this step are read too, because what is written then must be exact.
        Raises: TrainingStopped, TrainingDiverged.
        """
        step, last = outcome.step, outcome.step == self.num_steps
        evaluating = step in self.eval_steps and self.validate is not None
        saving = step % self.config.save_interval == 0 and not last
        must_be_exact = evaluating or saving or last or not self.runtime.is_asynchronous
        self.unread.append(outcome)
        stopping = self.read_steps(stream, leave=0 if must_be_exact else 1)
        if evaluating:
            self.evaluate(step, model)
        if (saving or stopping) and not last:
            self.save(step, model, optimizer)
        if stopping and not last:
            raise TrainingStopped(self.stop.reason or "the pipeline that started this trainer is gone")

    def read_steps(self, stream: BatchStream, *, leave: int) -> bool:
        """Report all steps that were not read yet, except the last `leave` steps.

        If a step was asked to stop, all steps are reported, because the state is saved next.
        Returns: whether a step was asked to stop.
        """
        stopping = False
        while len(self.unread) > (0 if stopping else leave):
            stopping |= self.report(self.unread.pop(0), stream)
        return stopping

    def is_asked_to_stop(self) -> bool:
        """Whether there was a signal, or the pipeline that started this trainer has ended."""
        return self.stop.exit_code != 0 or self.parent.is_gone()

    def report(self, outcome: Outcome, stream: BatchStream) -> bool:
        """Log a step. If the step was skipped, tell the user.

        Returns: whether a process was asked to stop.
        Raises: TrainingDiverged after too many skipped steps in a row.
        """
        found = outcome.read()
        self.tokens += found.tokens
        self.targets += found.targets
        if not found.finite:
            self.tell_of_skipped(outcome.step, found, stream)
        elif not math.isfinite(found.grad_norm):  # only in float16: see `is_finite`
            self.tell_of_overflow(outcome.step, found.loss_scale)
        else:
            self.skipped = self.overflows = 0
        if self.metrics is not None:
            self.show(outcome, found, self.metrics)
        return bool(found.asked_to_stop)

    def show(self, outcome: Outcome, found: Found, metrics: Metrics) -> None:
        """Update the progress bar, and write a line of metrics every `log_interval` steps."""
        seconds = time.perf_counter() - self.clock
        speed = (self.tokens - self.tokens_at_clock) / max(seconds, 1e-9)
        figures = {"loss": f"{found.loss:.3f}"}
        if self.last_validation:
            figures["val"] = f"{self.last_validation['validation_loss']:.3f}"
        figures["tok/s"] = f"{speed:,.0f}"
        if is_wide():
            figures["lr"] = f"{outcome.lr:.1e}"
            if self.token_cost:
                figures["mfu"] = f"{speed * self.token_cost:.0%}"
        metrics.progress(**figures)
        if outcome.step % self.config.log_interval == 0 or outcome.step == self.num_steps:
            values = {
                "loss": found.loss,
                "lr": outcome.lr,
                "grad_norm": found.grad_norm,
                "tokens": self.tokens,
                "targets": self.targets,
                "tokens_per_second": speed,
                **({"mfu": speed * self.token_cost} if self.token_cost else {}),
                "seconds": time.perf_counter() - self.started,
            }
            metrics.log(outcome.step, values)
            self.clock, self.tokens_at_clock = time.perf_counter(), self.tokens

    def tell_of_skipped(self, step: int, found: Found, stream: BatchStream) -> None:
        """Tell the user that a step was skipped, and which rows it had.

        Raises: TrainingDiverged after `skips_allowed` such steps in a row.
        """
        self.skipped += 1
        rows = ", ".join(str(row) for row in sorted(stream.row_numbers(step - 1)))
        what = f"loss {found.loss:.4g}, gradient norm {found.grad_norm:.4g}"
        self.say(f"step {step}: {what}: step skipped. Its rows: {rows}")
        if self.skipped >= self.skips_allowed:
            stem = DATA_STEMS[STAGE_TABLE[self.state.stage_folder.name].data]
            count = "1 step" if self.skipped == 1 else f"{self.skipped} steps in a row"
            raise TrainingDiverged(
                f"{count} of {self.num_steps} without a finite loss (last rows: {rows}). "
                f"Lower --learning_rate, or look at the data: python scripts/export_embeddings.py {stem} --inspect 3.",
                "损失不再是有限的数：请调低 --learning_rate，或检查数据",
            )

    def tell_of_overflow(self, step: int, loss_scale: float) -> None:
        """Tell the user that the gradients of a step were too large for float16.

        Raises: TrainingDiverged after MAX_OVERFLOWS such steps in a row.
        """
        self.overflows += 1
        self.say(
            f"step {step}: gradients too large for float16 at loss scale {loss_scale:g}: step skipped, the scale is halved"
        )
        if self.overflows >= MAX_OVERFLOWS:
            raise TrainingDiverged(
                f"{self.overflows} steps in a row whose gradients float16 cannot hold, the last at loss scale {loss_scale:g}. "
                "Lower --learning_rate, or pass --dtype float32.",
                "梯度超出 float16 的范围：请调低 --learning_rate，或用 --dtype float32",
            )

    def evaluate(self, step: int, model: nn.Module) -> None:
        """Compute the validation loss and log it."""
        assert self.validate is not None
        started = time.perf_counter()
        self.last_validation = self.validate(model)
        if self.metrics is not None:
            self.metrics.log(step, self.last_validation)
            shown = ", ".join(f"{key} {value:.4f}" for key, value in self.last_validation.items())
            self.metrics.say(f"step {step}/{self.num_steps}: {shown}")
        self.clock += time.perf_counter() - started  # the shown speed does not count this time

    def save(self, step: int, model: nn.Module, optimizer: MuonAdamW) -> None:
        """Write the resume state, and wait until it is written.

        Raises: UserError where a weight is NaN or infinite.
        """
        require_finite(model, self.state.path, f"after step {step}")
        rng = rng_states(self.runtime)  # all processes must call this, so it is outside the `if`
        frozen = frozen_state(model)  # as in the starting weights
        if self.runtime.is_main:
            removed = self.state.save(
                {
                    "step": step,
                    "num_steps": self.num_steps,
                    "model": {name: tensor for name, tensor in model.state_dict().items() if name not in frozen},
                    "optimizer": optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "rng": rng,
                    "tokens": self.tokens,
                    "targets": self.targets,
                    "skipped": self.skipped,
                    "overflows": self.overflows,
                    "choices": chosen_values(self.config, self.runtime),
                }
            )
            for path in removed:
                self.say(f"{display(path)}: removed; of a stage's resume states the newest two are kept")
        self.runtime.barrier()

    def say(self, text: str) -> None:
        """Print a line from the main process."""
        if self.metrics is not None:
            self.metrics.say(text)


def eval_steps(num_steps: int, interval: int) -> Iterator[int]:
    """The steps after which the validation loss is computed.

    Args: interval: compute the loss every `interval` steps. 0: five times in the whole run, at
    equal distances.
    Yields: numbers of steps. The last step is always among them.
    """
    if interval:
        yield from range(interval, num_steps, interval)
    else:
        yield from (round(num_steps * part / 5) for part in range(1, 5))
    yield num_steps
