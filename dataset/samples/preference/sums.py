"""Pairs about sums, for a reward model: in each the rejected answer is wrong, in one of two ways.

- `wrong_sum`: the equation is that of the question, its result is wrong. Who knows arithmetic sees
  that without the question.
- `other_sum`: the equation is right, but one number is not that of the question. Without the
  question nothing is wrong.

Questions and right answers come from the chat samples (`prompts.py`), held-out ones from held-out
problems. Both answers are about equally long.
"""

import random
from collections.abc import Iterator
from typing import Any

from dataset.samples.preference.answers import Others, wrong_sum
from dataset.samples.preference.pairs import pair_record
from dataset.samples.preference.prompts import SIDES, Prompt, Side, equation, prompts

KINDS = ("wrong_sum", "other_sum")
SOURCES = ("sums", "stories")
NUM_TRAINING = 9000
"""Pairs for training, half of each kind. Held out is one pair of each kind for each problem."""
CHANGES = (1, 2, 3, 10)
"""By how much a number of another problem is larger or smaller."""


def other_sum(prompt: Prompt, rng: random.Random) -> str | None:
    """The right answer to the same question with one number changed; None if there is none."""
    found = equation(prompt.answer)
    if found is None or found[1] not in "+-":
        return None
    a, sign, b, result = found
    steps = [step * direction for step in CHANGES for direction in (1, -1)]
    rng.shuffle(steps)
    for step in steps:
        c, d = (a + step, b) if rng.random() < 0.5 else (a, b + step)
        other = c + d if sign == "+" else c - d
        # Of the same size as the right answer, or length would tell.
        if min(c, d, other) >= 0 and len(f"{c}{d}{other}") == len(f"{a}{b}{result}"):
            _, _, tail = prompt.answer.partition(f"={result}")
            return f"{c}{sign}{d}={other}{tail.replace(str(result), str(other))}"
    return None


def _rejected(kind: str, prompt: Prompt, others: Others, rng: random.Random) -> str | None:
    """A wrong answer of a kind, about as long as the right one; None if there is none."""
    if kind == "other_sum":
        return other_sum(prompt, rng)
    drafts = wrong_sum(prompt, others, rng)
    return min(drafts, key=lambda text: abs(len(text) - len(prompt.answer)), default=None)


def _pairs(side: Side) -> Iterator[dict[str, Any]]:
    """The pairs of one side."""
    rng, others = random.Random(f"sums {side}"), Others(side)
    found = [prompt for source in SOURCES for prompt in prompts(side)[source]]
    if side == "train":
        found = rng.sample(found, min(len(found), NUM_TRAINING))
    for number, prompt in enumerate(found):
        for kind in KINDS if side != "train" else (KINDS[number % len(KINDS)],):
            bad = _rejected(kind, prompt, others, rng)
            if bad is not None and bad not in prompt.right:
                yield pair_record(prompt, bad, kind, side)


def records() -> Iterator[dict[str, Any]]:
    """Preference records with `kind` and `cluster`. Held-out ones have `split`."""
    for side in SIDES:
        yield from _pairs(side)
