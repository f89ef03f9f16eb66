"""The validation loss: over some rows of the held-out half, the same ones each time."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from dataset.tokenizer import RustBPETokenizer
from evaluation.likelihood import bits_per_byte, token_bytes
from trainer.loop import Objective, Rows
from trainer.objectives import NextToken
from trainer.runtime import Runtime

VALIDATION_ROWS = 128
"""Rows, evenly spread over the validation data, that a validation loss is taken over."""

RowsType = TypeVar("RowsType", bound=Rows)
Validator = Callable[[nn.Module], dict[str, float]]


def validation_rows(kind: Callable[[Path], RowsType], tensors: Path) -> RowsType | None:
    """The validation tensors inside a tensor folder, when there are any."""
    folder = tensors / "validation"
    return kind(folder) if folder.is_dir() else None


def validation_batches(num_rows: int, size: int, runtime: Runtime) -> list[np.ndarray]:
    """Numbers of the rows in each batch of this process, `size` at most: VALIDATION_ROWS in all, evenly spread.

    A GPU compiles a kernel for each size that it meets, so there the batches are equal, at the price of a few rows.
    """
    count, world = min(VALIDATION_ROWS, num_rows), runtime.world_size
    if runtime.validates_compiled and count >= world:
        parts = math.ceil(count // world / size)
        size = count // world // parts
        count = parts * size * world
    numbers = np.linspace(0, num_rows - 1, count).round().astype(np.int64)
    mine = numbers[runtime.rank :: world]
    return [mine[start : start + size] for start in range(0, len(mine), size)]


def validator(
    objective: Objective, rows: Rows, tokenizer: RustBPETokenizer, runtime: Runtime, *, batch_size: int
) -> Validator:
    """A function that gives a model's validation loss, and bits per byte where a target is a token."""
    batches = validation_batches(len(rows), batch_size, runtime)
    sizes = token_bytes(tokenizer).to(runtime.device)

    @torch.no_grad()
    def validate(model: nn.Module) -> dict[str, float]:
        model.eval()
        sums = torch.zeros(4, device=runtime.device)  # loss, targets; nats and bytes of the text among them
        with runtime.validating():
            for numbers in batches:
                batch = rows.batch(numbers)
                with runtime.autocast():
                    if isinstance(objective, NextToken):
                        sums[[0, 2, 3]] += objective.text_sums(model, runtime.to_device(batch), sizes)
                    else:
                        sums[0] += objective.loss_sum(model, runtime.to_device(batch))
                sums[1] += objective.num_targets(batch)
        model.train()
        total, targets, nats, num_bytes = runtime.sum_over_ranks(sums).tolist()
        found = {"validation_loss": total / max(targets, 1.0)}
        return found | ({"validation_bits_per_byte": bits_per_byte(nats, num_bytes)} if num_bytes else {})

    return validate
