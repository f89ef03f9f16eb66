"""What scores the continuations of a prompt: the model, random weights, simple rules."""

import copy
import math
from collections.abc import Sequence
from typing import Protocol

import torch

from dataset.tokenizer import RustBPETokenizer
from evaluation.benchmarks.prompts import MARK, Prompt
from evaluation.benchmarks.trees import Reading, TokenSequence, continuation_nats
from model.model_minillm import MiniLLM


class Scorer(Protocol):
    """Scores of continuations."""

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[str]) -> list[list[float]]:
        """For each prompt the log-probability of each continuation, in nats.

        Args: groups: of each prompt; those of a group begin alike.
        """


class ModelScorer:
    """A model with its tokenizer."""

    def __init__(
        self, model: MiniLLM, tokenizer: RustBPETokenizer, *, chat: bool = False, label: str = "model"
    ) -> None:
        """Args: chat: the context is what a user says, and the continuation answers it."""
        self.model, self.tokenizer, self.chat, self.label = model, tokenizer, chat, label
        self.reading = Reading()

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[str]) -> list[list[float]]:
        """See `Scorer`."""
        questions = self.sequences(prompts)
        return continuation_nats(self.model, questions, groups, label=self.label, reading=self.reading)

    def sequences(self, prompts: Sequence[Prompt]) -> list[list[TokenSequence]]:
        """The ids of context and continuation, for each continuation.

        Both are encoded as one text, as in training. What the context alone has fewer of is the
        continuation; lm-evaluation-harness counts in the same way.
        """
        if self.chat:
            # The mark after 答案 is the end of what the user says, not the beginning of an answer.
            marks = [MARK if prompt.continuations != prompt.lengths else "" for prompt in prompts]
            said = [prompt.context + mark for prompt, mark in zip(prompts, marks, strict=True)]
            asked = [self.tokenizer.render_for_completion([{"role": "user", "content": text}]) for text in said]
            answers = self.tokenizer.encode_batch([text for prompt in prompts for text in prompt.lengths], 1)
            rest = iter(answers)
            pairs = [
                [(ids, next(rest)) for _ in prompt.continuations] for prompt, ids in zip(prompts, asked, strict=True)
            ]
            return [[TokenSequence((*ids, *answer), len(answer)) for ids, answer in pair] for pair in pairs]
        bos = self.tokenizer.get_bos_token_id()
        contexts = self.tokenizer.encode_batch([prompt.context for prompt in prompts], 1)
        wholes = iter(
            self.tokenizer.encode_batch(
                [prompt.context + text for prompt in prompts for text in prompt.continuations], 1
            )
        )
        return [
            [
                TokenSequence((bos, *whole), max(1, len(whole) - len(ids)))
                for whole in (next(wholes) for _ in prompt.continuations)
            ]
            for prompt, ids in zip(prompts, contexts, strict=True)
        ]


def longest(prompts: Sequence[Prompt], groups: Sequence[str]) -> list[list[float]]:
    """The longest continuation, in characters."""
    return [[float(len(text)) for text in prompt.lengths] for prompt in prompts]


def shortest(prompts: Sequence[Prompt], groups: Sequence[str]) -> list[list[float]]:
    """The shortest continuation, in characters."""
    return [[-float(len(text)) for text in prompt.lengths] for prompt in prompts]


def random_weights(model: MiniLLM, seed: int) -> MiniLLM:
    """A model of the same shape with random weights in every matrix.

    A new network of ours has zeros in its output projections, so its blocks would do nothing. Here
    they are drawn as the other matrices are.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        fresh = MiniLLM(copy.deepcopy(model.config))
        bound = math.sqrt(3.0 / fresh.config.hidden_size)
        for name, parameter in fresh.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.uniform_(-bound, bound)
    return fresh.to(model.device).eval()
