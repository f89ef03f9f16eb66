"""The generation engine: many answers at once, each begun and ended at any step.

    engine = Engine(model, tokenizer)
    request = engine.add(prompt, Sampling(temperature=0.7))[0]
    while not request.finished:
        engine.step()
        print(request.new_text(), end="")

A step reads parts of new prompts and computes one token for each answer that runs (continuous
batching, Orca, OSDI 2022). Evaluation, chat and server all generate here.

Shapes: V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.schema import LARGEST_SEED, UserError
from dataset.tokenizer import RustBPETokenizer
from inference.request import Request
from inference.sampling import Sampling, check_ids, choose, scores_not_finite
from inference.scheduler import Scheduler, Slot
from model.decoder import Chunk, Decoder, bucket_of
from model.model_minillm import MiniLLM

MAX_BATCH_SIZE = 32
READ_TOKENS = 512
"""Tokens of prompts that a step reads if nobody waits for the next token of an answer."""
READ_TOKENS_BESIDE = 128
"""Tokens of prompts that a step reads beside answers that run. More would let these wait long."""


@dataclass(frozen=True)
class Answer:
    """What the model said, and whether it ended by itself."""

    text: str
    ended: bool
    num_tokens: int
    written: str = ""
    """All that it wrote, if a thought was taken out of `text`."""


def end_ids(tokenizer: RustBPETokenizer) -> frozenset[int]:
    """Tokens that end an answer or a text."""
    return frozenset({tokenizer.assistant_end_id, tokenizer.end_of_text_id})


class Engine:
    """Generates for many requests at once. It belongs to one thread."""

    def __init__(self, model: MiniLLM, tokenizer: RustBPETokenizer, *, max_batch_size: int = MAX_BATCH_SIZE) -> None:
        """Args: model: float or quantized; a copy of its matrices is made (model/decoder.py).
        max_batch_size: answers that are made at once; others wait."""
        self.decoder, self.tokenizer = Decoder(model), tokenizer
        cache = self.decoder.cache
        self.scheduler = Scheduler(max_batch_size, copy=cache.copy, swap=cache.swap)
        self._end_ids = end_ids(tokenizer)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return self.scheduler.has_work

    def add(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> list[Request]:
        """Queue a prompt. It is read once for all n answers, whose seeds are seed, seed + 1, ...

        Raises: UserError for an empty prompt, or for ids that the vocabulary does not have.
        """
        vocab_size = self.decoder.config.vocab_size
        if not prompt or not all(0 <= token < vocab_size for token in prompt):
            raise UserError(
                f"prompt of {len(prompt)} tokens: it must have at least one, each from 0 to {vocab_size - 1}.",
                "提示词为空，或有词表之外的编号",
            )
        check_ids(sampling, vocab_size)
        seeds = [(sampling.seed + number) % (LARGEST_SEED + 1) for number in range(n)]
        requests = [Request(self.tokenizer, prompt, replace(sampling, seed=seed), self._end_ids) for seed in seeds]
        requests[0].followers = requests[1:]
        self.scheduler.waiting.append(requests[0])
        return requests

    def abort(self, request: Request) -> None:
        """End a request, whether it waits or runs. Its slot is free at once."""
        if request.finished:
            return
        request.finish("abort")
        waiting = self.scheduler.waiting
        if slot := self.scheduler.slot_of(request):
            self.scheduler.release(slot)
        elif request in waiting:
            waiting.remove(request)
        # Its other samples find another reader; or it is one of them, and is passed over later.
        waiting.extendleft(other for other in reversed(request.followers) if not other.finished)
        request.followers = []

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Read parts of new prompts, and compute the next token of each answer that runs.

        Returns: the requests that got a token, or ended.
        """
        scheduler = self.scheduler
        decoding = scheduler.decoding()
        touched = self._advance(decoding, self._decode(decoding)) if decoding else []
        self._admit()
        chunks = self._chunks(READ_TOKENS_BESIDE if decoding else READ_TOKENS)
        if chunks:
            touched += self._read(chunks)
        return touched

    def _decode(self, slots: Sequence[Slot]) -> Tensor:
        """The logits of the next token of each slot, (slots, V)."""
        scheduler = self.scheduler
        self.decoder.reserve(bucket_of(len(slots)), max(len(slot.tokens) for slot in slots) + 1)
        rows = scheduler.gather()
        ids, lengths = [0] * rows, [-1] * rows
        for slot in slots:
            assert slot.request is not None
            ids[slot.number], lengths[slot.number] = slot.request.ids[-1], len(slot.tokens)
        logits = self.decoder.step(ids, lengths)
        for slot in slots:
            slot.tokens.append(ids[slot.number])
        return logits[[slot.number for slot in slots]]

    def _admit(self) -> None:
        """Give free slots to requests that wait."""
        scheduler = self.scheduler
        while scheduler.waiting and scheduler.has_room:
            self._reserve_slot()
            scheduler.admit()

    def _reserve_slot(self) -> None:
        """Room in the cache for one more slot, where the scheduler may take one."""
        self.decoder.reserve(bucket_of(min(len(self.scheduler.slots) + 1, self.scheduler.max_slots)), 0)

    def _chunks(self, room: int) -> list[Chunk]:
        """The parts of prompts that this step reads: as many as fit, at least one, the oldest
        request first."""
        chunks: list[Chunk] = []
        for slot in self.scheduler.reading():
            start = slot.num_read
            while not chunks or not chunks[-1].is_last or chunks[-1].slot != slot.number:
                chunk = slot.next_chunk(start)
                room -= len(chunk.ids)
                if chunks and room < 0:
                    return chunks
                chunks.append(chunk)
                start = chunk.end
        return chunks

    def _read(self, chunks: Sequence[Chunk]) -> list[Request]:
        """Read parts of prompts; those that are complete get their first token."""
        scheduler = self.scheduler
        self.decoder.reserve(0, max(chunk.end for chunk in chunks))
        logits = self.decoder.read(chunks)
        slots: list[Slot] = []
        rows: list[int] = []
        for chunk in chunks:
            slot = scheduler.slots[chunk.slot]
            slot.read(chunk)
            if not chunk.is_last:
                continue
            row = len(set(rows))
            samples = [slot, *self._join(slot)]
            slots += samples
            rows += [row] * len(samples)
        return self._advance(slots, logits[rows]) if slots else []

    def _join(self, first: Slot) -> list[Slot]:
        """Slots for the other samples of a prompt that was read just now.

        Those that find no free slot wait; they will read it again, or what is left of it.
        """
        assert first.request is not None
        followers = [other for other in first.request.followers if not other.finished]
        first.request.followers = []
        slots = []
        for number, follower in enumerate(followers):
            if not self.scheduler.has_room:
                self.scheduler.waiting.extendleft(reversed(followers[number:]))
                break
            self._reserve_slot()
            slots.append(self.scheduler.join(follower, first))
        return slots

    def _advance(self, slots: Sequence[Slot], logits: Tensor) -> list[Request]:
        """Choose the next token of each slot by its logits (slots, V). Finished ones leave."""
        requests = [slot.request for slot in slots if slot.request is not None]
        choices = choose(logits, [request.row for request in requests])
        for slot, request, choice in zip(slots, requests, choices, strict=True):
            if choice.id is None:
                request.finish("error")
                self.decoder.cache.clear(slot.number)
                self.scheduler.release(slot, keep=False)
                continue
            request.append(choice.id, choice.logprob)
            if request.finished:
                self.scheduler.release(slot)
        return requests

    def run(self, on_answer: Callable[[], object] | None = None) -> None:
        """Step until all requests are finished. Args: on_answer: called when one of them is.

        Raises: UserError when the model's scores are NaN or infinite.
        """
        while self.has_work:
            for request in self.step():
                if request.finish_reason == "error":
                    raise scores_not_finite()
                if request.finished and on_answer:
                    on_answer()

    def answers(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_answer: Callable[[], object] | None = None
    ) -> list[Answer]:
        """Whole answers, in the order of the prompts. Args, raises: as in `run`."""
        requests = [self.add(prompt, sampling)[0] for prompt in prompts]
        self.run(on_answer)
        return [Answer(one.text, one.finish_reason == "stop", len(one.ids)) for one in requests]
