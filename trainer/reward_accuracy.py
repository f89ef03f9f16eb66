"""How often a reward model is right on validation pairs of like length: kept with its weights."""

from collections.abc import Hashable

import numpy as np
import torch

from dataset.lm_dataset import DPODataset
from dataset.tensors import IGNORE
from evaluation.intervals import Metric
from evaluation.reward import length_matched
from model.heads import rewards_of
from model.model_minillm import MiniLLM
from trainer.objectives import end_places

BATCH = 32
"""Pairs that are scored at once."""


@torch.no_grad()
def matched_accuracy(model: MiniLLM, pairs: DPODataset) -> Metric | None:
    """The length-matched accuracy (evaluation/reward.py) over all pairs. Lengths are in tokens.

    Pairs with the same prompt are one cluster.
    Returns: None where no two pairs can be matched.
    """
    right: list[bool] = []
    lengths: list[tuple[int, int]] = []
    clusters: list[Hashable] = []
    was_training = model.training
    model.eval()
    for start in range(0, len(pairs), BATCH):
        batch = pairs.batch(np.arange(start, min(start + BATCH, len(pairs))))
        ids, labels = batch["input_ids"].to(model.device), batch["labels"].to(model.device)
        chosen, rejected = rewards_of(model, ids, end_places(labels)).chunk(2)
        right += (chosen > rejected).tolist()
        targets = batch["labels"] != IGNORE  # (2B, T)
        counts = targets.sum(dim=1).tolist()
        lengths += zip(counts[: len(chosen)], counts[len(chosen) :], strict=True)
        # The prompt of a row ends at its first target.
        firsts = targets.int().argmax(dim=1).tolist()
        clusters += [tuple(batch["input_ids"][row, : firsts[row] + 1].tolist()) for row in range(len(chosen))]
    model.train(was_training)
    return length_matched(right, lengths, clusters)
