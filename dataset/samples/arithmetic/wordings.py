"""How people type sums: digits or Chinese numbers, signs, spaces, end marks, greetings, thanks.

The wordings are in `wordings.yaml`. All else is drawn for each question.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.arithmetic.problems import TRAIN, Problem, chinese_number
from dataset.samples.frames import draw
from dataset.samples.tables import yaml_table

WORDINGS_FILE = Path(__file__).with_name("wordings.yaml")

COMMON_SHARE = 0.5
"""Share of the training questions that have one of the most usual wordings."""
CHINESE_SHARE, CHINESE_BESIDE_SIGN_SHARE = 0.2, 0.04
"""How often numerals are Chinese in a question in words, and in one with a sign."""
WIDE_DIGITS_SHARE = 0.01
"""How often digits have full width."""
SPACED_SIGN_SHARE, SPACED_NUMBER_SHARE = 0.2, 0.08
"""How often spaces are put around signs, and around numbers in a question in words."""
FRAME_SHARE, KNOWING_SHARE, PARTICLE_SHARE, THANKS_SHARE = 0.3, 0.04, 0.07, 0.05
"""How often something is put around a question, 你知道 before it, 呢 after it, thanks after it."""

_SIGNS = {
    "+": {"+": 90, "＋": 10},
    "-": {"-": 88, "－": 8, "−": 2, "—": 2},
    "×": {"×": 48, "*": 25, "x": 17, "X": 10},
    "÷": {"÷": 72, "/": 24, "／": 4},
    "=": {"=": 91, "＝": 9},
}
_MARKS = {"question": {"": 38, "？": 36, "?": 21, "。": 3, "！": 2}, "request": {"。": 42, "": 50, "！": 8}}
_LATER_MARKS = {"": 40, "？": 38, "?": 22}
"""End marks after 呢 and 吗."""
_BARE_MARKS = {"": 76, "？": 9, "?": 9, "。": 6}
_ASKED = ("几", "多少", "啥", "什么")
_PARTICLES = ("呢", "呀", "啊")
_SIGN = re.compile(r"([-+×÷=])")
_ASKED_RESULT = re.compile(r"[=＝] ?？$")
_NUMBER_EDGE = re.compile(r"(?<=\d)(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])(?=\d)")
_WIDE_DIGITS = str.maketrans("0123456789", "０１２３４５６７８９")


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to ask a problem, and the condition under which it fits (a key of _CONDITIONS)."""

    text: str
    condition: str


_CONDITIONS: dict[str, Callable[[Problem], bool]] = {
    "any": lambda problem: True,
    "larger_first": lambda problem: problem.a > problem.b > 0,
    "above_one": lambda problem: min(problem.a, problem.b) > 1 and problem.result > 1,
}


def table() -> dict[str, Any]:
    """All wordings."""
    return yaml_table(WORDINGS_FILE)


@cache
def wordings(sign: str, side: str) -> tuple[Wording, ...]:
    """All wordings of one sign and side."""
    expressions, tails = table()["expressions"][sign], table()["tails"][side]
    found = [Wording(tail.format(e=expression), "any") for expression in expressions for tail in tails]
    for condition, sides in table()["own"][sign].items():
        found += [Wording(text, condition) for text in sides[side]]
    return tuple(found)


@cache
def common_wordings(sign: str) -> tuple[Wording, ...]:
    """The most usual training wordings of one sign."""
    expressions = table()["expressions"][sign][:2]
    return tuple(Wording(tail.format(e=e), "any") for e in expressions for tail in table()["common"])


def fitting(problem: Problem, side: str) -> tuple[Wording, ...]:
    """The wordings of one side that fit the problem."""
    return _meeting(problem.sign, side, frozenset(name for name, meets in _CONDITIONS.items() if meets(problem)))


@cache
def _meeting(sign: str, side: str, conditions: frozenset[str]) -> tuple[Wording, ...]:
    return tuple(wording for wording in wordings(sign, side) if wording.condition in conditions)


