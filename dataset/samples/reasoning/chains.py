"""Problems of two and three steps, worked out a step at a time.

A step is a problem of the bundled arithmetic (a sum, a difference, a product, a quotient) that the
model can do before it learns to reason. No step uses numbers that the arithmetic holds out, so
training on chains teaches none of its held-out problems.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dataset.samples.arithmetic.problems import LIMIT, TABLE_LIMIT, TRAIN, Problem, is_foreign

SIGNS = {
    ("+", "+"): 3, ("+", "-"): 4, ("-", "+"): 4, ("-", "-"): 3, ("×", "+"): 3, ("×", "-"): 3, ("÷", "+"): 1, ("+", "×"): 1,
    ("-", "×"): 1,
    ("+", "+", "-"): 3, ("+", "-", "+"): 3, ("+", "-", "-"): 3, ("-", "+", "+"): 2, ("-", "+", "-"): 3, ("-", "-", "+"): 2,
    ("+", "+", "+"): 1, ("×", "+", "-"): 3, ("×", "-", "+"): 3, ("×", "-", "-"): 2, ("×", "+", "×"): 1,
}  # fmt: skip
"""Signs of a chain, by weight: as many of two steps as of three."""
LARGEST_SUMMAND = 50
"""The largest number that is added or taken away."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Numbers with signs between them, and the steps in which they are worked out."""

    numbers: tuple[int, ...]
    signs: tuple[str, ...]
    steps: tuple[Problem, ...]

    @property
    def result(self) -> int:
        """The result of the last step."""
        return self.steps[-1].result

    @property
    def expression(self) -> str:
        """Such as 12+7-5."""
        return str(self.numbers[0]) + "".join(
            f"{sign}{number}" for sign, number in zip(self.signs, self.numbers[1:], strict=True)
        )

    @property
    def thought(self) -> str:
        """A line for each step: 12+7=19。19-5=14。"""
        return "".join(f"{step.equation}。" for step in self.steps)

    @property
    def key(self) -> str:
        """Problems with the same numbers and signs, in any order, are on one side."""
        return f"chain {' '.join(map(str, sorted(self.numbers)))} {''.join(sorted(self.signs))}"

    @property
    def goes_in_order(self) -> bool:
        """Whether its steps go from left to right, so that it can be told as a story."""
        return not set(self.signs[1:]) & set("×÷")


def worked(numbers: Sequence[int], signs: Sequence[str]) -> Chain | None:
    """The chain of an expression: products and quotients first, then from left to right.

    None if a step is no problem of the bundled training, or its result is below 1 or above 100.
    """
    left, between, steps = list(numbers), list(signs), []
    while between:
        place = next((place for place, sign in enumerate(between) if sign in "×÷"), 0)
        step = Problem(left[place], between.pop(place), left[place + 1])
        if not _is_taught(step):
            return None
        left[place : place + 2] = [step.result]
        steps.append(step)
    return Chain(tuple(numbers), tuple(signs), tuple(steps))


def _is_taught(step: Problem) -> bool:
    if step.sign == "÷":
        return 0 < step.b <= TABLE_LIMIT and step.a % step.b == 0 and 0 < step.result <= TABLE_LIMIT
    if step.sign == "×":
        return max(step.pair) <= TABLE_LIMIT
    return step.pair[1] <= LIMIT and 0 < step.result <= LIMIT and not is_foreign(step.pair, TRAIN)


def draw_chain(rng: random.Random, *, in_order: bool = False, signs: Sequence[str] = "+-×÷") -> Chain:
    """A random chain.

    Args: in_order: only one that can be told. signs: those that it may have.
    """
    weights = {chosen: weight for chosen, weight in SIGNS.items() if set(chosen) <= set(signs)}
    while True:
        chosen = rng.choices(list(weights), weights=list(weights.values()))[0]
        numbers = [_number(chosen[max(0, place - 1) : place + 1], rng) for place in range(len(chosen) + 1)]
        if chosen[0] == "÷":
            numbers[0] *= numbers[1]
        chain = worked(numbers, chosen)
        if chain is not None and (chain.goes_in_order or not in_order):
            return chain


def _number(beside: Sequence[str], rng: random.Random) -> int:
    """A number, given the signs beside it: a factor is a single digit from 2 on."""
    if any(sign in "×÷" for sign in beside):
        return rng.randint(2, TABLE_LIMIT)
    return rng.randint(1, rng.choice((TABLE_LIMIT, 20, LARGEST_SUMMAND)))
