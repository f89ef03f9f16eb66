"""The problems of the sample arithmetic, which of them are held out, and numbers in Chinese.

The model learns sums and differences of numbers from 0 to 100, products up to 9 x 9 and their exact
quotients. All problems of single digits and of the multiplication table are trained; only their
wordings are held out. Of the other problems, whole unordered pairs of operands are held out. So
when a model answers a held-out problem, it has never seen a+b, b+a, a-b, b-a, or a story with these
two numbers.
"""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

LIMIT = 100
"""The largest operand of a sum or a difference that the model learns."""
TABLE_LIMIT = 9
"""The largest single digit: the operands of basics and of the multiplication table."""
HELDOUT_PAIRS = 360
"""Unordered pairs of operands in each held-out half, out of 5,096 that are not both single
digits."""
TRAIN, VALIDATION, TEST = "train", "validation", "test"
HELDOUT_SIDES = (VALIDATION, TEST)

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "×": operator.mul,
    "÷": operator.floordiv,
}
_DIGITS = "零一二三四五六七八九"
_UNITS = ((1000, "千"), (100, "百"), (10, "十"))

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """Two numbers with a sign between them."""

    a: int
    sign: str
    b: int

    @property
    def pair(self) -> Pair:
        """The two numbers, the smaller one first."""
        return (min(self.a, self.b), max(self.a, self.b))

    @property
    def result(self) -> int:
        """The result. A quotient is rounded down."""
        return _OPERATORS[self.sign](self.a, self.b)

    @property
    def expression(self) -> str:
        """Such as 3+5."""
        return f"{self.a}{self.sign}{self.b}"

    @property
    def equation(self) -> str:
        """Such as 3+5=8."""
        return f"{self.expression}={self.result}"

    @property
    def is_basic(self) -> bool:
        """Whether it is a sum or a difference of single digits."""
        return self.sign in "+-" and is_basic(self.pair)


def is_basic(pair: Pair) -> bool:
    """Whether both numbers are single digits."""
    return max(pair) <= TABLE_LIMIT


@cache
def problems() -> tuple[Problem, ...]:
    """Every sum and difference of numbers from 0 to 100 (results -100 to 200), in a fixed order."""
    operands = range(LIMIT + 1)
    return tuple(Problem(a, sign, b) for a in operands for b in operands for sign in "+-")


@cache
def table_problems() -> tuple[Problem, ...]:
    """The products of single digits and their exact quotients, in a fixed order."""
    digits = range(TABLE_LIMIT + 1)
    products = (Problem(a, "×", b) for a in digits for b in digits)
    return (*products, *(Problem(a * b, "÷", b) for a in digits for b in digits if b))


def heldout_pairs(side: str | None = None) -> frozenset[Pair]:
    """The pairs that no training record may use, of one half or (None) of both."""
    halves = _heldout_halves()
    return halves[side] if side is not None else halves[VALIDATION] | halves[TEST]


@cache
def _heldout_halves() -> dict[str, frozenset[Pair]]:
    pairs = [(a, b) for a in range(LIMIT + 1) for b in range(a, LIMIT + 1) if not is_basic((a, b))]
    chosen = random.Random(2201).sample(pairs, HELDOUT_PAIRS * len(HELDOUT_SIDES))
    return {VALIDATION: frozenset(chosen[:HELDOUT_PAIRS]), TEST: frozenset(chosen[HELDOUT_PAIRS:])}


def is_foreign(pair: Pair, side: str) -> bool:
    """Whether the pair is held out for another side than this one."""
    return any(pair in heldout_pairs(other) for other in HELDOUT_SIDES if other != side)


def is_own(pair: Pair, side: str) -> bool:
    """Whether the pair is a basic one, or belongs to this side."""
    return is_basic(pair) or (pair in heldout_pairs(side) if side in HELDOUT_SIDES else not is_foreign(pair, side))


def chinese_number(number: int) -> str:
    """A number from 0 to 9999 in words: 零, 十二, 三十五, 一百零一, 两百, 一千零五十.

    Raises: ValueError for any other number.
    """
    if not 0 <= number <= 9999:
        raise ValueError(f"{number} has no name here")
    if number == 0:
        return _DIGITS[0]
    text, rest, gap = "", number, False
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            digit = "两" if count == 2 and size > 10 else _DIGITS[count]
            text += (_DIGITS[0] if gap else "") + digit + unit
        gap = bool(text) and not count  # zeros between two digits are read as one 零
    if rest:
        text += (_DIGITS[0] if gap else "") + _DIGITS[rest]
    return text[1:] if text.startswith("一十") else text


def counted_number(number: int) -> str:
    """As `chinese_number`, but before a measure word: 两个, not 二个."""
    return "两" if number == 2 else chinese_number(number)
