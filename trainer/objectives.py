"""What the recipes minimise, over the batches of `dataset/lm_dataset.py`.

Shapes: B rows or pairs, T tokens.
"""

import torch
from torch import Tensor, nn

from dataset.lm_dataset import Batch
from dataset.tensors import IGNORE
from model.likelihood import lm_loss_sum, sequence_logps, target_nats
from model.model_minillm import MiniLLM
from trainer.losses import PairLogps, dpo_loss


class NextToken:
    """Cross-entropy of the supervised tokens: pretraining and SFT."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats, summed over the targets; a MoE's balance loss is weighted by the targets of its row."""
        assert isinstance(model, MiniLLM)
        hidden, balance = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
        loss = lm_loss_sum(hidden, model.output_weight, batch["labels"], batch["target_places"])
        if balance is not None and model.training:
            targets_of_row = (batch["labels"] != IGNORE).sum(dim=1)  # (B,)
            loss = loss + model.config.router_aux_loss_coef * (balance * targets_of_row).sum()
        return loss

    @torch.no_grad()
    def text_sums(self, model: nn.Module, batch: Batch, sizes: Tensor) -> Tensor:
        """For bits per byte (evaluation/likelihood.py): nats of all targets, nats of those that stand
        for text, and the bytes of these, (3,). `sizes` (V,): bytes of each token."""
        assert isinstance(model, MiniLLM)
        hidden, _ = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
        nats = target_nats(hidden, model.output_weight, batch["labels"], batch["target_places"])  # (N,)
        bytes_of_target = sizes[batch["labels"].flatten().index_select(0, batch["target_places"])]  # (N,)
        return torch.stack([nats.sum(), (nats * (bytes_of_target > 0)).sum(), bytes_of_target.sum().to(nats.dtype)])

    def num_targets(self, batch: Batch) -> int:
        """Supervised tokens."""
        return len(batch["target_places"])

    def num_tokens(self, batch: Batch) -> int:
        """Tokens that belong to a document."""
        return int((batch["document_ids"] >= 0).sum())


class Preference:
    """DPO, with the chosen answer's own loss added where wanted: (2B, T), chosen rows first."""

    def __init__(self, beta: float, sft_loss_weight: float) -> None:
        self.beta, self.sft_loss_weight = beta, sft_loss_weight

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
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

    def num_targets(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch["reference_chosen"])

    def num_tokens(self, batch: Batch) -> int:
        """Tokens before the padding of each row."""
        places = torch.arange(batch["labels"].shape[1], device=batch["labels"].device)
        return int(((batch["labels"] != IGNORE) * (places + 2)).amax(dim=1).sum())
