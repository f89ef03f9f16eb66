"""On-policy distillation: the student learns from its teacher on answers that it has made itself.

A student that only reads good answers never learns what to do after a mistake of its own (Agarwal
et al. 2024, arXiv:2306.13649). So a share of each step's rows is replaced: their conversations keep
the prompt of the last answer, and the student writes that answer anew.

When it samples: in every step, with the weights that the step starts from. So no sample is older
than the weights, and none need be saved: a resumed run makes the same ones again.

Shapes: B rows, L tokens of a row, N targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from configs.schema import LARGEST_SEED, TrainConfig
from dataset.lm_dataset import Batch, target_places
from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from inference.engine import Engine
from inference.sampling import Sampling, scores_not_finite
from model.model_minillm import MiniLLM
from trainer.loop import BatchStream, Objective, Rows, StepBatches
from trainer.objectives import SAMPLED
from trainer.runtime import Runtime


@dataclass(frozen=True)
class Sampled:
    """A conversation whose last answer the student has written."""

    prompt: list[int]
    answer: list[int]
    """With its end token, if it ended by itself."""


def prompts_of(batch: Batch) -> list[list[int]]:
    """The prompt of the last answer of each conversation in some packed rows, in their order.

    A prompt reaches up to the token after which the answer begins.
    """
    prompts = []
    for ids, labels, documents in zip(
        *(batch[name].tolist() for name in ("input_ids", "labels", "document_ids")), strict=True
    ):
        for document in sorted(set(documents) - {-1}):
            start, end = documents.index(document), len(documents) - documents[::-1].index(document)
            targets = [place for place in range(start, end) if labels[place] != IGNORE]
            if not targets:
                continue
            first = targets[-1]
            while first > start and labels[first - 1] != IGNORE:
                first -= 1
            prompts.append(ids[start : first + 1])
    return prompts


def packed(samples: Sequence[Sampled], row_tokens: int, pad_id: int) -> Batch:
    """Sampled conversations in rows, in their order; one that does not fit begins a new row.

    Only what the student wrote are targets.
    Args: row_tokens: L. Returns: as the batches of SFT (dataset/lm_dataset.py), with SAMPLED.
    """
    rows: list[list[Sampled]] = []
    room = 0
    for sample in samples:
        length = len(sample.prompt) + len(sample.answer)
        if length > room:
            rows.append([])
            room = row_tokens
        rows[-1].append(sample)
        room -= length
    input_ids = torch.full((len(rows), row_tokens), pad_id)
    labels = torch.full_like(input_ids, IGNORE)
    document_ids = torch.full_like(input_ids, -1)
    for row, members in enumerate(rows):
        start = 0
        for number, sample in enumerate(members):
            ids = torch.tensor([*sample.prompt, *sample.answer])
            end = start + len(ids)
            input_ids[row, start:end], document_ids[row, start:end] = ids, number
            labels[row, start + len(sample.prompt) - 1 : end - 1] = ids[len(sample.prompt) :]
            start = end
    return {
        "input_ids": input_ids,
        "labels": labels,
        "document_ids": document_ids,
        "target_places": target_places(labels),
        SAMPLED: torch.ones(1, dtype=torch.bool),
    }


class OnPolicyStream(BatchStream):
    """The micro-batches of each step, where a share of the rows holds the student's own answers."""

    def __init__(
        self,
        rows: Rows,
        objective: Objective,
        config: TrainConfig,
        runtime: Runtime,
        *,
        student: MiniLLM,
        tokenizer: RustBPETokenizer,
        share: float,
        row_tokens: int,
        max_gen_len: int,
    ) -> None:
        """Args: share: of the rows of a step. row_tokens: L. max_gen_len: tokens of an answer at
        most; one that reaches the limit has no end token."""
        super().__init__(rows, objective, config, runtime)
        self.student, self.tokenizer, self.share = student, tokenizer, share
        self.row_tokens, self.max_gen_len = row_tokens, max_gen_len

    def read(self, step: int) -> StepBatches:
        """The micro-batches of this process in a step: first those of the data, then those that the
        student writes now."""
        mine = self.row_numbers(step)[self.runtime.rank :: self.runtime.world_size]
        count = round(self.share * len(mine))
        sampled, kept = mine[:count], mine[count:]  # the order of the rows is random already
        size = self.config.batch_size
        micro = [self.rows.batch(kept[start : start + size]) for start in range(0, len(kept), size)]
        if count:
            whole = packed(self.sample(prompts_of(self.rows.batch(sampled)), step), self.row_tokens, self._pad_id)
            micro += [rows_of(whole, start, start + size) for start in range(0, len(whole["input_ids"]), size)]
        return self.step_batches(micro)

    def steps(self, first: int, end: int) -> Iterator[StepBatches]:
        """The batches of each step, on the device.

        Nothing is read ahead: a step's answers need the weights that the step before has left.
        """
        for step in range(first, end):
            yield self.on_device(self.read(step))

    def sample(self, prompts: Sequence[list[int]], step: int) -> list[Sampled]:
        """The student's answers to some prompts, at temperature 1 from its whole distribution.

        Each prompt of a step has a seed of its own, so an answer does not depend on the others.
        Raises: UserError when the student's scores are NaN or infinite.
        """
        draw = np.random.default_rng([self.config.seed, step, self.runtime.rank])
        seeds = draw.integers(0, LARGEST_SEED, len(prompts), endpoint=True).tolist()
        engine = Engine(self.student, self.tokenizer)  # a copy of the matrices as they are now
        requests = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            room = min(self.max_gen_len, self.row_tokens - len(prompt))
            sampling = Sampling(max_new_tokens=room, temperature=1.0, seed=seed)
            requests += engine.add(prompt, sampling)
        engine.run()
        if any(request.finish_reason == "error" for request in requests):
            raise scores_not_finite()
        end = self.tokenizer.assistant_end_id
        samples = []
        for request in requests:
            has_ended = request.finish_reason == "stop" and len(request.prompt) + len(request.ids) < self.row_tokens
            samples.append(Sampled(request.prompt, [*request.ids, end] if has_ended else request.ids))
        return samples

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.end_of_text_id


def rows_of(batch: Batch, start: int, end: int) -> Batch:
    """Some rows of a packed batch, with the places of their own targets."""
    part = {name: batch[name][start:end] for name in ("input_ids", "labels", "document_ids")}
    return part | {"target_places": target_places(part["labels"]), SAMPLED: batch[SAMPLED]}
