"""A batch of prompts -> answers: many prompts of different lengths side by side, with a cache.

Shapes: B prompts, T tokens, S tokens attended to, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dataset.tokenizer import RustBPETokenizer
from inference.sampling import Row, Sampling, choose, scores_not_finite
from model.kv_cache import KeyValueCache
from model.model_minillm import MiniLLM

PREFILL_TOKENS = 8192
"""Tokens of all prompts together that are read at once. More would be no faster, and would take
memory for their masks in every layer."""


@dataclass(frozen=True)
class Answer:
    """What the model said, and whether it ended by itself."""

    text: str
    ended: bool
    num_tokens: int


def answer(
    model: MiniLLM, tokenizer: RustBPETokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[Answer]:
    """What the model says to each rendered prompt.

    `eval_model.py --prompt` and every evaluation come through here.
    """
    stops = stop_ids(tokenizer)
    columns = list(generate(model, prompts, stops, sampling))
    answers = []
    for row in torch.stack(columns, dim=1).tolist():
        length = next((place for place, token in enumerate(row) if token in stops), len(row))
        answers.append(Answer(tokenizer.decode(row[:length]), length < len(row), length))
    return answers


def stop_ids(tokenizer: RustBPETokenizer) -> set[int]:
    """Tokens that end an answer or a text."""
    return {tokenizer.assistant_end_id, tokenizer.end_of_text_id}


@torch.inference_mode()
def generate(
    model: MiniLLM, prompts: Sequence[Sequence[int]], stop_ids: set[int], sampling: Sampling
) -> Iterator[Tensor]:
    """Yield the next token of every prompt, (B,) on the CPU.

    It ends when all prompts have stopped or the limit is reached. Until then a prompt that has
    stopped yields its stop token again and again.
    Raises: UserError if the model's scores are NaN or infinite.
    """
    # Prompts are padded on the left, so that all of them end in the same column and the next token
    # of each goes into the next column. No token looks at the padding.
    device, longest = model.device, max(len(prompt) for prompt in prompts)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)  # (B,)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)  # (B, T)
    capacity = longest + sampling.max_new_tokens
    cache = KeyValueCache.empty(model.config, len(prompts), capacity, like=model.model.norm.weight)
    places = torch.arange(capacity, device=device)
    real = places[None] >= padding[:, None]  # (B, capacity)
    rows = [Row(sampling, prompt) for prompt in prompts]
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
        for row, choice in zip(rows, choose(model.logits(hidden[:, -1]), rows), strict=True):
            if choice.id is None:
                raise scores_not_finite()
            row.ids.append(choice.id)
        token = torch.where(stopped, token, torch.tensor([row.ids[-1] for row in rows]))
        stopped = stopped | torch.isin(token, stops)
        yield token
        if bool(stopped.all()):
            return
        ids = token[:, None].to(device)
