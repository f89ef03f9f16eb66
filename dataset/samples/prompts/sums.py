"""Sums and differences of numbers to 299, asked in several wordings: prompts whose answer is right
or wrong.

The bundled arithmetic stops at 100, so a model of the pipeline has not learnt these. The unordered
pair of operands is the key: no pair stands on two sides. There are four sides: `lessons` for a
first training by SFT, prompts to learn from by reward, prompts to validate on, and test prompts.
"""

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from dataset.samples.arithmetic.problems import LIMIT, Pair, Problem

LARGEST = 299
"""The largest operand. At least one operand is above 100, where the bundled arithmetic ends."""
NUM_PROMPTS = {"train": 8_000, "validation": 500, "test": 1_000}
"""Prompts of each side, each with a pair of its own."""
NUM_LESSONS = 12_000
"""Records for a first training by SFT, of other pairs."""
WORDINGS = (
    "{e}等于多少？",
    "{e}等于几？",
    "{e}=",
    "{e}=?",
    "{e}是多少？",
    "{e}得多少？",
    "计算：{e}",
    "算一下{e}",
    "请问{e}等于多少？",
    "帮我算算{e}是多少？",
)
"""`{e}` is the expression. All sides share them: what is new is the pair."""


@cache
def pairs() -> dict[str, tuple[Pair, ...]]:
    """Side -> its pairs of operands, the smaller one first."""
    known = [(a, b) for a in range(LARGEST + 1) for b in range(max(a, LIMIT + 1), LARGEST + 1)]
    random.Random(1907).shuffle(known)
    found, start = {}, 0
    for side, count in [*NUM_PROMPTS.items(), ("lessons", NUM_LESSONS)]:
        found[side] = tuple(known[start : start + count])
        start += count
    return found


def _record(pair: Pair, rng: random.Random) -> dict[str, Any]:
    """A sum in either order, or a difference that is not below 0, in one of the wordings."""
    small, large = pair
    first, second = rng.sample(pair, 2)
    problem = Problem(large, "-", small) if rng.random() < 0.5 else Problem(first, "+", second)
    question = rng.choice(WORDINGS).format(e=problem.expression)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{problem.equation}。"}]
    return {"conversations": messages, "category": "math", "kind": "sums", "cluster": f"{small} {large}"}


def records() -> Iterator[dict[str, Any]]:
    """All prompts. Those of the held-out sides say theirs in `split`."""
    rng = random.Random(1908)
    for side in NUM_PROMPTS:
        for pair in pairs()[side]:
            record = _record(pair, rng)
            yield record if side == "train" else record | {"split": side}


def lessons() -> Iterator[dict[str, Any]]:
    """Conversations for a first training by SFT. No prompt has one of their pairs."""
    rng = random.Random(1909)
    for pair in pairs()["lessons"]:
        yield _record(pair, rng)
