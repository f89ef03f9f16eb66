"""PPO's value model: what reward is still to be expected, before each token of an answer.

Shapes: N tokens of some answers, C hidden size.
"""

import copy

import torch
from torch import Tensor, nn

from model.model_minillm import MiniLLM
from trainer.rollout import Rollout


class ValueModel(nn.Module):
    """A copy of the policy whose last layer gives a number instead of a token.

    The head starts at 0, so that all values do: a random one would only add noise to the first
    advantages.
    """

    def __init__(self, policy: MiniLLM) -> None:
        super().__init__()
        self.network = copy.deepcopy(policy)
        self.head = nn.Linear(policy.config.hidden_size, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def values(self, rollout: Rollout) -> Tensor:
        """The value of what stands before each token of the answers, (N,) float32."""
        hidden, _ = self.network.hidden_states(rollout.input_ids)
        before = hidden.flatten(0, 1).index_select(0, rollout.target_places)  # (N, C)
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.head(before.float())[:, 0]
        return values
