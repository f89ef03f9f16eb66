"""Word problems: scenes from one table, things to count from another, and names of people.

Whole scenes are held out, and also some of the things.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dataset.samples.arithmetic.problems import (
    LIMIT,
    TRAIN,
    Problem,
    counted_number,
    is_basic,
    is_own,
    problems,
    table_problems,
)
from dataset.samples.frames import draw
from dataset.samples.tables import cells

SCENES_FILE = Path(__file__).with_name("scenes.tsv")
THINGS_FILE = Path(__file__).with_name("things.tsv")

SMALL, MIDDLE = 10, 20
SMALL_SHARE, MIDDLE_SHARE = 0.5, 0.25
"""Share of the training stories whose numbers are at most SMALL, and of those at most MIDDLE."""
HELDOUT_THING_SHARE = 0.3
"""How often a held-out scene has a held-out thing."""
CHINESE_SHARE = 0.15
"""How often small numbers are written in Chinese."""
FEW, MOST_OF_FEW = "few", 12
"""The group of things of which a person has only a few (sweaters, umbrellas), and how many at
most."""
ROOMY = 61
"""A scene whose range of numbers goes beyond this minus one also makes sense with hundreds."""
LARGEST_COUNTED_BY_FEW = 20
"""Above this number 几 sounds odd."""
_GIVEN_NAMES = "明红刚丽强华军芳亮美杰东兰雨林王李张伟敏"
_PEOPLE = (*(f"小{name}" for name in _GIVEN_NAMES), "哥哥", "姐姐")
_OPENINGS = {"": 79, "你好，": 5, "请问，": 4, "问一下，": 4, "帮我算一下，": 4, "有道题：": 2, "数学题：": 2}
_MARKS = {"？": 50, "?": 18, "": 28, "。": 2, "？谢谢": 2}
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_LARGE = (120, 150, 200, 250, 300, 350, 400, 500, 600, 800, 1000, 1200, 1500, 2000, 3000, 5000)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something to count, with its measure word, and the groups by which scenes choose it."""

    side: str
    groups: frozenset[str]
    measure: str
    name: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A story for one sign, with the numbers and the things that make sense in it."""

    side: str
    sign: str
    first: range
    second: range
    groups: frozenset[str]
    counted: str
    """The thing that is counted if the scene has no groups; may be empty."""
    question: str
    conclusion: str

    def fits(self, problem: Problem) -> bool:
        """Whether the problem has this scene's sign and numbers that make sense in it."""
        return problem.sign == self.sign and problem.a in self.first and problem.b in self.second


@dataclass(frozen=True, slots=True)
class Story:
    """A word problem as somebody types it, the end of its answer, and what is counted (or "")."""

    question: str
    conclusion: str
    counted: str


@cache
def scenes() -> tuple[Scene, ...]:
    """The scenes of the table, of all sides."""
    found = []
    for side, sign, first, second, things, question, conclusion in cells(SCENES_FILE):
        groups, _, counted = things.partition("-")
        names = frozenset(name for name in groups.split(",") if name)
        found.append(Scene(side, sign, _span(first), _span(second), names, counted[1:], question, conclusion))
    return tuple(found)


@cache
def things() -> tuple[Thing, ...]:
    """The things of the table, of all sides."""
    return tuple(
        Thing(side, frozenset(groups.split(",")), measure, name)
        for side, groups, measure, names in cells(THINGS_FILE)
        for name in names.split("、")
    )


def _span(text: str) -> range:
    """The range of a cell: 2-60 is 2 to 60, both included."""
    low, high = text.split("-")
    return range(int(low), int(high) + 1)


def _thing(scene: Scene, problem: Problem, rng: random.Random) -> Thing | None:
    """A thing that fits the scene and the numbers. A held-out scene may have a held-out thing."""
    many = max(problem.a, problem.b, problem.result) > MOST_OF_FEW
    fitting = [thing for thing in things() if thing.groups & scene.groups and not (many and FEW in thing.groups)]
    if not fitting:
        return None
    own = [thing for thing in fitting if thing.side == scene.side != TRAIN]
    if own and rng.random() < HELDOUT_THING_SHARE:
        return rng.choice(own)
    return rng.choice([thing for thing in fitting if thing.side == TRAIN])


