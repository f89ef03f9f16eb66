"""Sample arithmetic: problems as people type them, and honest lines for what is too hard.

The kinds are sums and differences from 0 to 100 (no `kind`), `basic` (the same for single digits),
`times` (the multiplication table and its exact quotients), `word` (stories), `steps` (three terms,
worked out), `turns` (再加5呢？) and `beyond`. `problems.py` says which problems are held out.
Held-out questions have wordings that no training question uses.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from dataset.samples.arithmetic.beyond import NOT_YET, TOO_LARGE, beyond
from dataset.samples.arithmetic.problems import (
    HELDOUT_SIDES,
    LIMIT,
    TABLE_LIMIT,
    TEST,
    TRAIN,
    VALIDATION,
    Pair,
    Problem,
    heldout_pairs,
    is_basic,
    is_foreign,
    is_own,
    problems,
    table_problems,
)
from dataset.samples.arithmetic.stories import stories
from dataset.samples.arithmetic.wordings import ask, ask_expression, common_wordings, dressed, fitting, phrased, table

__all__ = [
    "HELDOUT_SIDES",
    "LIMIT",
    "NOT_YET",
    "TOO_LARGE",
    "Problem",
    "follow_up",
    "heldout_pairs",
    "problems",
    "records",
    "table_problems",
]

TRAIN_STEPS = False
"""Whether 1+2+3 is worked out (kind `steps`). If not, it gets an honest line (kind `beyond`)."""

NUM_OTHER_WORDINGS = 26
"""Training wordings of each single-digit problem, in addition to the common ones."""
NUM_BASIC_WORDINGS = {VALIDATION: 1, TEST: 3}
"""Held-out wordings of each single-digit problem."""
NUM_TABLE_WORDINGS = {TRAIN: 26, VALIDATION: 1, TEST: 1}
"""Questions for each product and quotient."""
NUM_EASY_AGAIN = 1
"""Further questions for each sum and difference of small or round numbers in training."""
DIFFERENCE_AGAIN_SHARE = 0.5
"""Share of the differences that are asked twice, in addition to the hard ones. Models learn
differences later than sums, and those below 0 last."""
NEAR_LIMIT = 98
"""A problem with an operand from this on is hard, because few other problems teach its carry."""
EASY_LIMIT = 20
"""Numbers up to this are small."""
NUM_PLAIN_HELDOUT = 350
"""Sums and differences in each held-out half. The next four count the records of a kind."""
NUM_WORD = {TRAIN: 10_000, VALIDATION: 120, TEST: 120}
NUM_STEPS = {TRAIN: 700, VALIDATION: 80, TEST: 80}
NUM_TURNS = {TRAIN: 1800, VALIDATION: 80, TEST: 80}
NUM_BEYOND = {TRAIN: 3100, VALIDATION: 150, TEST: 150}

STEP_IN_WORDS_SHARE = 0.35
"""How often three terms are asked in words."""
LARGE_TURN_SHARE = 0.05
"""How often a later turn has a number above 100, which gets an honest line."""
_STEP_SIGNS = {"++": 4, "+-": 3, "-+": 3, "--": 2, "×+": 2, "×-": 1, "+×": 1, "-×": 1, "÷+": 1}
"""The two signs of three terms, by weight."""
_SIGN_NAMES = {"+": ("加", "再加", "加上"), "-": ("减", "再减", "减去"), "×": ("乘", "乘以"), "÷": ("除以",)}
_MOVES = {"+": 4, "-": 4, "×": 1, "swap": 3, "other": 3, "reverse": 1}
"""What the next turn of a conversation asks, by weight."""
_LARGE_NUMBERS = (150, 200, 300, 500, 1000)

Turn = tuple[str, str]
"""(what the user says, what the assistant answers)."""


def _record(turns: Sequence[Turn], side: str, cluster: str, kind: str = "", **fields: Any) -> dict[str, Any]:
    """A chat record.

    Only a held-out one has the cluster and `fields`, because they are for scores.
    """
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    record: dict[str, Any] = {"conversations": messages}
    if kind:
        record["kind"] = kind
    if side in HELDOUT_SIDES:
        record |= {"split": side, "cluster": cluster}
        record |= {name: value for name, value in fields.items() if value}
    return record


class _Asker:
    """Draws until a question is new, so that no question comes twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.asked: set[str] = set()

    def takes(self, question: str) -> bool:
        """Whether the question is new. It is remembered."""
        is_new = question not in self.asked
        self.asked.add(question)
        return is_new

    def record(self, problem: Problem, side: str, cluster: str, kind: str = "", wording: str = "") -> dict[str, Any]:
        """The problem asked in one wording; without a wording in a drawn one of the side."""
        while True:
            numbers = {"a": problem.a, "b": problem.b}
            question = phrased(wording, numbers, self.rng) if wording else ask(problem, side, self.rng)
            if self.takes(question):
                return _record([(question, f"{problem.equation}。")], side, cluster, kind)


