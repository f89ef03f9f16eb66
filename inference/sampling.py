"""How the next token is chosen: temperature, top-k, top-p, seed.

Shapes: B prompts, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import LARGEST_COUNT, UserError, check_seed

LOWEST_TEMPERATURE = 1e-4
"""Logits divided by a lower temperature overflow. It would give only the likeliest token anyway."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen. Raises: UserError for a value out of range."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0: greedy, the likeliest token."""
    top_k: int = 0
    """Sample among the k likeliest; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest whose probabilities reach p (nucleus sampling,
    arXiv:1904.09751)."""
    seed: int = 42

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= LARGEST_COUNT:
            raise UserError(
                f"max_new_tokens = {self.max_new_tokens}: must be from 1 to {LARGEST_COUNT}.", "超出允许的范围"
            )
        if self.temperature != 0 and not LOWEST_TEMPERATURE <= self.temperature < math.inf:
            raise UserError(
                f"temperature = {self.temperature}: must be 0 (greedy), or a number of {LOWEST_TEMPERATURE} or more.",
                f"只能是 0（取最可能的词元）或不小于 {LOWEST_TEMPERATURE} 的数",
            )
        if self.top_k < 0:
            raise UserError(f"top_k = {self.top_k}: must be 0 (all) or more.", "必须是不小于 0 的整数（0 表示不限）")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: must be above 0 and at most 1.", "必须大于 0 且不超过 1")
        check_seed(self.seed)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token of each row: (B, V) on any device -> (B,) on the CPU.

    Random numbers are drawn on the CPU, from one generator for every kind of device, because
    sorting and drawing on MPS have limits that change with its releases. It costs little: only one
    row of logits for each prompt is copied.
    Raises: UserError if logits are NaN or infinite and the temperature is not 0.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).cpu()
    logits = logits.float().cpu() / sampling.temperature
    if not logits.isfinite().all():
        raise UserError(
            "the model's scores are NaN or infinite: its weights are damaged. Give another --weight, or make them again: "
            "bash scripts/run.sh.",
            "模型输出不是有限的数：权重已损坏，请重新训练",
        )
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        # A token is left out when the likelier ones reach p without it. So the token that crosses p
        # is still in, and the first one always is.
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), float("-inf"))
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
