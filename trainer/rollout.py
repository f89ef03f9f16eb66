"""Answers that the policy samples to prompts, with all that learning from them needs.

They come from the generation engine (inference/engine.py), which reads a prompt once for all of its
answers. The ids that it sampled are trained on as they are: text that is tokenized again may give
other ids, whose probability nobody has sampled.

Shapes: P prompts, G answers to each, B = P G answers, prompt after prompt; T tokens of prompt and
answer; L tokens of the longest answer, the end token among them; N tokens of all answers, answer
after answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dataset.prompts import Prompt
from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from inference.engine import Engine
from inference.request import Request
from inference.sampling import Sampling
from model.likelihood import target_nats
from model.model_minillm import MiniLLM

AT_ONCE = 256
"""Answers that are made at once. A step of a small model takes hardly longer for more rows."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer as a reward sees it."""

    prompt: str
    """What the user said last."""
    answer: str
    """The text, without a thought."""
    record: Mapping[str, Any]
    """The prompt's record, its gold answer included."""
    ids: tuple[int, ...]
    """Prompt, answer and end token."""
    num_tokens: int
    """Tokens of the answer, with its end token."""
    ended: bool
    """Whether the model ended it itself. If not, it was cut off at the limit."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """Answers as tensors. Rows are filled up at the end, where no token looks."""

    input_ids: Tensor
    """(B, T): prompt, answer, end token."""
    labels: Tensor
    """(B, T): the next token where that belongs to the answer or ends it, else IGNORE."""
    logprobs: Tensor
    """(B, L): of each of these tokens, by the distribution that it was drawn from, in nats."""
    lengths: Tensor
    """(B,): tokens of the answer. They are the first places of L."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def mask(self) -> Tensor:
        """(B, L) boolean: 1 up to and with the end token."""
        return torch.arange(self.logprobs.shape[1], device=self.lengths.device) < self.lengths[:, None]

    @property
    def target_places(self) -> Tensor:
        """(N,): the place b * T + t from which each token was predicted."""
        return (self.labels.flatten() != IGNORE).nonzero()[:, 0]

    @property
    def row_of_token(self) -> Tensor:
        """(N,): the answer that each token belongs to."""
        return torch.arange(len(self), device=self.lengths.device).repeat_interleave(self.lengths)

    def select(self, rows: Tensor) -> "Rollout":
        """Some of the answers, without columns that they don't need. Args: rows (n,): numbers."""
        lengths, labels = self.lengths[rows], self.labels[rows]
        # The last target is predicted at the place before the last token of a row.
        width = int((labels != IGNORE).any(dim=0).nonzero().max()) + 1 if len(rows) else 0
        longest = int(lengths.max()) if len(rows) else 0
        return Rollout(self.input_ids[rows, :width], labels[:, :width], self.logprobs[rows, :longest], lengths)


def generate(
    model: MiniLLM,
    tokenizer: RustBPETokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seeds: Sequence[int],
    n: int,
) -> list[list[Request]]:
    """n answers to each prompt.

    The engine copies the weights as they are now, in the layout that it computes fastest with. That
    takes milliseconds, so each call makes a new engine; nothing goes over the disk.
    Args: seeds: of the first answer to each prompt. The others have the numbers after it.
    Raises: UserError when the model's scores are NaN or infinite.
    """
    engine = Engine(model, tokenizer, max_batch_size=min(AT_ONCE, n * len(prompts)))
    # Room for all answers from the start: a cache that grows is copied.
    longest = max(len(prompt.ids) for prompt in prompts) + sampling.max_new_tokens
    engine.decoder.reserve(min(AT_ONCE, n * len(prompts)), longest)
    requests = [
        engine.add(prompt.ids, replace(sampling, seed=seed), n) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    engine.run()
    return requests


def rollout_of(requests: Sequence[Request], device: torch.device) -> Rollout:
    """The answers as tensors. Args: requests: of `generate`, with log-probabilities."""
    answers = [answer_ids(request) for request in requests]
    rows = [len(request.prompt) + len(answer) for request, answer in zip(requests, answers, strict=True)]
    lengths = torch.tensor([len(answer) for answer in answers])
    # The last token of a row predicts nothing that counts, so it need not be read.
    input_ids = torch.zeros(len(rows), max(rows) - 1, dtype=torch.int64)
    labels = torch.full_like(input_ids, IGNORE)
    logprobs = torch.zeros(len(rows), int(lengths.max()))
    for row, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        whole, start = torch.tensor([*request.prompt, *answer]), len(request.prompt)
        input_ids[row, : len(whole) - 1] = whole[:-1]
        labels[row, start - 1 : len(whole) - 1] = whole[start:]
        drawn = [one.sampled_logprob for one in (*request.logprobs, request.end_logprob) if one is not None]
        logprobs[row, : len(drawn)] = torch.tensor(drawn)
    return Rollout(*(tensor.to(device) for tensor in (input_ids, labels, logprobs, lengths)))


def answer_ids(request: Request) -> list[int]:
    """The tokens of an answer, with the one that ended it."""
    return request.ids + ([request.end_id] if request.end_id is not None else [])


def sample_of(request: Request, prompt: Prompt, tokenizer: RustBPETokenizer) -> Sample:
    """An answer as a reward sees it."""
    answer = answer_ids(request)
    return Sample(
        prompt=prompt.text,
        answer=tokenizer.chat_format.answer_of(request.text),
        record=prompt.record,
        ids=(*request.prompt, *answer),
        num_tokens=len(answer),
        ended=request.end_id is not None,
    )


def answer_logps(model: MiniLLM, rollout: Rollout, temperature: float) -> Tensor:
    """Log-probability of each token of the answers, by the distribution that is sampled from.

    Logits over the temperature are those of hidden states over the temperature.
    Returns: (N,) float32 in nats, with gradient where there are any.
    """
    hidden, _ = model.hidden_states(rollout.input_ids)  # (B, T, C)
    return -target_nats(hidden / temperature, model.output_weight, rollout.labels, rollout.target_places)
