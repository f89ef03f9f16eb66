"""Sample arithmetic: addition and subtraction of two numbers within 0..100, bare and as word problems.

Whole unordered pairs of operands are held out, so a model that answers a held-out problem has never seen
a+b, b+a, the difference of the two, or any story told with them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 100
HELDOUT_SHARE = 0.22
NUM_WORD_TRAINING = 3000
NUM_WORD_HELDOUT = 700
SCENES_FILE = Path(__file__).with_name("arithmetic_scenes.tsv")

_ADDITION = (
    "{a}+{b}=？",
    "{a}+{b}等于多少？",
    "{a}+{b}是多少？",
    "{a}加{b}等于多少？",
    "{a}加{b}等于几？",
    "{a}加上{b}是多少？",
    "请计算：{a}+{b}",
    "帮我算一下{a}+{b}。",
    "算一算，{a}+{b}得多少？",
    "{a}与{b}的和是多少？",
)
_SUBTRACTION = (
    "{a}-{b}=？",
    "{a}-{b}等于多少？",
    "{a}-{b}是多少？",
    "{a}减{b}等于多少？",
    "{a}减{b}等于几？",
    "{a}减去{b}是多少？",
    "请计算：{a}-{b}",
    "帮我算一下{a}-{b}。",
    "算一算，{a}-{b}得多少？",
    "{a}与{b}的差是多少？",
)
_WORDINGS = {"+": _ADDITION, "-": _SUBTRACTION}
# Boys' names: one scene refers back with 他.
_PEOPLE = ("小明", "小刚", "小强", "小军", "小亮", "小杰", "小东", "小华")


@dataclass(frozen=True, slots=True)
class Problem:
    """One ordered problem; for a subtraction a >= b."""

    a: int
    sign: str
    b: int

    @property
    def pair(self) -> tuple[int, int]:
        return (min(self.a, self.b), max(self.a, self.b))

    @property
    def result(self) -> int:
        return self.a + self.b if self.sign == "+" else self.a - self.b

    @property
    def equation(self) -> str:
        return f"{self.a}{self.sign}{self.b}={self.result}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A story for one sign, with the operands that keep it believable."""

    sign: str
    first: range
    second: range
    question: str
    conclusion: str

    def fits(self, problem: Problem) -> bool:
        return problem.sign == self.sign and problem.a in self.first and problem.b in self.second


def problems() -> list[Problem]:
    """Every addition and subtraction with operands and result in 0..100, in a fixed order."""
    found = []
    for a in range(LIMIT + 1):
        found += [Problem(a, "+", b) for b in range(LIMIT + 1 - a)]
        found += [Problem(a, "-", b) for b in range(a + 1)]
    return found


def heldout_pairs() -> frozenset[tuple[int, int]]:
    """The unordered pairs that no training record may touch."""
    pairs = [(a, b) for a in range(LIMIT + 1) for b in range(a, LIMIT + 1)]
    return frozenset(random.Random(2201).sample(pairs, round(HELDOUT_SHARE * len(pairs))))


def scenes() -> list[Scene]:
    """The stories of the table beside this module."""
    rows = [line.split("\t") for line in SCENES_FILE.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    return [Scene(sign, _span(first), _span(second), question, end) for sign, first, second, question, end in rows]


def _span(text: str) -> range:
    """Read 2-60 as 2 to 60, both included."""
    low, high = text.split("-")
    return range(int(low), int(high) + 1)


def _record(problem: Problem, kind: str, question: str, answer: str, *, heldout: bool) -> dict[str, Any]:
    low, high = problem.pair
    record: dict[str, Any] = {
        "conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "kind": kind,
        "group": f"arithmetic:{low:03d},{high:03d}",
    }
    if heldout:
        record["split"] = "heldout"
    return record


def _plain(heldout: frozenset[tuple[int, int]], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Each training problem in two wordings, each held-out problem in one."""
    for problem in problems():
        is_heldout = problem.pair in heldout
        for wording in rng.sample(_WORDINGS[problem.sign], 1 if is_heldout else 2):
            question = wording.format(a=problem.a, b=problem.b)
            yield _record(problem, "plain", question, f"{problem.equation}。", heldout=is_heldout)


def _word(
    heldout: frozenset[tuple[int, int]], rng: random.Random, *, is_heldout: bool, count: int
) -> Iterator[dict[str, Any]]:
    """`count` word problems of one side, spread evenly over the scenes; no scene meets a problem twice."""
    # A difference of nothing or a share of everything makes a poor story, so results of 0 stay out.
    side = [problem for problem in problems() if (problem.pair in heldout) == is_heldout and problem.result > 0]
    stories = scenes()
    shares = [count // len(stories) + (index < count % len(stories)) for index in range(len(stories))]
    for scene, share in zip(stories, shares, strict=True):
        for problem in rng.sample([problem for problem in side if scene.fits(problem)], share):
            who, other = rng.sample(_PEOPLE, 2)
            slots = {"a": problem.a, "b": problem.b, "c": problem.result, "who": who, "other": other}
            answer = f"{problem.equation}，{scene.conclusion.format(**slots)}"
            yield _record(problem, "word", scene.question.format(**slots), answer, heldout=is_heldout)


def records() -> Iterator[dict[str, Any]]:
    """Chat records with `kind` ("plain" or "word") and `group`; held-out ones carry `split`."""
    heldout, rng = heldout_pairs(), random.Random(2202)
    yield from _plain(heldout, rng)
    yield from _word(heldout, rng, is_heldout=False, count=NUM_WORD_TRAINING)
    yield from _word(heldout, rng, is_heldout=True, count=NUM_WORD_HELDOUT)
