"""The reward model: a network that gives a whole answer one number instead of a next token.

A linear head reads the last hidden state at the end token of an answer, where the model has seen
all of it (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).

    reward = read_reward_model(Path("out/reward_192.pth"))
    reward.score([[*prompt, *answer, end_token]])  # one number

Shapes: B sequences, T tokens of the longest, C hidden size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.paths import display
from configs.schema import UserError
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import REWARD_HEAD, load_strict, read_weights

SCORE_BATCH = 64
"""Sequences that are scored at once."""


def attach_reward_head(model: MiniLLM) -> MiniLLM:
    """Add the head `reward_head`, (1, C). It starts at 0, so that all rewards do.

    Returns: the same model. Its state dict has `reward_head.weight` besides.
    """
    head = nn.Linear(model.config.hidden_size, 1, bias=False, device=model.device)
    nn.init.zeros_(head.weight)
    model.reward_head = head
    return model


def rewards_of(model: nn.Module, input_ids: Tensor, ends: Tensor) -> Tensor:
    """The reward of each sequence, in float32.

    Args: model: a MiniLLM with a reward head. input_ids (B, T): padded at the end, where no token
    looks. ends (B,): the place of each end token. Returns: (B,).
    """
    assert isinstance(model, MiniLLM)
    hidden, _ = model.hidden_states(input_ids)  # (B, T, C)
    at_end = hidden[torch.arange(len(ends), device=ends.device), ends]  # (B, C)
    # A reward is a small difference of sums, so it is not rounded to 8 bits of bfloat16.
    with torch.autocast(hidden.device.type, enabled=False):
        head = model.reward_head
        assert isinstance(head, nn.Linear)
        rewards: Tensor = head(at_end.float())[:, 0]
    return rewards


class RewardModel:
    """Trained weights with a reward head, ready to score."""

    def __init__(self, model: MiniLLM, manifest: WeightsManifest) -> None:
        """Args: model: with its reward head."""
        self.model, self.manifest = model.eval().requires_grad_(False), manifest

    @torch.no_grad()
    def score(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """The reward of each sequence, (B,) float32 on the CPU.

        Args: ids: whole conversations: the prompt, the answer, and its end token, the last one,
        where the reward is read.
        Raises: ValueError for an empty sequence.
        """
        if not all(ids):
            raise ValueError("a sequence without tokens has no reward")
        rewards = torch.empty(len(ids))
        # Sequences of like length go together, so that little is padding.
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        for start in range(0, len(order), SCORE_BATCH):
            numbers = order[start : start + SCORE_BATCH]
            lengths = torch.tensor([len(ids[number]) for number in numbers])
            padded = torch.zeros(len(numbers), int(lengths.max()), dtype=torch.int64)
            for row, number in enumerate(numbers):
                padded[row, : lengths[row]] = torch.tensor(ids[number])
            device = self.model.device
            rewards[numbers] = rewards_of(self.model, padded.to(device), (lengths - 1).to(device)).cpu()
        return rewards

    @property
    def tokenizer_sha256(self) -> str:
        """Fingerprint of its tokenizer, which must be that of the ids."""
        return self.manifest.tokenizer_sha256

    @property
    def proven(self) -> bool:
        """Whether it is better than chance on held-out pairs (`is_proven`)."""
        return is_proven(self.manifest.reward_accuracy)

    @property
    def evidence(self) -> str:
        """What is known of its accuracy, in a few words."""
        return evidence(self.manifest.reward_accuracy)


def evidence(accuracy: Mapping[str, Any]) -> str:
    """A few words about a length-matched accuracy. Args: as for `is_proven`."""
    if not accuracy:
        return "no accuracy on held-out pairs is known"
    low, high = accuracy["ci95"]
    return f"length-matched accuracy {accuracy['value']:.3f} [{low:.3f}, {high:.3f}] on {accuracy['n']} held-out pairs"


def is_proven(accuracy: Mapping[str, Any]) -> bool:
    """Whether the interval of a length-matched accuracy lies above 50%.

    Args: accuracy: as the manifest keeps it: `value`, `n`, `ci95`; empty: not known.
    """
    return bool(accuracy) and accuracy["ci95"][0] > 0.5


def read_reward_model(path: Path, *, device: torch.device | str = "cpu") -> RewardModel:
    """The reward model of a weight file.

    Raises: UserError when it is missing, damaged, or has no reward head.
    """
    state, config, manifest = read_weights(path)
    if REWARD_HEAD not in state:
        raise UserError(
            f"{display(path)}: weights of stage {manifest.stage or 'unknown'}, no reward model. "
            "Train one: python trainer/train_reward.py; or give another path.",
            "不是奖励模型：请先训练一个，或换一个路径",
        )
    model = attach_reward_head(MiniLLM(config))
    load_strict(model, state, path)
    return RewardModel(model.to(device), manifest)
