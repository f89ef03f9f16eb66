"""Batches from token tensors: which rows a step takes, and what a batch of them holds.

The rows of a step depend only on the step's number and the seed. So the order is never saved: a run
that resumes at step 1,000 needs nothing but that number.

Shapes: B rows or pairs, L tokens of a row, T tokens of the longest sequence in a batch, N targets
of a batch (tokens that count in the loss).
"""

from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dataset.tensors import IGNORE, open_tensors, read_manifest, require_kind

Batch = dict[str, Tensor]
"""Name -> tensor of some rows or pairs."""


@lru_cache(maxsize=4)  # a step touches one or two epochs, of one or two data sets
def epoch_order(num_rows: int, epoch: int, seed: int) -> np.ndarray:
    """The order of the rows in an epoch, (num_rows,).

    It is drawn with the seed [seed, epoch]. The array is read-only, because the cache shares it.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.setflags(write=False)
    return order


def rows_of_step(step: int, rows_per_step: int, num_rows: int, seed: int) -> np.ndarray:
    """Numbers of the rows that a step trains on, (rows_per_step,).

    All epochs together are one endless list of rows: a step may take the last rows of one epoch and
    the first rows of the next.
    """
    return rows_at(np.arange(step * rows_per_step, (step + 1) * rows_per_step), num_rows, seed)


def rows_at(places: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Numbers of the rows at some places of the endless list of all epochs, (len(places),)."""
    # Place p of the list is in epoch p // num_rows, at place p % num_rows of that epoch's order.
    epochs, offsets = np.divmod(places, num_rows)
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = epoch_order(num_rows, int(epoch), seed)[offsets[here]]
    return rows


@runtime_checkable
class ChoosesRows(Protocol):
    """A data set with a rule of its own for the rows of a step, in place of `rows_of_step`."""

    def rows_of_step(self, step: int, rows_per_step: int, seed: int) -> np.ndarray:
        """Numbers of the rows that a step trains on, (rows_per_step,)."""
        ...


def target_places(labels: Tensor) -> Tensor:
    """The places of the targets in labels (B, T), as b * T + t: int64 (N,), ascending.

    They are looked for while the batch is still on the CPU. A search on the GPU would make the CPU
    wait, because their number, which is a shape, is known only at the end of the search.
    """
    return (labels.flatten() != IGNORE).nonzero().flatten()


class _Tensors:
    """A tensor folder of one kind of data, opened.

    Raises: UserError when it is damaged or of another kind.
    """

    data = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        require_kind(path, self.manifest, self.data)
        self.arrays = open_tensors(path)

    def __len__(self) -> int:
        """Rows, or pairs."""
        return self.manifest.rows

    def largest(self, count: int) -> np.ndarray:
        """Numbers of the `count` rows (or pairs) that need the most memory, (count,).

        Numbers repeat when there are fewer rows than `count`. Packed rows all need the same memory.
        """
        return np.arange(count) % len(self)


class _PackedRows(_Tensors):
    """Rows of several documents or conversations each."""

    def batch(self, indices: np.ndarray) -> Batch:
        """Rows by number: input_ids, labels (-100: no target), document_ids (-1: padding).

        Each is int64 (B, L). The batch also has the `target_places` of the labels, (N,).
        """
        numbers = torch.tensor(indices)
        names = ("input_ids", "labels", "document_ids")
        batch = {name: self.arrays[name][numbers].to(torch.int64) for name in names}
        return batch | {"target_places": target_places(batch["labels"])}


class PretrainDataset(_PackedRows):
    """Rows of documents."""

    data = "documents"


class SFTDataset(_PackedRows):
    """Rows of conversations."""

    data = "conversations"


class DPODataset(_Tensors):
    """Pairs of conversations that differ in the last answer."""

    data = "pairs"

    def batch(self, indices: np.ndarray) -> Batch:
        """Pairs by number: input_ids and labels, int64 (2B, T).

        First come the B chosen sides, then the B rejected ones. Shorter sequences are padded at the
        end: no token before the padding can see it, and its labels are -100. The batch also has the
        `target_places` of the labels, (N,).
        """
        sides = [("chosen", int(i)) for i in indices] + [("rejected", int(i)) for i in indices]
        spans = [self._span(side, number) for side, number in sides]
        longest = max(end - start for start, end in spans)
        input_ids = torch.full((len(spans), longest), self.manifest.pad_id, dtype=torch.int64)
        labels = torch.full_like(input_ids, IGNORE)
        for row, ((side, _), (start, end)) in enumerate(zip(sides, spans, strict=True)):
            input_ids[row, : end - start] = self.arrays[f"{side}_input_ids"][start:end]
            labels[row, : end - start] = self.arrays[f"{side}_labels"][start:end]
        return {"input_ids": input_ids, "labels": labels, "target_places": target_places(labels)}

    def largest(self, count: int) -> np.ndarray:
        # A pair needs memory by its longer side. The longest pairs come first.
        lengths = [np.diff(self.arrays[f"{side}_offsets"].numpy()) for side in ("chosen", "rejected")]
        return np.resize(np.argsort(-np.maximum(*lengths), kind="stable"), count)

    def _span(self, side: str, number: int) -> tuple[int, int]:
        """First token of a pair's side in the flat arrays, and the token after its last one."""
        start, end = self.arrays[f"{side}_offsets"][number : number + 2].tolist()
        return start, end