def ask(problem: Problem, side: str, rng: random.Random) -> str:
    """The problem as a question of one side, in a random wording."""
    if side == TRAIN and rng.random() < COMMON_SHARE:
        wording = rng.choice(common_wordings(problem.sign))
    else:
        wording = rng.choice(fitting(problem, side))
    return phrased(wording.text, {"a": problem.a, "b": problem.b}, rng)


def ask_expression(expression: str, side: str, rng: random.Random) -> str:
    """A question for a given expression, with an ending of one side."""
    tails = table()["common" if side == TRAIN and rng.random() < COMMON_SHARE else "tails"]
    return dressed(rng.choice(tails[side] if isinstance(tails, dict) else tails).format(e=expression), rng)


def phrased(wording: str, numbers: Mapping[str, int], rng: random.Random, *, opens: bool = True) -> str:
    """A wording with its numbers, as somebody may type it. `opens`: as in `dressed`."""
    share = CHINESE_BESIDE_SIGN_SHARE if _SIGN.search(wording) else CHINESE_SHARE
    if rng.random() < share and max(numbers.values()) <= 9999:
        text = wording.format(**{slot: chinese_number(number) for slot, number in numbers.items()})
        return dressed(re.sub("(?<![十零])二个", "两个", text), rng, opens=opens)
    return dressed(wording.format(**numbers), rng, opens=opens)


def dressed(text: str, rng: random.Random, *, opens: bool = True) -> str:
    """A wording with drawn signs, spaces and end mark.

    Args: opens: whether it opens a conversation. Only then greeting and thanks may be added.
    """
    if rng.random() < WIDE_DIGITS_SHARE:
        text = text.translate(_WIDE_DIGITS)
    elif not _SIGN.search(text):
        if rng.random() < SPACED_NUMBER_SHARE:
            text = _NUMBER_EDGE.sub(" ", text)
    elif rng.random() < SPACED_SIGN_SHARE:
        text = _SIGN.sub(r" \1 ", text).strip()
    text = "".join(draw(_SIGNS[char], rng) if char in _SIGNS else char for char in text)
    return framed(text, rng, opens=opens)


def framed(text: str, rng: random.Random, *, opens: bool) -> str:
    """Add the end mark, perhaps greeting and thanks. `opens`: as in `dressed`."""
    # The last character tells what the text is: a question, a request, or a bare expression.
    frames: Sequence[str]
    if _ASKED_RESULT.search(text):
        core, mark, frames = text[:-1], draw({"？": 1, "?": 1}, rng), table()["frames"]["bare"]
    elif text.endswith("？"):
        core, mark, frames = text[:-1], draw(_MARKS["question"], rng), table()["frames"]["question"]
        if core.endswith("吗"):
            frames = table()["frames"]["request"]
        elif core.endswith("呢"):
            mark = draw(_LATER_MARKS, rng)
        elif opens and core.endswith(_ASKED) and "，" not in core and rng.random() < KNOWING_SHARE:
            core, frames, mark = (
                rng.choice(table()["frames"]["knowing"]).rstrip("？").format(core),
                ("{}",),
                draw(_LATER_MARKS, rng),
            )
        elif core.endswith(_ASKED) and rng.random() < PARTICLE_SHARE:
            core += rng.choice(_PARTICLES)
    elif text.endswith("。"):
        core, mark, frames = text[:-1], draw(_MARKS["request"], rng), table()["frames"]["request"]
    else:
        ends_open = text.endswith(("=", "＝", "等于"))
        core, mark, frames = text, "" if ends_open else draw(_BARE_MARKS, rng), table()["frames"]["bare"]
    if not opens:
        return core + mark
    if rng.random() < FRAME_SHARE:
        core = rng.choice(frames).format(core)
    if rng.random() < THANKS_SHARE:
        return core + "？谢谢" if mark == "？" else core.rstrip() + rng.choice(table()["frames"]["thanks"])
    return core + mark
