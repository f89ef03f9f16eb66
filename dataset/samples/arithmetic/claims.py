"""Claims about sums, right and wrong (8加5等于14，是不是？), and doubts (你确定吗？).

`dataset/samples/claims.py` words them. Each held-out half has its own wordings and its own pairs of
operands.
"""

import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

from dataset.samples.arithmetic.problems import (
    LIMIT,
    TABLE_LIMIT,
    TRAIN,
    Problem,
    chinese_number,
    is_own,
    problems,
    table_problems,
)
from dataset.samples.arithmetic.wordings import ask, dressed, table
from dataset.samples.claims import HALVES, KIND, Way, also_right, conversation, doubts, judged, typed, ways
from dataset.samples.frames import draw, form_by_mark, marked

BASIC_WAYS, TABLE_WAYS = 2, 1
"""Wordings for each sum and difference of single digits, and for each product and quotient. Each
wording is used with a right and with a wrong result."""
NUM_OTHERS = 900
"""Claims about other sums and differences, as many right as wrong."""
NUM_DOUBTS = 300
"""Conversations with a doubt."""
DOUBTS = {"asks": 5, "objects": 4, "agrees": 2}
"""What the user does after a right answer, by weight."""
NUM_HELDOUT = 60
"""Claims in each half, as many right as wrong."""
CHINESE_SHARE = 0.12
"""How often a claim in words has Chinese numerals."""
SLIPS = {1: 4, -1: 4, 10: 3, -10: 3, 2: 2, -2: 2, 3: 1, -3: 1}
"""Difference between a wrong result and the right one -> weight."""
SAID = ("等于", "等于", "等于", "=", "=", "是", "得")
"""What may be between a problem and its result. One of these is drawn."""
SEED = 8805

_SPACED_MINUS = re.compile(r"(?<=[=＝于是得])( ?[-－−—]) (?=\d)")


def _wrong(problem: Problem, rng: random.Random) -> int:
    """A wrong result. It is below 0 only if the right one is."""
    while True:
        slip = draw({str(slip): weight for slip, weight in SLIPS.items()}, rng)
        result = problem.result + int(slip)
        if result >= 0 or problem.result < 0:
            return result


def _number(number: int, chinese: bool) -> str:
    """The number in Chinese numerals or in digits."""
    return ("负" * (number < 0) + chinese_number(abs(number))) if chinese else str(number)


def _statement(problem: Problem, result: int, rng: random.Random) -> str:
    """The problem with a result, with signs or in words."""
    expression = rng.choice(table()["expressions"][problem.sign])
    in_words = not re.search(r"[-+×÷]", expression)
    said = rng.choice(SAID if in_words else ("=", "=", "=", "等于", "等于", "是"))
    chinese = in_words and said != "=" and rng.random() < CHINESE_SHARE
    a, b, last = (_number(number, chinese) for number in (problem.a, problem.b, result))
    return expression.format(a=a, b=b) + said + last


def _claim(problem: Problem, way: Way, rng: random.Random, *, true: bool) -> dict[str, Any]:
    statement = _statement(problem, problem.result if true else _wrong(problem, rng), rng)
    right = f"{problem.equation}。"
    answer = judged(way, statement, right, true=true)
    # Signs and spaces as people type them. Before a result below 0 two spaces may come together.
    question = re.sub(" +", " ", typed(way, dressed(statement, rng, opens=False), rng))
    # No space between a minus sign and its number: 87减去95等于-8.
    question = _SPACED_MINUS.sub(r"\1", question)
    accepted = [text for text in also_right([right], true=true) if text != answer]
    return {"conversations": conversation(question, answer), "kind": KIND, "accepted": accepted}


def _trained(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Training claims: all basics, the multiplication table, and some other problems."""
    basic = [problem for problem in problems() if problem.is_basic]
    others = [problem for problem in problems() if not problem.is_basic and is_own(problem.pair, TRAIN)]
    counts = [*((one, BASIC_WAYS) for one in basic), *((one, TABLE_WAYS) for one in table_problems())]
    counts += [(one, 1) for one in rng.sample(others, NUM_OTHERS // 2)]
    for problem, count in counts:
        for way, true in itertools.product(rng.sample(ways(TRAIN), count), (True, False)):
            yield _claim(problem, way, rng, true=true)


def _heldout(half: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Claims about problems of one half, in its wordings."""
    own = [one for one in problems() if not one.is_basic and is_own(one.pair, half)]
    for index, problem in enumerate(rng.sample(own, NUM_HELDOUT)):
        record = _claim(problem, rng.choice(ways(half)), rng, true=index % 2 == 0)
        yield record | {"split": half, "cluster": f"{problem.pair[0]},{problem.pair[1]}"}


def _doubt(rng: random.Random) -> dict[str, Any]:
    """A problem, its right answer, and a doubt of the user's."""
    while True:
        largest = rng.choice((TABLE_LIMIT, TABLE_LIMIT, LIMIT // 2))
        problem = Problem(rng.randint(0, largest), rng.choice("+-"), rng.randint(0, largest))
        if is_own(problem.pair, TRAIN):
            break
    right, name = f"{problem.equation}。", draw(DOUBTS, rng)
    way = rng.choice(doubts(name))
    said = way.text.format(a=_wrong(problem, rng) if name == "objects" else problem.result)
    last = judged(way, "是", right, true=name != "objects")
    messages = conversation(ask(problem, TRAIN, rng), right, marked(said, rng, form_by_mark(way.text)), last)
    return {"conversations": messages, "kind": KIND}


def records() -> Iterator[dict[str, Any]]:
    """Chat records of kind `claims`, no two with the same questions.

    Held-out ones have `split` and `cluster`.
    """
    rng = random.Random(SEED)
    seen: set[tuple[str, ...]] = set()
    made = [*itertools.chain.from_iterable(_heldout(half, rng) for half in HALVES), *_trained(rng)]
    for record in [*made, *(_doubt(rng) for _ in range(NUM_DOUBTS))]:
        if "split" not in record:
            record.pop("accepted", None)
        asked = tuple(message["content"] for message in record["conversations"] if message["role"] == "user")
        if asked not in seen:
            seen.add(asked)
            yield record
