"""The validation loss: over the same few rows of the held-out data each time."""

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
"""Rows that a validation loss is taken over, evenly spread over the validation data."""

RowsType = TypeVar("RowsType", bound=Rows)
Validator = Callable[[nn.Module], dict[str, float]]
"""Model -> name and value of each figure."""


def validation_rows(kind: Callable[[Path], RowsType], tensors: Path) -> RowsType | None:
    """The validation tensors inside a tensor folder; None where there are none.

    Args: kind: the class of the data set, such as SFTDataset.
    """
    folder = tensors / "validation"
    return kind(folder) if folder.is_dir() else None


def validation_batches(num_rows: int, size: int, runtime: Runtime) -> list[np.ndarray]:
    """Numbers of the rows in each batch of this process: VALIDATION_ROWS in all processes.

    A GPU's compiler makes a kernel for each size of a batch. So there all batches are equally
    large, and a few rows are left out.
    Args: size: rows of a batch at most.
    """
    # The rows are spread over all data, so that its beginning alone does not decide.
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
    """A function that gives a model's validation loss, and bits per byte where targets are tokens.

    Its figures: `validation_loss` in nats per target (or pair), `validation_bits_per_byte`.
    """
    batches = validation_batches(len(rows), batch_size, runtime)
    sizes = token_bytes(tokenizer).to(runtime.device)

    @torch.no_grad()
    def validate(model: nn.Module) -> dict[str, float]:
        model.eval()
        # Four sums over all batches: 0 is the loss, 1 is the number of targets. The other two count
        # only targets that stand for text: 2 is their loss in nats, 3 is their number of bytes.
        sums = torch.zeros(4, device=runtime.device)
        with runtime.validating():
            for numbers in batches:
                batch = rows.batch(numbers)
                with runtime.autocast():
                    # One forward pass gives the loss and what bits per byte need.
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