# --- bare problems --------------------------------------------------------------------------------


def _basic(asker: _Asker) -> Iterator[dict[str, Any]]:
    """All single-digit problems, in every common wording and some others. Wordings are held out."""
    for problem in problems():
        if not problem.is_basic:
            continue
        common = common_wordings(problem.sign)
        others = [wording for wording in fitting(problem, TRAIN) if wording not in common]
        chosen = [(TRAIN, wording) for wording in (*common, *asker.rng.sample(others, NUM_OTHER_WORDINGS))]
        for side, count in NUM_BASIC_WORDINGS.items():
            chosen += [(side, wording) for wording in asker.rng.sample(fitting(problem, side), count)]
        for side, wording in chosen:
            yield asker.record(problem, side, problem.expression, "basic", wording.text)


def _plain(asker: _Asker) -> Iterator[dict[str, Any]]:
    """Training pairs as sums and differences in both orders. A held-out pair is asked only once."""
    pairs = [(a, b) for a in range(LIMIT + 1) for b in range(a, LIMIT + 1) if not is_basic((a, b))]
    for pair in (pair for pair in pairs if not is_foreign(pair, TRAIN)):
        for problem in (
            Problem(a, sign, b)
            for a, b in dict.fromkeys((pair, pair[::-1]))
            for sign in "+-" * (1 + NUM_EASY_AGAIN * _is_easy(pair))
        ):
            again = _is_hard(problem) or (problem.sign == "-" and asker.rng.random() < DIFFERENCE_AGAIN_SHARE)
            for _ in range(1 + again):
                yield asker.record(problem, TRAIN, _name(pair))
    for side in HELDOUT_SIDES:
        for index, pair in enumerate(asker.rng.sample(sorted(heldout_pairs(side)), NUM_PLAIN_HELDOUT)):
            yield asker.record(_ordered(pair, "+-"[index % 2], asker.rng), side, _name(pair))


def _ordered(pair: Pair, sign: str, rng: random.Random) -> Problem:
    """The sum or difference of a pair, with a drawn number first."""
    a, b = rng.sample(pair, 2)
    return Problem(a, sign, b)


def _is_easy(pair: Pair) -> bool:
    """Whether both numbers are small, or both are multiples of ten."""
    return max(pair) <= EASY_LIMIT or all(number % 10 == 0 for number in pair)


def _is_hard(problem: Problem) -> bool:
    """Whether models often get it wrong, mostly by ten: 52+8=50, 27-47=-10, 97-100=-13."""
    return problem.result % 10 == 0 or problem.pair[1] >= NEAR_LIMIT


def _name(pair: Pair) -> str:
    """The cluster of a pair."""
    return f"{pair[0]},{pair[1]}"


def _times(asker: _Asker) -> Iterator[dict[str, Any]]:
    """The whole multiplication table. Wordings are held out."""
    for problem in table_problems():
        for side, count in NUM_TABLE_WORDINGS.items():
            for _ in range(count):
                yield asker.record(problem, side, problem.expression, "times")


# --- three terms ----------------------------------------------------------------------------------


