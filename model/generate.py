"""Logits -> tokens: sampling with a key/value cache, one prompt or many of different lengths side by side.

Shapes: B prompts, T tokens, S tokens attended to, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.schema import LARGEST_COUNT, UserError, check_seed
from model.model_minillm import KeyValueCache, MiniLLM

LOWEST_TEMPERATURE = 1e-4
"""Below it logits divided by it overflow, and all it would give is the likeliest token."""

PREFILL_TOKENS = 8192
"""Tokens of all prompts together that are read at one time: memory for the masks and layers of more is not needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0: greedy, the likeliest token."""
    top_k: int = 0
    """Sample among the k likeliest; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest whose probabilities reach p (nucleus sampling, arXiv:1904.09751)."""
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

    Chance is drawn on the CPU, from one generator for all kinds of device: sorting and drawing on MPS have limits that
    change with its releases, and there is one row of logits a prompt to bring over.
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
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p  # the first is never beyond
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), float("-inf"))
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


@torch.inference_mode()
def generate(
    model: MiniLLM, prompts: Sequence[Sequence[int]], stop_ids: set[int], sampling: Sampling
) -> Iterator[Tensor]:
    """Yield the next token of every prompt, (B,) on the CPU, until all have stopped or the limit is reached.

    A prompt that has stopped goes on yielding its stop token. Prompts are padded on the left, and no token looks at
    the padding.
    """
    device, longest = model.output_weight.device, max(len(prompt) for prompt in prompts)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)  # (B,)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)  # (B, T)
    capacity = longest + sampling.max_new_tokens
    cache = KeyValueCache.empty(model.config, len(prompts), capacity, like=model.output_weight)
    places = torch.arange(capacity, device=device)
    real = places[None] >= padding[:, None]  # (B, capacity)
    generator = torch.Generator().manual_seed(sampling.seed)
    stops = torch.tensor(sorted(stop_ids))
    stopped = torch.zeros(len(prompts), dtype=torch.bool)
    token = torch.zeros(len(prompts), dtype=torch.long)
    for _ in range(sampling.max_new_tokens):
        for part in ids.split(max(1, PREFILL_TOKENS // len(prompts)), dim=1):
            start, end = cache.length, cache.length + part.shape[1]
            positions = (places[start:end][None] - padding[:, None]).clamp(min=0)  # (B, T)
            mask = real[:, None, :end] & (places[None, None, :end] <= places[None, start:end, None])  # (B, T, S)
            mask = mask | (places[None, None, :end] == places[None, start:end, None])  # padding sees itself: no NaN
            hidden, _ = model.hidden_states(part, positions=positions, mask=mask[:, None], cache=cache)
        chosen = choose(F.linear(hidden[:, -1], model.output_weight.to(hidden.dtype)), sampling, generator)
        token = torch.where(stopped, token, chosen)
        stopped = stopped | torch.isin(token, stops)
        yield token
        if bool(stopped.all()):
            return
        ids = token[:, None].to(device)


class Decoder(Protocol):
    """What generation needs of `dataset/tokenizer.py`."""

    @property
    def assistant_end_id(self) -> int:
        """Token that ends the assistant's turn."""
        ...

    @property
    def end_of_text_id(self) -> int:
        """Token that ends a document."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        ...


def stop_ids(tokenizer: Decoder) -> set[int]:
    """Tokens that end an answer or a text."""
    return {tokenizer.assistant_end_id, tokenizer.end_of_text_id}


@dataclass(frozen=True)
class Answer:
    """What the model said, and whether it ended by itself."""

    text: str
    ended: bool
    num_tokens: int


def answer(model: MiniLLM, tokenizer: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Answer]:
    """What the model says to each rendered prompt. `eval_model.py --prompt` and every evaluation come through here."""
    stops = stop_ids(tokenizer)
    columns = list(generate(model, prompts, stops, sampling))
    answers = []
    for row in torch.stack(columns, dim=1).tolist():
        length = next((place for place, token in enumerate(row) if token in stops), len(row))
        answers.append(Answer(tokenizer.decode(row[:length]), length < len(row), length))
    return answers
