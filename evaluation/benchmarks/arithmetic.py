"""CMATH: the last number of an answer, and rules that answer without reading the problem."""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from evaluation.benchmarks.items import Item
from evaluation.numbers import folded

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+(?:\.\d+)?|%)?")
_TOGETHER = re.compile("一共|共|原来")


def numbers_in(text: str) -> list[Fraction]:
    """All numbers of a text that are written in digits, in their order: 1,234, 0.5, 3/4, 12%."""
    found = []
    for match in _NUMBER.finditer(folded(text)):
        written = match[0].replace(",", "")
        above, _, below = written.rstrip("%").partition("/")
        if below and not Fraction(below):
            continue
        found.append(Fraction(above) / (Fraction(below) if below else 1) / (100 if written.endswith("%") else 1))
    return found


def is_right(golden: str, answer: str) -> bool:
    """Whether the last number of an answer is the right one, exactly."""
    said, right = numbers_in(answer), numbers_in(golden)
    return bool(said and right) and said[-1] == right[-1]


def sum_of_two(question: str) -> Fraction | None:
    """The sum of the first two numbers; None if there are fewer."""
    numbers = numbers_in(question)[:2]
    return sum(numbers, Fraction()) if len(numbers) == 2 else None


def difference_of_two(question: str) -> Fraction | None:
    """The absolute difference of the first two numbers."""
    numbers = numbers_in(question)[:2]
    return abs(numbers[0] - numbers[1]) if len(numbers) == 2 else None


def by_keyword(question: str) -> Fraction | None:
    """The sum where a word asks for all together (一共, 共, 原来), else the difference."""
    return sum_of_two(question) if _TOGETHER.search(question) else difference_of_two(question)


RULES = {"sum": sum_of_two, "difference": difference_of_two, "keyword": by_keyword}


def rule_outcomes(items: Sequence[Item]) -> dict[str, list[float]]:
    """Rule -> right or wrong for each problem; the commonest answer is that of each group."""
    outcomes = {}
    for name, rule in RULES.items():
        outcomes[name] = [float([rule(item.question)] == numbers_in(item.golden)[-1:]) for item in items]
    answers: dict[str, Counter[str]] = {}
    for item in items:
        answers.setdefault(item.group, Counter())[item.golden] += 1
    commonest = {group: counts.most_common(1)[0][0] for group, counts in answers.items()}
    outcomes["commonest"] = [float(is_right(item.golden, commonest[item.group])) for item in items]
    return outcomes