def _steps(asker: _Asker) -> Iterator[dict[str, Any]]:
    """Three terms, worked out in two steps. No two sides share three numbers with equal signs."""
    side_of: dict[str, str] = {}
    for side in (*HELDOUT_SIDES, TRAIN):
        count = NUM_STEPS[side]
        while count:
            signs = asker.rng.choices(list(_STEP_SIGNS), weights=list(_STEP_SIGNS.values()))[0]
            numbers = [asker.rng.randint(asker.rng.randint(0, 1), asker.rng.choice((9, 9, 20))) for _ in range(3)]
            worked = _worked(signs, numbers, side)
            if worked is None or side_of.setdefault(f"{sorted(signs)} {sorted(numbers)}", side) != side:
                continue
            expression, answer = worked
            question = ask_expression(_step_text(signs, numbers, asker.rng), side, asker.rng)
            if asker.takes(question):
                count -= 1
                short = f"{expression}={answer.rsplit('=', 1)[1]}"
                if TRAIN_STEPS:
                    yield _record([(question, answer)], side, expression, "steps", accepted=[short])
                else:
                    turns = [(question, NOT_YET)]
                    yield _record(turns, side, expression, "beyond", honest=True, accepted=[short, answer])


def _worked(signs: str, numbers: Sequence[int], side: str) -> tuple[str, str] | None:
    """The expression and its answer in two steps; None if training does not teach a step."""
    a, b, c = numbers
    if signs in ("+×", "-×"):  # the product comes first
        first = Problem(b, signs[1], c)
        last = Problem(a, signs[0], first.result)
    else:
        first = Problem(a, signs[0], b)
        if not _is_taught(first, side):
            return None
        last = Problem(first.result, signs[1], c)
    if not (_is_taught(first, side) and _is_taught(last, side)):
        return None
    expression = f"{a}{signs[0]}{b}{signs[1]}{c}"
    return expression, f"{expression}={last.equation}。"


def _is_taught(problem: Problem, side: str) -> bool:
    """Whether a step of this side may be this problem. Its result is from 0 to 100."""
    if problem.sign == "÷":
        return 0 < problem.b <= TABLE_LIMIT and problem.a % problem.b == 0 and problem.result <= TABLE_LIMIT
    if problem.sign == "×":
        return max(problem.pair) <= TABLE_LIMIT
    return problem.pair[1] <= LIMIT and 0 <= problem.result <= LIMIT and not is_foreign(problem.pair, side)


def _step_text(signs: str, numbers: Sequence[int], rng: random.Random) -> str:
    """An expression of three numbers, with signs (2+3-4) or in words (2加3减4).

    If the second sign is ×, the expression always has signs, because 2加3乘4 could also be read as
    (2+3)×4.
    """
    names: Sequence[str] = signs
    if signs[1] != "×" and rng.random() < STEP_IN_WORDS_SHARE:
        names = [_SIGN_NAMES[signs[0]][0], rng.choice(_SIGN_NAMES[signs[1]])]
    return f"{numbers[0]}{names[0]}{numbers[1]}{names[1]}{numbers[2]}"


# --- conversations --------------------------------------------------------------------------------


def follow_up(rng: random.Random, side: str = TRAIN) -> list[Turn]:
    """Two or three turns. The later ones refer back: 3+5等于几？ 再加2呢？ 换成减法呢？

    Returns: turns in wordings of `side`, with numbers that it may use.
    """
    while True:
        turns, last = _conversation(rng, side)
        # In a held-out half the last turn is scored, so its two numbers are the half's own.
        if len(turns) > 1 and (last.sign == "×" or side == TRAIN or is_own(last.pair, side)):
            return turns


