"""The one supervised loop, which pretraining, SFT and DPO share."""

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
from dataset.lm_dataset import Batch, rows_of_step
from model.weights import require_finite
from trainer.autoconfig import chosen_values
from trainer.metrics import Metrics
from trainer.optim import MuonAdamW, build_optimizer, lr_at, set_lr
from trainer.resume import ResumeState, fitting
from trainer.runtime import ParentWatch, Runtime, rng_states, set_rng_states

MAX_SKIPPED_STEPS = 5
"""Steps in a row without a finite loss or gradient after which a run gives up; one as short as this, after all but one."""
MAX_OVERFLOWS = 21
"""The same for steps whose loss is finite and whose gradients are too large for float16. Each halves the loss scale, and
some of them at the start are no fault: this many lead from 65,536, where it begins, to 1/32, where it can't be the cause."""


class Rows(Protocol):
    """A data set with random access: `dataset/lm_dataset.py`."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """The rows of these numbers as tensors."""
        ...

    def largest(self, count: int) -> np.ndarray:
        """Numbers of rows that need as much memory as any others, (count,)."""
        ...


class Objective(Protocol):
    """What a recipe minimises."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of a micro-batch, summed over its targets."""
        ...

    def num_targets(self, batch: Batch) -> int:
        """Supervised tokens, or pairs, of a micro-batch in the host's memory."""
        ...

    def num_tokens(self, batch: Batch) -> int:
        """Tokens that are not padding, for the speed shown."""
        ...


class TrainingStopped(Exception):
    """The run was asked to end before its last step; its state is saved."""


class TrainingDiverged(UserError):
    """Too many steps in a row had no finite loss."""


@dataclass
class StopSignal:
    """Raised by a signal handler; the loop looks at it between two steps."""

    exit_code: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StepBatches:
    """What one process reads in a step."""

    micro: list[Batch]
    counts: Tensor
    """Supervised tokens (or pairs) and tokens that are not padding, of all micro-batches: (2,)."""


def steps_of_run(config: TrainConfig, num_rows: int, world_size: int) -> int:
    """Steps that the epochs need, `max_steps` at most."""
    rows_per_step = config.batch_size * config.accumulation_steps * world_size
    by_epochs = max(1, math.ceil(config.epochs * num_rows / rows_per_step))
    return min(by_epochs, config.max_steps) if config.max_steps else by_epochs


class BatchStream:
    """The micro-batches of each step. Which rows a step takes depends on the step and the seed alone."""

    def __init__(self, rows: Rows, objective: Objective, config: TrainConfig, runtime: Runtime) -> None:
        self.rows, self.objective, self.config, self.runtime = rows, objective, config, runtime
        self.rows_per_step = config.batch_size * config.accumulation_steps * runtime.world_size

    def num_steps(self) -> int:
        """Steps of the whole run."""
        return steps_of_run(self.config, len(self.rows), self.runtime.world_size)

    def row_numbers(self, step: int) -> np.ndarray:
        """Rows of all processes in a step: (rows_per_step,)."""
        return rows_of_step(step, self.rows_per_step, len(self.rows), self.config.seed)

    def read(self, step: int) -> StepBatches:
        """The micro-batches of this process in a step, in the host's memory, counted there."""
        mine = self.row_numbers(step)[self.runtime.rank :: self.runtime.world_size]
        parts = mine.reshape(self.config.accumulation_steps, self.config.batch_size)
        micro = [self.rows.batch(part) for part in parts]
        targets, tokens = sum(map(self.objective.num_targets, micro)), sum(map(self.objective.num_tokens, micro))
        counts = {"counts": torch.tensor([float(targets), float(tokens)])}
        return StepBatches([self.runtime.pinned(batch) for batch in micro], self.runtime.pinned(counts)["counts"])

    def steps(self, first: int, end: int) -> Iterator[StepBatches]:
        """The batches of each step, on the device; while one step is computed, a thread reads the next."""
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
    """One optimizer update a step over `accumulation_steps` micro-batches.

    Losses are summed and divided once by the targets of the whole step (all processes), so that 1 x 8 and 8 x 1
    accumulation agree, and 1 and N processes. Nothing in a step waits for a GPU: what it found out is
    read later. (But float16's loss scaling waits once a step, and experts on a GPU without a grouped kernel wait in each
    product.)
    Raises: TrainingStopped when asked to end (the state is saved), TrainingDiverged after five steps without a
    finite loss, or 21 whose gradients float16 can't hold.
    """
    runtime = run.runtime
    optimizer = build_optimizer(model, config, run.newton_schulz_dtype)
    model.train()
    first_step = run.restore(model, optimizer)
    for step, batches in enumerate(stream.steps(first_step, run.num_steps), start=first_step):
        lr = lr_at(step, run.num_steps, config)
        set_lr(optimizer, lr)
        counts = runtime.sum_over_ranks(batches.counts)
        total = torch.zeros((), device=runtime.device)  # nats per target
        for batch in batches.micro:
            with runtime.autocast():
                loss = objective.loss_sum(model, batch) / counts[0]
            run.scaler.scale(loss).backward()
            total += loss.detach()
        runtime.sum_gradients(model)
        run.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(model, config.grad_clip)
        total = runtime.sum_over_ranks(total)
        finite = run.is_finite(total, grad_norm)
        loss_scale = run.scaler.scale(torch.ones_like(total))
        run.scaler.step(optimizer, taken=finite)
        run.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        asked_to_stop = runtime.sum_over_ranks(torch.full_like(total, float(run.is_asked_to_stop())))
        found = Found(finite.float(), total, grad_norm, counts[0], counts[1], asked_to_stop, loss_scale)
        run.after_step(Outcome(step + 1, lr, runtime.fetched(torch.stack(found))), model, optimizer, stream)


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients down to `max_norm` (0: leave them); returns the norm before."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


