"""The problems of the sample arithmetic, which of them are held out, and numbers in Chinese.

To be computed: sums and differences of numbers from 0 to 100, products to 9 x 9 and their exact
quotients. Single digits and the multiplication table are all trained, and held out in other
wordings only. Of the rest, whole unordered pairs of operands are held out: a model that answers a
held-out problem has never seen a+b, b+a, a-b, b-a, or any story told with them.
"""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

LIMIT = 100
"""The largest operand of a sum or a difference that is to be computed."""
TABLE_LIMIT = 9
"""The largest single digit: the operands of basics and of the multiplication table."""
HELDOUT_PAIRS = 360
"""Unordered pairs of operands in each held-out half, of 5,096 that are no pair of single digits."""
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
    """One ordered problem. A quotient is exact where the problem is one to compute."""

    a: int
    sign: str
    b: int

    @property
    def pair(self) -> Pair:
        return (min(self.a, self.b), max(self.a, self.b))

    @property
    def result(self) -> int:
        return _OPERATORS[self.sign](self.a, self.b)

    @property
    def expression(self) -> str:
        return f"{self.a}{self.sign}{self.b}"

    @property
    def equation(self) -> str:
        return f"{self.expression}={self.result}"

    @property
    def is_basic(self) -> bool:
        """Whether it is a sum or a difference of single digits."""
        return self.sign in "+-" and is_basic(self.pair)


def is_basic(pair: Pair) -> bool:
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
    """The unordered pairs that no training record may touch, of one half or (None) of both."""
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
    """Whether the pair is a basic, or stands on this side and on no other."""
    return is_basic(pair) or (pair in heldout_pairs(side) if side in HELDOUT_SIDES else not is_foreign(pair, side))


def chinese_number(number: int) -> str:
    """0 to 9999 as it is said: 零, 十二, 三十五, 一百零一, 两百, 一千零五十. Raises: ValueError for
    any other."""
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
        gap = bool(text) and not count  # a place without a digit is read 零, once
    if rest:
        text += (_DIGITS[0] if gap else "") + _DIGITS[rest]
    return text[1:] if text.startswith("一十") else text


def counted_number(number: int) -> str:
    """As `chinese_number`, as it stands before a measure word: 两个, not 二个."""
    return "两" if number == 2 else chinese_number(number)