def _conversation(rng: random.Random, side: str) -> tuple[list[Turn], Problem]:
    """The turns and the last problem. A move that does not fit is left out."""
    problem = _small_problem(rng, side)
    turns = [(ask(problem, side, rng), f"{problem.equation}。")]
    names_both = True  # whether the last question names both numbers, so that they can be used again
    for _ in range(rng.choice((1, 1, 2))):
        if side == TRAIN and 0 <= problem.result <= LIMIT and rng.random() < LARGE_TURN_SHARE:
            wording = rng.choice(table()["turns"][side][rng.choice("+-")])
            turns.append((dressed(wording.format(n=rng.choice(_LARGE_NUMBERS)), rng, opens=False), TOO_LARGE))
            break
        move = rng.choices(list(_MOVES), weights=list(_MOVES.values()))[0]
        if move in ("swap", "reverse") and not names_both:
            continue
        follower = _next_problem(move, problem, rng, side)
        if follower is None:
            continue
        key = f"swap{follower.sign}" if move == "swap" else move
        wording = rng.choice(table()["turns"][side][key])
        if "{e}" in wording:
            wording = wording.format(e=rng.choice(table()["expressions"][follower.sign][:2]))
        question = phrased(wording, {"a": follower.a, "b": follower.b, "n": follower.b}, rng, opens=False)
        turns.append((question, f"{follower.equation}。"))
        problem, names_both = follower, move not in ("+", "-", "×")
    return turns, problem


def _small_problem(rng: random.Random, side: str) -> Problem:
    """A sum or difference of numbers up to 50 that the side may use."""
    while True:
        largest = rng.choice((TABLE_LIMIT, TABLE_LIMIT, EASY_LIMIT, LIMIT // 2))
        problem = Problem(rng.randint(1, largest), rng.choice("++-"), rng.randint(1, largest))
        if not is_foreign(problem.pair, side):
            return problem


def _next_problem(move: str, problem: Problem, rng: random.Random, side: str) -> Problem | None:
    """The problem of a later question; None if the move does not fit."""
    if move == "other":
        follower = _small_problem(rng, side)
    elif move == "reverse":
        follower = Problem(problem.b, "-", problem.a)
    elif move == "swap":
        follower = Problem(problem.a, rng.choice([sign for sign in "+-×" if sign != problem.sign]), problem.b)
    else:
        follower = Problem(problem.result, move, rng.randint(1, rng.choice((TABLE_LIMIT, EASY_LIMIT))))
    if move == "reverse" and (problem.sign != "-" or problem.a == problem.b):
        return None
    if min(follower.pair) < 0 or follower == problem:
        return None
    if follower.sign == "×":
        return follower if max(follower.pair) <= TABLE_LIMIT and min(follower.pair) > 0 else None
    return None if max(follower.pair) > LIMIT or is_foreign(follower.pair, side) else follower


def _turns(asker: _Asker) -> Iterator[dict[str, Any]]:
    """Conversations that refer back, no two with the same questions."""
    for side, count in NUM_TURNS.items():
        while count:
            turns = follow_up(asker.rng, side)
            if asker.takes("\n".join(question for question, _ in turns)):
                count -= 1
                yield _record(turns, side, turns[-1][1], "turns")


# --- all ------------------------------------------------------------------------------------------


def _word(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Word problems. Whole scenes are held out, and scores count by scene."""
    for side, count in NUM_WORD.items():
        for scene, problem, story in stories(side, count, rng):
            turns = [(story.question, f"{problem.equation}，所以{story.conclusion}。")]
            yield _record(turns, side, scene.question, "word", counted=story.counted)


def _beyond(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Questions that get an honest line. A right equation is also accepted, if it is simple."""
    for side, count in NUM_BEYOND.items():
        for asked in beyond(side, count, rng):
            accepted = [asked.right] if asked.right else []
            turns = [(asked.question, asked.answer)]
            yield _record(turns, side, asked.kind, "beyond", honest=True, accepted=accepted)


def records() -> Iterator[dict[str, Any]]:
    """Chat records, most with `kind`. No question comes twice.

    Held-out ones have `split`, `cluster` and what scores need. Each half has its own wordings,
    scenes and pairs.
    """
    rng = random.Random(2202)
    asker = _Asker(rng)
    yield from _basic(asker)
    yield from _plain(asker)
    yield from _times(asker)
    yield from _steps(asker)
    yield from _turns(asker)
    yield from _word(rng)
    yield from _beyond(rng)
