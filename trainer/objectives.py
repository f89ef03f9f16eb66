"""What the recipes minimise, over the batches of `dataset/lm_dataset.py`.

Shapes: B rows or pairs, T tokens of a row, N targets of the batch, C hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn

from dataset.lm_dataset import Batch
from dataset.tensors import IGNORE
from model.heads import rewards_of
from model.likelihood import lm_loss_sum, sequence_logps, target_nats
from model.model_minillm import MiniLLM
from trainer.divergence import Mixture, Output, distillation_loss_sum
from trainer.losses import PairLogps, dpo_loss, reward_loss

SAMPLED = "is_sampled"
"""A batch with this entry holds answers that the student itself has sampled
(trainer/on_policy.py)."""


class NextToken:
    """Cross-entropy of the targets, for pretraining and SFT. The labels say what is a target."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats, summed over the targets, (). In training, a MoE's balance loss is added."""
        assert isinstance(model, MiniLLM)
        # (B, T, C), and of a MoE (B,)
        hidden, balance = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
        loss = lm_loss_sum(hidden, model.output_weight, batch["labels"], batch["target_places"])
        return loss + balance_sum(model, balance, (batch["labels"] != IGNORE).sum(dim=1))

    @torch.no_grad()
    def text_sums(self, model: nn.Module, batch: Batch, sizes: Tensor) -> Tensor:
        """What bits per byte are made of (evaluation/likelihood.py).

        Args: sizes (V,): bytes of text that each token stands for; 0 for a special token.
        Returns: nats of all targets, nats of those that stand for text, bytes of these: (3,).
        """
        assert isinstance(model, MiniLLM)
        hidden, _ = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
        nats = target_nats(hidden, model.output_weight, batch["labels"], batch["target_places"])  # (N,)
        bytes_of_target = sizes[batch["labels"].flatten().index_select(0, batch["target_places"])]  # (N,)
        return torch.stack([nats.sum(), (nats * (bytes_of_target > 0)).sum(), bytes_of_target.sum().to(nats.dtype)])

    def num_targets(self, batch: Batch) -> float:
        """Targets."""
        return len(batch["target_places"])

    def num_tokens(self, batch: Batch) -> int:
        """Tokens that belong to a document."""
        return int((batch["document_ids"] >= 0).sum())


def balance_sum(model: MiniLLM, balance: Tensor | None, targets_of_row: Tensor) -> Tensor | float:
    """What a MoE's balance loss (B,) adds to the loss of a batch in training.

    The loop divides the sum by the targets of the whole step. A row's balance loss is multiplied by
    its targets (B,), so that it stays a mean over targets too, and splits of a step agree.
    """
    if balance is None or not model.training:
        return 0.0
    return model.config.router_aux_loss_coef * (balance * targets_of_row).sum()


class WeightedTokens(NextToken):
    """Cross-entropy of the targets, where some tokens count more than others.

    The loop divides by the sum of the weights, so a step's loss is the weighted mean of its
    targets, however its rows are divided. Bits per byte count every token of text once.
    """

    def __init__(self, weights: Tensor) -> None:
        """Args: weights (V,): how much each token counts as a target, above 0."""
        self.weights = weights

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats times weights, summed over the targets, ()."""
        assert isinstance(model, MiniLLM)
        hidden, balance = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
        nats = target_nats(hidden, model.output_weight, batch["labels"], batch["target_places"])  # (N,)
        weights = self._of_places(batch)  # (B, T)
        loss = (nats * weights.flatten().index_select(0, batch["target_places"])).sum()
        return loss + balance_sum(model, balance, weights.sum(dim=1))

    @torch.no_grad()
    def text_sums(self, model: nn.Module, batch: Batch, sizes: Tensor) -> Tensor:
        """As in `NextToken`, but the first number is the loss with its weights."""
        sums = super().text_sums(model, batch, sizes)
        return torch.cat([self.loss_sum(model, batch)[None].to(sums.dtype), sums[1:]])

    def num_targets(self, batch: Batch) -> float:
        """The weights of the targets, summed."""
        return float(self._of_places(batch).sum())

    def _of_places(self, batch: Batch) -> Tensor:
        """The weight of the target at each place (B, T); 0 where there is none."""
        labels = batch["labels"]
        weights = self.weights.to(labels.device)[labels.clamp(min=0)]
        return weights * (labels != IGNORE)


class Distillation(NextToken):
    """The student shall predict what a frozen teacher predicts, and the labels besides.

    Its validation is that of `NextToken`: how well the student predicts held-out text.
    """

    def __init__(self, teacher: MiniLLM, mixture: Mixture, on_policy: Mixture) -> None:
        """Args: teacher: of the same vocabulary. mixture: for the data. on_policy: for what the
        student has sampled."""
        self.teacher, self.mixture, self.on_policy = teacher.eval().requires_grad_(False), mixture, on_policy

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mixed loss in nats, summed over the targets, (). A MoE's balance loss is added."""
        assert isinstance(model, MiniLLM)
        ids, documents = batch["input_ids"], batch["document_ids"]
        hidden, balance = model.hidden_states(ids, document_ids=documents)  # (B, T, C)
        with torch.no_grad():
            teacher_hidden, _ = self.teacher.hidden_states(ids, document_ids=documents)
        # The rows of the teacher's matrix beyond the student's stand for no token.
        teacher_weight = self.teacher.output_weight[: model.config.vocab_size]
        loss = distillation_loss_sum(
            Output(hidden, model.output_weight),
            Output(teacher_hidden, teacher_weight),
            batch["labels"],
            batch["target_places"],
            self.on_policy if SAMPLED in batch else self.mixture,
        )
        return loss + balance_sum(model, balance, (batch["labels"] != IGNORE).sum(dim=1))


