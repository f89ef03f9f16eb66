"""Questions about numbers that the model does not compute. It answers with one of two honest lines.

The line is TOO_LARGE for + - × ÷ with a number above 100, and NOT_YET for everything else. Many
questions are close to what is computed, so that a model learns the border: 101+1 is beyond, 100+1
is not; 12×3 is beyond, 9×3 is not; 57÷8 is beyond, 56÷8 is not.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from dataset.samples.arithmetic.problems import LIMIT, TABLE_LIMIT, Problem, chinese_number
from dataset.samples.arithmetic.stories import large_stories, opened
from dataset.samples.arithmetic.wordings import ask, ask_expression, dressed
from dataset.samples.tables import yaml_table

WORDINGS_FILE = Path(__file__).with_name("beyond.yaml")
TOO_LARGE = "这个数太大了，我算不准，请用计算器。"
NOT_YET = "这个我还不会算，请用计算器。"

SHARES = {
    "large sum": 26,
    "large product": 6,
    "large quotient": 5,
    "large chain": 3,
    "large story": 8,
    "product": 32,
    "quotient": 14,
    "chain": 8,
    "decimal": 9,
    "long story": 10,
}
"""Type of question -> weight."""
LISTED_SHARE = 4
"""Weight of each other type of the table."""
_SLOT = re.compile(r"\{([a-z])\d?\}")
_LARGEST = {3: 999, 4: 9999, 5: 99_999, 6: 999_999, 8: 99_999_999}
_ROUND = (120, 150, 200, 250, 300, 400, 500, 600, 800, 1000, 1200, 2000, 5000, 10_000, 100_000)
_PERCENT = (1, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90)


@dataclass(frozen=True, slots=True)
class Beyond:
    """A question with its honest line."""

    kind: str
    question: str
    answer: str
    right: str = ""
    """The right equation, if it is a simple one; else empty."""


def listed() -> dict[str, dict[str, list[str]]]:
    """Type -> side -> wordings."""
    return yaml_table(WORDINGS_FILE)


def beyond(side: str, count: int, rng: random.Random) -> Iterator[Beyond]:
    """`count` different questions of one side."""
    shares = dict.fromkeys(listed(), LISTED_SHARE) | SHARES
    total, done = sum(shares.values()), 0
    asked: set[str] = set()
    for index, (kind, share) in enumerate(shares.items()):
        wanted = count - done if index == len(shares) - 1 else round(count * share / total)
        done += wanted
        yield from _unasked(kind, side, wanted, asked, rng)


def _unasked(kind: str, side: str, count: int, asked: set[str], rng: random.Random) -> Iterator[Beyond]:
    """`count` questions of one type that are not in `asked`, which grows."""
    if kind == "large story":
        for problem, story in large_stories(side, count, rng):
            yield Beyond(kind, story.question, TOO_LARGE, f"{problem.equation}，所以{story.conclusion}。")
        return
    while count:
        question = _MAKERS[kind](side, rng) if kind in _MAKERS else _from_table(kind, side, rng)
        if question.question not in asked:
            asked.add(question.question)
            count -= 1
            yield question


def _large(rng: random.Random) -> int:
    """A number above 100, often only a little above."""
    draw = rng.random()
    if draw < 0.3:
        return rng.randint(LIMIT + 1, 130)
    if draw < 0.45:
        return rng.randint(131, 250)
    if draw < 0.65:
        return rng.choice(_ROUND)
    digits = rng.choices(list(_LARGEST), weights=(6, 5, 2, 1, 1))[0]
    return rng.randint(10 ** (digits - 1) + (digits == 3), _LARGEST[digits])


def _with_large(rng: random.Random) -> tuple[int, int]:
    """Two numbers in a drawn order. At least one is above 100."""
    other = rng.choice((rng.randint(1, TABLE_LIMIT), rng.randint(0, LIMIT), LIMIT, _large(rng)))
    numbers = [_large(rng), other]
    rng.shuffle(numbers)
    return numbers[0], numbers[1]


def _problem(kind: str, problem: Problem, side: str, rng: random.Random) -> Beyond:
    """A question for a problem of two numbers."""
    answer = TOO_LARGE if max(problem.a, problem.b) > LIMIT else NOT_YET
    exact = problem.sign != "÷" or (problem.b > 0 and problem.a % problem.b == 0)
    return Beyond(kind, ask(problem, side, rng), answer, f"{problem.equation}。" if exact else "")


def _large_sum(side: str, rng: random.Random) -> Beyond:
    a, b = _with_large(rng)
    return _problem("large sum", Problem(a, rng.choice("+-"), b), side, rng)


def _large_product(side: str, rng: random.Random) -> Beyond:
    a, b = _with_large(rng)
    return _problem("large product", Problem(a, "×", b), side, rng)


def _large_quotient(side: str, rng: random.Random) -> Beyond:
    divisor = rng.choice((rng.randint(2, TABLE_LIMIT), rng.randint(2, LIMIT)))
    dividend = _large(rng)
    if rng.random() < 0.5:
        dividend = divisor * rng.randint(LIMIT // divisor + 1, LIMIT)
    return _problem("large quotient", Problem(dividend, "÷", divisor), side, rng)


def _product(side: str, rng: random.Random) -> Beyond:
    """A product with a factor of two digits."""
    large = rng.choice((rng.randint(10, 20), rng.randint(10, 99), rng.choice(range(10, LIMIT + 1, 10))))
    small = rng.randint(rng.choice((0, 2)), TABLE_LIMIT)  # used most often, because 15×3 looks like the table
    factors = [large, small if rng.random() < 0.8 else rng.randint(10, 99)]
    rng.shuffle(factors)
    return _problem("product", Problem(factors[0], "×", factors[1]), side, rng)


def _quotient(side: str, rng: random.Random) -> Beyond:
    """A quotient that is not exact, or not in the table of products."""
    while True:
        divisor = rng.choice((rng.randint(2, TABLE_LIMIT), rng.randint(2, TABLE_LIMIT), rng.randint(0, LIMIT)))
        dividend = rng.choice((rng.randint(1, TABLE_LIMIT**2), rng.randint(1, LIMIT)))
        in_table = 0 < divisor <= TABLE_LIMIT and dividend % divisor == 0 and dividend // divisor <= TABLE_LIMIT
        if not in_table:
            return _problem("quotient", Problem(dividend, "÷", divisor), side, rng)


def _chain(side: str, rng: random.Random) -> Beyond:
    """Four or more terms, or three terms with one above 20."""
    if rng.random() < 0.5:
        numbers = [rng.randint(1, rng.choice((9, 9, 20, 99))) for _ in range(rng.choice((4, 4, 4, 5, 5, 6)))]
    else:
        tens = rng.random() < 0.4
        numbers = [rng.randint(1, 10) * 10 if tens else rng.randint(1, LIMIT) for _ in range(3)]
        numbers[rng.randrange(3)] = rng.randint(3, 10) * 10 if tens else rng.randint(21, LIMIT)
    return Beyond("chain", ask_expression(_joined(numbers, rng), side, rng), NOT_YET)


def _large_chain(side: str, rng: random.Random) -> Beyond:
    numbers = [rng.choice((_large(rng), rng.randint(1, LIMIT))) for _ in range(rng.choice((3, 3, 3, 4)))]
    numbers[rng.randrange(len(numbers))] = _large(rng)
    return Beyond("large chain", ask_expression(_joined(numbers, rng), side, rng), TOO_LARGE)


def _joined(numbers: list[int], rng: random.Random) -> str:
    """The numbers with drawn operations between them, as signs or as words."""
    signs = rng.choice(("+", "+", "+-", "+-×"))
    names = {"+": "加", "-": "减", "×": "乘"}
    in_words = rng.random() < 0.3
    text = str(numbers[0])
    for number in numbers[1:]:
        sign = rng.choice(signs)
        text += (names[sign] if in_words else sign) + str(number)
    return text


def _decimal(side: str, rng: random.Random) -> Beyond:
    sign = rng.choice("++--×÷")
    numbers = [_decimal_number(rng), rng.choice((_decimal_number(rng), str(rng.randint(1, 20))))]
    rng.shuffle(numbers)
    names = {"+": "加", "-": "减", "×": "乘", "÷": "除以"}
    expression = (names[sign] if rng.random() < 0.35 else sign).join(numbers)
    a, b = (Decimal(number) for number in numbers)
    results = {"+": a + b, "-": a - b, "×": a * b}
    right = f"{numbers[0]}{sign}{numbers[1]}={results[sign].normalize():f}。" if sign in results else ""
    return Beyond("decimal", ask_expression(expression, side, rng), NOT_YET, right)


def _decimal_number(rng: random.Random) -> str:
    """A number with one or two decimal places."""
    places = rng.choice((1, 1, 1, 2))
    whole = rng.choice((0, rng.randint(0, 9), rng.randint(0, 20), rng.randint(0, LIMIT - 1)))
    return f"{whole}.{rng.randint(1, 9) if places == 1 else f'{rng.randint(0, 9)}{rng.randint(1, 9)}'}"


def _from_table(kind: str, side: str, rng: random.Random) -> Beyond:
    text = _SLOT.sub(lambda slot: _number(slot[1], rng), rng.choice(listed()[kind][side]))
    return Beyond(kind, opened(text.rstrip("？"), rng) if "story" in kind else dressed(text, rng), NOT_YET)


def _number(slot: str, rng: random.Random) -> str:
    """A number for a slot of the table. The top of the table explains the letters."""
    if slot == "d":
        return _decimal_number(rng)
    if slot == "f":
        below = rng.randint(2, TABLE_LIMIT)
        return f"{chinese_number(below)}分之{chinese_number(rng.randint(1, below - 1))}"
    spans = {"s": (2, TABLE_LIMIT), "n": (2, 20), "m": (11, 99), "t": (20, 99)}
    if slot in spans:
        return str(rng.randint(*spans[slot]))
    return str(rng.choice(_PERCENT if slot == "p" else _ROUND))


_MAKERS: dict[str, Callable[[str, random.Random], Beyond]] = {
    "large sum": _large_sum,
    "large product": _large_product,
    "large quotient": _large_quotient,
    "large chain": _large_chain,
    "product": _product,
    "quotient": _quotient,
    "chain": _chain,
    "decimal": _decimal,
}
