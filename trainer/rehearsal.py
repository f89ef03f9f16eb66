"""Try a micro-batch before the first step: does it compile, and does it fit the memory?

What does not compile runs without the compiler. What does not fit the memory is halved.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from configs.messages import warn
from configs.schema import TrainConfig, UserError
from model.model_minillm import MiniLLM
from trainer.autoconfig import split_rows
from trainer.loop import Objective, Rows
from trainer.runtime import Runtime
from trainer.validation import validation_batches


def needs_rehearsal(config: TrainConfig, runtime: Runtime) -> bool:
    """Whether a compiler could fail, or a GPU's memory be too small."""
    return bool(config.use_compile) or runtime.device.type == "cuda"


@dataclass(frozen=True)
class TrialStep:
    """Computes loss and gradients of the rows that need the most memory.

    Later steps need memory for the optimizer too. As much is held while the trial runs.
    """

    model: MiniLLM
    rows: Rows
    objective: Objective
    validation: Rows | None
    runtime: Runtime
    config: TrainConfig

    def __call__(self, num_rows: int) -> None:
        """One micro-batch of `num_rows` rows, forward and backward.

        Where a validation is compiled too, one of its batches follows. Better it fails now than
        hours later.
        """
        self.model.train()
        batch = self.rows.batch(self.rows.largest(num_rows))
        held = torch.empty(self._numbers_held(num_rows), device=self.runtime.device)
        num_targets = max(1, self.objective.num_targets(batch))
        with self.runtime.autocast():
            loss = self.objective.loss_sum(self.model, self.runtime.to_device(batch)) / num_targets
        loss.backward()
        del held
        if self.validation and self.config.use_compile and self.runtime.validates_compiled:
            self._validate(self.validation, num_rows)

    def _numbers_held(self, num_rows: int) -> int:
        """How many float32 numbers later steps hold while they compute a micro-batch."""
        # The optimizer makes its moments in the first step, two for each weight at most. And from
        # the second micro-batch of a step on, there are gradients already: a third copy.
        if self.runtime.device.type != "cuda":
            return 0
        copies = 2 if num_rows == self.config.batch_size * self.config.accumulation_steps else 3
        return copies * sum(p.numel() for p in self.model.parameters())

    def _validate(self, validation: Rows, num_rows: int) -> None:
        """The first batch of a validation."""
        for numbers in validation_batches(len(validation), num_rows, self.runtime)[:1]:
            with torch.no_grad(), self.runtime.autocast():
                self.objective.loss_sum(self.model.eval(), self.runtime.to_device(validation.batch(numbers)))


def rehearse(
    config: TrainConfig,
    model: MiniLLM,
    step: Callable[[int], None],
    runtime: Runtime,
    *,
    free_to_choose: bool,
    resuming: bool = False,
) -> TrainConfig:
    """Try a micro-batch until it works: without the compiler, or with fewer rows.

    Args: step: computes loss and gradients of so many rows. free_to_choose: whether the micro-batch
    may change, because nobody has asked for its size. resuming: whether the run has steps behind
    it. Then a step keeps exactly its rows, because which rows come next depends on their number.
    Returns: the settings that work.
    Raises: UserError when a single row does not fit, or a size that was asked for. Errors of `step`
    that neither the compiler nor the memory explains.
    """
    # All processes must decide alike, so each of them asks whether one of them has failed.
    while True:
        failed: Exception | None = None
        try:
            step(config.batch_size)
        except Exception as error:  # compilers fail with whatever they meet
            failed = error
        model.zero_grad(set_to_none=True)
        if runtime.any_rank(is_out_of_memory(failed)):
            failed = None  # its frames hold the tensors of the step
            config = _halved(config, free_to_choose, resuming, runtime)
        elif runtime.any_rank(failed is not None):
            if not config.use_compile:
                raise failed or RuntimeError("another process failed: see its message")
            if runtime.device.type == "cuda" and not model.tries_attention:
                model.tries_attention = True  # perhaps only FlexAttention failed: try the blocks without it
                continue
            _say_without_compiler(failed, runtime)
            model.compile_blocks(False)
            config = replace(config, use_compile=False)
        else:
            return config


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a GPU's memory was full. A compiler wraps that error, so causes are looked at too."""
    if error is None or isinstance(error, torch.OutOfMemoryError):
        return error is not None
    return is_out_of_memory(getattr(error, "inner_exception", None) or error.__cause__)


def _halved(config: TrainConfig, free_to_choose: bool, resuming: bool, runtime: Runtime) -> TrainConfig:
    """The settings with half the micro-batch, and a step of the same size or a few rows more.

    Raises: UserError where the micro-batch may not become smaller.
    """
    size = config.batch_size
    if size == 1 or not free_to_choose:
        raise UserError(
            f"batch_size = {size}: {'a single row' if size == 1 else 'a micro-batch of so many rows'} does not fit the "
            "GPU's memory. Pass --gradient_checkpointing, a smaller --batch_size or --max_seq_len, or a smaller model.",
            "显存放不下：请加 --gradient_checkpointing，或减小批量、长度或模型",
        )
    torch.compiler.reset()  # otherwise the blocks would be compiled for any number of rows, which is slower
    torch.cuda.empty_cache()
    rows = size * config.accumulation_steps
    smaller, parts = split_rows(rows, size // 2)
    if resuming:
        # Not a row more in a step: the size must be a divisor, however small.
        smaller = max(part for part in range(1, size // 2 + 1) if rows % part == 0)
        parts = rows // smaller
        if runtime.is_main:
            warn(
                f"micro-batches of {size} rows, which this run began with, do not fit the GPU's memory now: it goes on with "
                f"{parts} of {smaller} a step, the same rows; its numbers will differ by rounding.",
                f"显存放不下原来的 {size} 行，改为每步 {parts} × {smaller} 行，数据不变",
            )
    return replace(config, batch_size=smaller, accumulation_steps=parts)


def _say_without_compiler(error: Exception | None, runtime: Runtime) -> None:
    """Warn once, with the first line of the compiler's message."""
    reason = "in another process"
    if error is not None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    if runtime.is_main:
        warn(
            f"torch.compile failed ({reason}): training goes on without it, a little slower",
            "编译失败，改为不编译继续训练",
        )
