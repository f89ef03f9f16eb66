"""What the recipes minimise, over the batches of `dataset/lm_dataset.py`.

Shapes: B rows or pairs, T tokens.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from configs.artifacts import atomic_write
from configs.progress import progress_bar
from configs.schema import UserError
from dataset.tensors import IGNORE
from model.model_minillm import MiniLLM
from trainer.losses import PairLogps, dpo_loss, lm_loss_sum, sequence_logps, target_nats

if TYPE_CHECKING:
    from trainer.loop import Batch, Rows
    from trainer.recipe import Stage

RowsType = TypeVar("RowsType", bound="Rows")
REFERENCE_BATCH = 32
"""Pairs that the reference model reads at one time."""


def validation_rows(kind: Callable[[Path], RowsType], tensors: Path) -> RowsType | None:
    """The validation tensors inside a tensor folder, when there are any."""
    folder = tensors / "validation"
    return kind(folder) if folder.is_dir() else None


class NextToken:
    """Cross-entropy of the supervised tokens: pretraining and SFT."""

    def loss_sum(self, model: nn.Module, batch: "Batch") -> Tensor:
        """Nats, summed over the targets; a MoE's balance loss is weighted by the targets of its row."""
        assert isinstance(model, MiniLLM)
        hidden, balance = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
        loss = lm_loss_sum(hidden, model.output_weight, batch["labels"], batch["target_places"])
        if balance is not None and model.training:
            targets_of_row = (batch["labels"] != IGNORE).sum(dim=1)  # (B,)
            loss = loss + model.config.router_aux_loss_coef * (balance * targets_of_row).sum()
        return loss

    @torch.no_grad()
    def text_sums(self, model: nn.Module, batch: "Batch", sizes: Tensor) -> Tensor:
        """For bits per byte (evaluation/likelihood.py): nats of all targets, nats of those that stand
        for text, and the bytes of these, (3,). `sizes` (V,): bytes of each token."""
        assert isinstance(model, MiniLLM)
        hidden, _ = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
        nats = target_nats(hidden, model.output_weight, batch["labels"], batch["target_places"])  # (N,)
        bytes_of_target = sizes[batch["labels"].flatten().index_select(0, batch["target_places"])]  # (N,)
        return torch.stack([nats.sum(), (nats * (bytes_of_target > 0)).sum(), bytes_of_target.sum().to(nats.dtype)])

    def num_targets(self, batch: "Batch") -> int:
        """Supervised tokens."""
        return len(batch["target_places"])

    def num_tokens(self, batch: "Batch") -> int:
        """Tokens that belong to a document."""
        return int((batch["document_ids"] >= 0).sum())


class Preference:
    """DPO, with the chosen answer's own loss added where wanted: (2B, T), chosen rows first."""

    def __init__(self, beta: float, sft_loss_weight: float) -> None:
        self.beta, self.sft_loss_weight = beta, sft_loss_weight

    def loss_sum(self, model: nn.Module, batch: "Batch") -> Tensor:
        """Nats, summed over the pairs."""
        assert isinstance(model, MiniLLM)
        hidden, _ = model.hidden_states(batch["input_ids"])  # padding stands at the end, where nothing looks at it
        logps = sequence_logps(hidden, model.output_weight, batch["labels"], batch["target_places"])  # (2B,)
        chosen, rejected = logps.chunk(2)
        reference = PairLogps(batch["reference_chosen"], batch["reference_rejected"])
        loss = dpo_loss(PairLogps(chosen, rejected), reference, beta=self.beta)  # (B,)
        if self.sft_loss_weight and model.training:
            lengths = (batch["labels"][: len(chosen)] != IGNORE).sum(dim=1)  # (B,)
            loss = loss - self.sft_loss_weight * chosen / lengths
        return loss.sum()

    def num_targets(self, batch: "Batch") -> int:
        """Pairs."""
        return len(batch["reference_chosen"])

    def num_tokens(self, batch: "Batch") -> int:
        """Tokens before the padding of each row."""
        places = torch.arange(batch["labels"].shape[1], device=batch["labels"].device)
        return int(((batch["labels"] != IGNORE) * (places + 2)).amax(dim=1).sum())


class WithReference:
    """Pairs together with the log-probabilities that the reference model gives them."""

    def __init__(self, pairs: "Rows", reference: PairLogps) -> None:
        self.pairs, self.reference = pairs, reference

    def __len__(self) -> int:
        return len(self.pairs)

    def largest(self, count: int) -> np.ndarray:
        """Numbers of the longest pairs, (count,)."""
        return self.pairs.largest(count)

    def batch(self, indices: np.ndarray) -> "Batch":
        """The pairs of these numbers; adds reference_chosen and reference_rejected (B,)."""
        numbers = torch.from_numpy(np.ascontiguousarray(indices))
        return self.pairs.batch(indices) | {
            "reference_chosen": self.reference.chosen[numbers],
            "reference_rejected": self.reference.rejected[numbers],
        }


@torch.no_grad()
def pair_logps(model: MiniLLM, pairs: "Rows", stage: "Stage", label: str) -> PairLogps:
    """Log-probabilities of all pairs in their order, under the stage's dtype; on the CPU, float32 (N,)."""
    chosen, rejected = [], []
    with progress_bar(len(pairs), desc=f"reference {label}", unit="pairs", disable=not stage.runtime.is_main) as bar:
        for start in range(0, len(pairs), REFERENCE_BATCH):
            numbers = np.arange(start, min(start + REFERENCE_BATCH, len(pairs)))
            batch = {name: tensor.to(stage.runtime.device) for name, tensor in pairs.batch(numbers).items()}
            with stage.runtime.autocast():
                hidden, _ = model.hidden_states(batch["input_ids"])
                logps = sequence_logps(hidden, model.output_weight, batch["labels"], batch["target_places"])
            first, second = logps.cpu().chunk(2)
            chosen.append(first)
            rejected.append(second)
            bar.update(len(numbers))
    return PairLogps(torch.cat(chosen), torch.cat(rejected))


def reference_logps(stage: "Stage", parts: Mapping[str, "Rows"]) -> dict[str, PairLogps]:
    """The frozen reference's log-probabilities of each part, computed once and kept beside the resume state.

    Raises: UserError when a file kept from before is damaged.
    """
    path = stage.state.folder / f"reference_{stage.fingerprint[:16]}.npz"
    if not path.exists() and stage.runtime.is_main:
        model = stage.load_reference()
        found = {name: pair_logps(model, rows, stage, name) for name, rows in parts.items()}
        arrays = {f"{name}_{side}": getattr(logps, side).numpy() for name, logps in found.items() for side in SIDES}
        with atomic_write(path, "wb") as file:
            np.savez(file, **arrays)
    stage.runtime.barrier()
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {name: PairLogps(*(torch.from_numpy(saved[f"{name}_{side}"]) for side in SIDES)) for name in parts}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete it and rerun; it is computed anew.", "文件损坏：请删除后重新运行"
        ) from None


SIDES = ("chosen", "rejected")