class Preference:
    """DPO: the chosen answer of a pair shall gain on the rejected one.

    A batch has 2B rows of T tokens: the B chosen sides, then the B rejected ones.
    """

    def __init__(self, beta: float, sft_loss_weight: float) -> None:
        """Args: beta: how strongly the reference holds the model back. sft_loss_weight: the chosen
        answer's own loss, in nats per target, counts this much; 0: not at all."""
        self.beta, self.sft_loss_weight = beta, sft_loss_weight

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats, summed over the pairs, ()."""
        assert isinstance(model, MiniLLM)
        # Padding stands at the end of a row, where no token looks at it: no mask is needed.
        hidden, _ = model.hidden_states(batch["input_ids"])  # (2B, T, C)
        logps = sequence_logps(hidden, model.output_weight, batch["labels"], batch["target_places"])  # (2B,)
        chosen, rejected = logps.chunk(2)
        reference = PairLogps(batch["reference_chosen"], batch["reference_rejected"])
        loss = dpo_loss(PairLogps(chosen, rejected), reference, beta=self.beta)  # (B,)
        if self.sft_loss_weight and model.training:
            # DPO alone is content where both answers become unlikely, the rejected one more so. The
            # mean negative log-likelihood of the chosen answer's targets keeps it likely (RPO,
            # arXiv:2404.19733). A validation shows DPO's loss alone.
            lengths = (batch["labels"][: len(chosen)] != IGNORE).sum(dim=1)  # (B,)
            loss = loss - self.sft_loss_weight * chosen / lengths
        return loss.sum()

    def num_targets(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch["reference_chosen"])

    def num_tokens(self, batch: Batch) -> int:
        """Tokens before the padding of each row."""
        # labels[t] is the token at t + 1. So a row whose last target stands at t has t + 2 tokens.
        places = torch.arange(batch["labels"].shape[1], device=batch["labels"].device)
        return int(((batch["labels"] != IGNORE) * (places + 2)).amax(dim=1).sum())


class Reward(Preference):
    """A reward model: the chosen answer of a pair shall get the higher reward.

    A batch is that of DPO, without a reference.
    """

    def __init__(self, centering: float) -> None:
        """Args: centering: how strongly the mean reward is pulled to 0."""
        self.centering = centering

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats, summed over the pairs, (). A validation shows the loss without the pull to 0."""
        assert isinstance(model, MiniLLM)
        rewards = rewards_of(model, batch["input_ids"], end_places(batch["labels"]))  # (2B,)
        chosen, rejected = rewards.chunk(2)
        return reward_loss(chosen, rejected, centering=self.centering if model.training else 0.0).sum()

    def num_targets(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch["input_ids"]) // 2


def end_places(labels: Tensor) -> Tensor:
    """The place of the last token of each row (B, T) that is a target: of an answer's end. (B,)"""
    # labels[t] is the token at t + 1.
    places = torch.arange(labels.shape[1], device=labels.device)
    return ((labels != IGNORE) * (places + 1)).amax(dim=1)