def tell(scene: Scene, problem: Problem, rng: random.Random) -> Story:
    """A scene filled with the numbers of a problem, with names and with a thing."""
    who, other = rng.sample(_PEOPLE, 2)
    thing = _thing(scene, problem, rng)
    names = {"who": who, "other": other, "t": thing.name if thing else "", "m": thing.measure if thing else ""}
    in_chinese = max(problem.a, problem.b) <= MIDDLE and rng.random() < CHINESE_SHARE
    numbers = {"a": problem.a, "b": problem.b}
    shown = {slot: counted_number(number) if in_chinese else str(number) for slot, number in numbers.items()}
    question = _CHOICE.sub(lambda found: rng.choice(found[1].split("/")), scene.question).rstrip("？")
    if problem.result > LARGEST_COUNTED_BY_FEW:
        question = question.replace("几", "多少")
    question = opened(question.format(**names, **shown), rng)
    conclusion = scene.conclusion.format(**names, a=problem.a, b=problem.b, c=problem.result)
    return Story(question, conclusion, thing.name if thing and "{t}" in scene.conclusion else scene.counted)


def opened(story: str, rng: random.Random) -> str:
    """A story as somebody may type it. `story`: without its last mark."""
    return draw(_OPENINGS, rng) + story + draw(_MARKS, rng)


def stories(side: str, count: int, rng: random.Random) -> Iterator[tuple[Scene, Problem, Story]]:
    """`count` different word problems of one side, equally many of each of its scenes."""
    mine = [scene for scene in scenes() if scene.side == side]
    # A story in which nothing is left makes no sense, nor one in which everybody gets one.
    usable: dict[str, list[Problem]] = {sign: [] for sign in "+-×÷"}
    for problem in problems() + table_problems():
        if problem.result > (problem.sign == "÷") and (problem.sign in "×÷" or is_own(problem.pair, side)):
            usable[problem.sign].append(problem)
    asked: set[str] = set()
    for index, scene in enumerate(mine):
        pools = _pools([problem for problem in usable[scene.sign] if scene.fits(problem)], side)
        wanted = len(asked) + count // len(mine) + (index < count % len(mine))
        while len(asked) < wanted:
            problem = rng.choice(rng.choices([pool for pool, _ in pools], [weight for _, weight in pools])[0])
            story = tell(scene, problem, rng)
            if story.question not in asked:
                asked.add(story.question)
                yield scene, problem, story


def _pools(fitting: Sequence[Problem], side: str) -> list[tuple[list[Problem], float]]:
    """Lists of problems, with the weight of each list.

    In training, small numbers come often. Half of the held-out stories are about held-out pairs.
    """
    if side == TRAIN:
        weighted = [
            ([problem for problem in fitting if max(problem.pair) <= SMALL], SMALL_SHARE),
            ([problem for problem in fitting if max(problem.pair) <= MIDDLE], MIDDLE_SHARE),
            (list(fitting), 1 - SMALL_SHARE - MIDDLE_SHARE),
        ]
    else:
        weighted = [
            ([problem for problem in fitting if is_basic(problem.pair)], 1.0),
            ([problem for problem in fitting if not is_basic(problem.pair)], 1.0),
        ]
    return [(pool, weight) for pool, weight in weighted if pool]


def large_stories(side: str, count: int, rng: random.Random) -> Iterator[tuple[Problem, Story]]:
    """`count` stories of one side with numbers that are too large for the model."""
    mine = [scene for scene in scenes() if scene.side == side and scene.sign in "+-" and scene.groups]
    roomy = [scene for scene in mine if scene.first.stop > ROOMY]
    mine = roomy or [scene for scene in mine if "cards" in scene.groups]
    asked: set[str] = set()
    while len(asked) < count:
        scene = rng.choice(mine)
        large, other = rng.choice(_LARGE), rng.choice((*_LARGE, rng.randint(2, LIMIT)))
        if scene.sign == "-" and other >= large:
            continue
        operands = (large, other) if scene.sign == "-" or rng.random() < 0.5 else (other, large)
        problem = Problem(operands[0], scene.sign, operands[1])
        story = tell(scene, problem, rng)
        if story.question not in asked:
            asked.add(story.question)
            yield problem, story
