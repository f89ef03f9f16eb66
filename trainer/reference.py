"""The frozen reference model of DPO: its log-probabilities of both answers, computed once.

Shapes: B pairs of a batch, N pairs of a data set.
"""

from collections.abc import Mapping
from zipfile import BadZipFile

import numpy as np
import torch

from configs.artifacts import atomic_write
from configs.progress import progress_bar
from configs.schema import UserError
from dataset.lm_dataset import Batch
from model.likelihood import sequence_logps
from model.model_minillm import MiniLLM
from model.weights import load_model
from trainer.facts import Facts
from trainer.loop import Rows
from trainer.losses import PairLogps
from trainer.runtime import Runtime

REFERENCE_BATCH = 32
"""Pairs that the reference model reads at once."""
SIDES = ("chosen", "rejected")
"""The two answers of a pair, as fields of PairLogps."""


class WithReference:
    """Pairs together with the log-probabilities that the reference model gives them."""

    def __init__(self, pairs: Rows, reference: PairLogps) -> None:
        """Args: reference: of all pairs, in their order, each (N,)."""
        self.pairs, self.reference = pairs, reference

    def __len__(self) -> int:
        return len(self.pairs)

    def largest(self, count: int) -> np.ndarray:
        """Numbers of the longest pairs (count,)."""
        return self.pairs.largest(count)

    def batch(self, indices: np.ndarray) -> Batch:
        """The pairs with these numbers, and their reference_chosen and reference_rejected (B,)."""
        numbers = torch.from_numpy(np.ascontiguousarray(indices))
        return self.pairs.batch(indices) | {
            "reference_chosen": self.reference.chosen[numbers],
            "reference_rejected": self.reference.rejected[numbers],
        }


def load_reference(facts: Facts, runtime: Runtime) -> MiniLLM:
    """The starting weights as a frozen model. Raises: UserError when the stage has none."""
    if facts.start is None:
        raise UserError(
            "--from_weight none: this stage needs weights to start from. Name them, such as full_sft.",
            "此阶段需要起始权重：请指定，例如 full_sft",
        )
    model, _ = load_model(facts.start.path, device=runtime.device)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def pair_logps(model: MiniLLM, pairs: Rows, runtime: Runtime, label: str) -> PairLogps:
    """Log-probabilities of all pairs in their order, computed in the run's dtype.

    Args: label: what the progress bar calls these pairs.
    Returns: float32 on the CPU, each (N,).
    """
    chosen, rejected = [], []
    with progress_bar(len(pairs), desc=f"reference {label}", unit="pairs", disable=not runtime.is_main) as bar:
        for start in range(0, len(pairs), REFERENCE_BATCH):
            numbers = np.arange(start, min(start + REFERENCE_BATCH, len(pairs)))
            batch = {name: tensor.to(runtime.device) for name, tensor in pairs.batch(numbers).items()}
            with runtime.autocast():
                hidden, _ = model.hidden_states(batch["input_ids"])
                logps = sequence_logps(hidden, model.output_weight, batch["labels"], batch["target_places"])
            first, second = logps.cpu().chunk(2)  # a batch has the chosen sides first
            chosen.append(first)
            rejected.append(second)
            bar.update(len(numbers))
    return PairLogps(torch.cat(chosen), torch.cat(rejected))


def reference_logps(facts: Facts, runtime: Runtime, parts: Mapping[str, Rows]) -> dict[str, PairLogps]:
    """The reference's log-probabilities of each part of the data.

    They are computed once and kept beside the resume state, so that a resumed run need not compute
    them again. They are removed with it when the weights are written.
    Args: parts: name of a part, such as `train` -> its pairs.
    Raises: UserError when the file kept from before is damaged.
    """
    path = facts.state.folder / f"reference_{facts.fingerprint[:16]}.npz"
    # The main process computes and writes; all processes read.
    if not path.exists() and runtime.is_main:
        model = load_reference(facts, runtime)
        found = {name: pair_logps(model, rows, runtime, name) for name, rows in parts.items()}
        arrays = {f"{name}_{side}": getattr(logps, side).numpy() for name, logps in found.items() for side in SIDES}
        with atomic_write(path, "wb") as file:
            np.savez(file, **arrays)
    runtime.barrier()
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {name: PairLogps(*(torch.from_numpy(saved[f"{name}_{side}"]) for side in SIDES)) for name in parts}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete it and rerun; it is computed anew.", "文件损坏：请删除后重新运行"
        ) from None
