"""Many requests at once through the engine: speed over one alone, order, memory.

Tokens a second are new tokens over CPU seconds of everything, the reading of prompts included.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks import proc
from dataset.tokenizer import RustBPETokenizer
from inference.engine import Engine
from inference.request import Request
from inference.sampling import Sampling
from model.model_minillm import MiniLLM

REQUESTS = 32
LONGEST_PROMPT = 256
LONGEST_ANSWER = 256
TINY_REQUESTS = 10_000
REPORTS = 10
"""How often memory is noted meanwhile."""


@dataclass(frozen=True)
class Ask:
    """A request that is to be made."""

    prompt: list[int]
    new_tokens: int

    def request(self, tokenizer: RustBPETokenizer) -> Request:
        """One that no token ends, so that its length is known."""
        return Request(tokenizer, self.prompt, Sampling(max_new_tokens=self.new_tokens), frozenset())


def mixed(vocab_size: int, count: int = REQUESTS) -> list[Ask]:
    """Requests of mixed length: prompts and answers of an eighth of the longest, to the longest."""
    draw = random.Random(0)
    return [
        Ask(
            draw.choices(range(vocab_size), k=draw.randint(LONGEST_PROMPT // 8, LONGEST_PROMPT)),
            draw.randint(LONGEST_ANSWER // 8, LONGEST_ANSWER),
        )
        for _ in range(count)
    ]


@torch.no_grad()
def seconds_of(model: MiniLLM, tokenizer: RustBPETokenizer, asks: Sequence[Ask], *, at_once: bool) -> float:
    """CPU seconds of these requests, all at once or one after the other.

    The engine is new, so that no prompt is in its cache.
    """
    engine = Engine(model, tokenizer)
    warm(engine, tokenizer, len(asks) if at_once else 1)
    start = time.process_time()
    for group in [asks] if at_once else [[ask] for ask in asks]:
        engine.scheduler.waiting.extend(ask.request(tokenizer) for ask in group)
        engine.run()
    return time.process_time() - start


def warm(engine: Engine, tokenizer: RustBPETokenizer, rows: int) -> None:
    """Matrices are packed, memory is taken."""
    engine.scheduler.waiting.extend(Ask([0], 2).request(tokenizer) for _ in range(rows))
    engine.run()


@torch.no_grad()
def short_is_first(model: MiniLLM, tokenizer: RustBPETokenizer) -> tuple[int, int]:
    """A request for one token comes last, after 31 long ones.

    Returns: after how many steps it is done; after how many the first of the others is.
    """
    engine = Engine(model, tokenizer)
    prompt = mixed(engine.decoder.config.vocab_size, 1)[0].prompt
    long = [Ask([*prompt[:-1], number], LONGEST_ANSWER).request(tokenizer) for number in range(REQUESTS - 1)]
    short = Ask([0], 1).request(tokenizer)
    engine.scheduler.waiting.extend([*long, short])
    steps, short_at, long_at = 0, 0, 0
    while engine.has_work and not (short_at and long_at):
        engine.step()
        steps += 1
        short_at = short_at or steps * short.finished
        long_at = long_at or steps * any(one.finished for one in long)
    return short_at, long_at


@torch.no_grad()
def memory_over_time(model: MiniLLM, tokenizer: RustBPETokenizer, count: int = TINY_REQUESTS) -> Iterator[int]:
    """Bytes of this process that are no file, after each tenth of so many tiny requests."""
    engine, draw = Engine(model, tokenizer), random.Random(0)
    ids = range(engine.decoder.config.vocab_size)
    for _ in range(REPORTS):
        for _ in range(count // REPORTS):
            engine.scheduler.waiting.append(Ask(draw.choices(ids, k=draw.randint(1, 8)), 2).request(tokenizer))
            if len(engine.scheduler.waiting) >= REQUESTS:
                engine.run()
        engine.run()
        yield proc.memory("status", "RssAnon")