class Found(NamedTuple):
    """What a step found out: numbers () on the device, and once they are read, plain ones."""

    finite: Any
    """1 where the step was taken, else 0."""
    loss: Any
    """Nats a target."""
    grad_norm: Any
    """Before it was clipped."""
    targets: Any
    """Of all processes."""
    tokens: Any
    """That are not padding, of all processes."""
    asked_to_stop: Any
    """How many processes were asked to: all read the same number after the same step."""
    loss_scale: Any
    """Of float16; elsewhere 1."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step whose numbers are perhaps not computed yet."""

    step: int
    """Steps finished with it."""
    lr: float
    fetch: Callable[[], list[float]]
    """Waits for the step; returns the numbers of Found."""

    def read(self) -> Found:
        """What the step found out; waits for it."""
        return Found(*self.fetch())


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
        token_cost: float = 0.0,
    ) -> None:
        """`token_cost`: a token's operations as a share of what the machine can do in a second; 0: nobody knows."""
        self.config, self.runtime, self.num_steps = config, runtime, num_steps
        self.state, self.resume, self.metrics, self.validate, self.stop = state, resume, metrics, validate, stop
        self.token_cost = token_cost
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        self.newton_schulz_dtype = torch.bfloat16 if runtime.dtype == torch.bfloat16 else torch.float32
        self.parent = ParentWatch()
        self.unread: list[Outcome] = []
        self.skipped = self.overflows = 0
        self.skips_allowed = max(1, min(MAX_SKIPPED_STEPS, num_steps - 1))
        self.tokens = self.targets = 0.0
        self.started = self.clock = time.perf_counter()
        self.tokens_at_clock = 0.0
        self.eval_steps = set(eval_steps(num_steps, config.eval_interval))
        self.last_validation: dict[str, float] = {}

    def restore(self, model: nn.Module, optimizer: MuonAdamW) -> int:
        """Put everything back where the saved state was; returns the step to go on with.

        Raises: UserError naming the state where a part of it does not fit.
        """
        if self.resume is None:
            return 0
        state, self.resume = self.resume, None  # so that no second copy of everything stays in memory
        with fitting(state["path"]):
            model.load_state_dict(state["model"], strict=True)
            optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty where the run was not in float16 before
                self.scaler.load_state_dict(state["scaler"])
            set_rng_states(state["rng"], self.runtime)
        self.tokens = self.tokens_at_clock = state["tokens"]
        self.targets, self.skipped, self.overflows = state["targets"], state["skipped"], state["overflows"]
        step: int = state["step"]
        return step

    def is_finite(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Whether the step can be taken, () boolean."""
        # float16: the scaler itself skips a step whose gradients overflowed, and halves the scale
        return torch.isfinite(loss) if self.scaler.is_enabled() else torch.isfinite(loss) & torch.isfinite(grad_norm)

    def after_step(self, outcome: Outcome, model: nn.Module, optimizer: MuonAdamW, stream: BatchStream) -> None:
        """Read what steps found, log, evaluate and save, each when due.

        A GPU may still be at work on this step, so what the step before found is read now; before anything that needs
        to be exact, all is read. Raises: TrainingStopped, TrainingDiverged.
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
        """Report the steps that were not read yet, but for the last `leave`; none is left where one was asked to stop.

        Returns: whether one was.
        """
        stopping = False
        while len(self.unread) > (0 if stopping else leave):
            stopping |= self.report(self.unread.pop(0), stream)
        return stopping

    def is_asked_to_stop(self) -> bool:
        """Whether a signal came, or nobody waits for this process any more."""
        return self.stop.exit_code != 0 or self.parent.is_gone()

    def report(self, outcome: Outcome, stream: BatchStream) -> bool:
        """Log a step, or say which rows kept it from being taken; returns whether a process was asked to stop.

        Raises: TrainingDiverged after too many steps in a row that could not be taken.
        """
        found = outcome.read()
        self.tokens += found.tokens
        self.targets += found.targets
        if not found.finite:
            self.tell_of_skipped(outcome.step, found, stream)
        elif not math.isfinite(found.grad_norm):  # float16 alone comes here: elsewhere such a step is not finite
            self.tell_of_overflow(outcome.step, found.loss_scale)
        else:
            self.skipped = self.overflows = 0
        if self.metrics is not None:
            self.show(outcome, found, self.metrics)
        return bool(found.asked_to_stop)

    def show(self, outcome: Outcome, found: Found, metrics: Metrics) -> None:
        """Move the bar, and write a line of metrics when it is due."""
        seconds = time.perf_counter() - self.clock
        speed = (self.tokens - self.tokens_at_clock) / max(seconds, 1e-9)
        figures = {"loss": f"{found.loss:.3f}"}
        if self.last_validation:
            figures["val"] = f"{self.last_validation['validation_loss']:.3f}"
        figures["tok/s"] = f"{speed:,.0f}"
        if is_wide():
            figures |= {"lr": f"{outcome.lr:.1e}"}
            figures |= {"mfu": f"{speed * self.token_cost:.0%}"} if self.token_cost else {}
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
        """Name the rows of a step that was not taken. Raises: TrainingDiverged after five such steps in a row, or
        in a shorter run where at most one step was taken."""
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
        """Say that a step's gradients did not fit float16. Raises: TrainingDiverged after 21 such steps in a row."""
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
        """Take the validation loss, outside the time that speeds are made of."""
        assert self.validate is not None
        started = time.perf_counter()
        self.last_validation = self.validate(model)
        if self.metrics is not None:
            self.metrics.log(step, self.last_validation)
            shown = ", ".join(f"{key} {value:.4f}" for key, value in self.last_validation.items())
            self.metrics.say(f"step {step}/{self.num_steps}: {shown}")
        self.clock += time.perf_counter() - started

    def save(self, step: int, model: nn.Module, optimizer: MuonAdamW) -> None:
        """Write the resume state. Raises: UserError where the weights are no numbers any more."""
        require_finite(model, self.state.path, f"after step {step}")
        rng = rng_states(self.runtime)  # asks all processes, so it stands before the main one's part
        if self.runtime.is_main:
            removed = self.state.save(
                {
                    "step": step,
                    "num_steps": self.num_steps,
                    "model": model.state_dict(),
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
    """Steps after which the validation loss is taken: every `interval`, or five times evenly; always after the last."""
    if interval:
        yield from range(interval, num_steps, interval)
    else:
        yield from (round(num_steps * part / 5) for part in range(1, 5))
    yield num_steps
