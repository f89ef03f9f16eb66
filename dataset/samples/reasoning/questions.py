"""Sample reasoning: problems of two and three steps, each answered with a thought and without.

The two records of a problem have the same question and the same answer. One has the steps as
`reasoning_content`, the other `enable_thinking: false`: so the model learns both, and that the
prompt decides (dataset/chat.py). No two sides share a problem (`Chain.key`) or a wording.

Training questions of other samples stand between them, in both forms too. Otherwise the switch
would mean "this is a problem": asked who it is with thinking switched on, the model would think
without end. Their thought is the one step that they need, or that there is nothing to work out. It
stands behind a prompt that opens it: nothing teaches the model to begin it by itself, as it shall
with a problem of several steps.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.samples.arithmetic.problems import HELDOUT_SIDES, TEST, TRAIN, VALIDATION, chinese_number, counted_number
from dataset.samples.arithmetic.stories import CHINESE_SHARE, MIDDLE, things
from dataset.samples.arithmetic.wordings import ask_expression, framed
from dataset.samples.generators import generated
from dataset.samples.reasoning.chains import Chain, draw_chain
from dataset.samples.tables import yaml_table

WORDINGS_FILE = Path(__file__).with_name("wordings.yaml")

KINDS = ("reasoning_thinking", "reasoning_plain")
"""With a thought, and without."""
NUM_PROBLEMS = {TRAIN: 12_000, VALIDATION: 200, TEST: 600}
OTHERS = {
    "arithmetic.questions": ("math", 800), "dialogue.everyday": ("general", 500),
    "knowledge.questions": ("knowledge", 500), "limits.questions": ("general", 200),
}  # fmt: skip
"""Generator -> category, and how many of its training questions are taken."""
NOTHING_TO_WORK_OUT = "这个不用算。"
FORMS = {"expression": 40, "told": 20, "story": 40}
"""How a problem is asked, by weight."""
IN_WORDS_SHARE = 0.35
"""How often a bare expression without products has words for its signs: 12加7减5."""
_WORDS = {"+": ("加", "再加", "加上"), "-": ("减", "再减", "减去")}
_PEOPLE = tuple(f"小{name}" for name in "明红刚丽强华军芳亮美杰东兰雨林王李张伟敏")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_ONE_STEP = re.compile(r"(\d+[-+×÷]\d+=-?\d+)[。，]")


def records() -> Iterator[dict[str, Any]]:
    """Chat records, two for each problem, of the category `math` and the kinds of KINDS.

    Held-out ones have `split`, and `cluster`, the key of the problem. Questions of other samples
    have the category of those, and no kind.
    """
    rng, side_of, asked = random.Random(1919), dict[str, str](), set[str]()
    for side in (TEST, VALIDATION, TRAIN):
        count = NUM_PROBLEMS[side]
        while count:
            form = rng.choices(list(FORMS), weights=list(FORMS.values()))[0]
            chain, question, answer = ASKERS[form](side, rng)
            if question in asked or side_of.setdefault(chain.key, side) != side:
                continue
            asked.add(question)
            count -= 1
            more = {"split": side, "cluster": chain.key} if side in HELDOUT_SIDES else {}
            for kind, turns in zip(KINDS, _both(question, answer, chain.thought), strict=True):
                yield {"conversations": turns, "category": "math", "kind": kind, "source": "reasoning", **more}
    yield from _others(rng)


def _both(question: str, answer: str, thought: str, **more: Any) -> Iterator[list[dict[str, Any]]]:
    """The turns of a question, answered with a thought and without. Args: more: keys of the answer
    with a thought."""
    ways: tuple[dict[str, Any], ...] = ({"reasoning_content": thought, **more}, {"enable_thinking": False})
    for way in ways:
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **way}]


def _others(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Training questions of other samples, of one turn, in both forms."""
    for name, (category, count) in OTHERS.items():
        single = [one for one in generated(name) if "split" not in one and len(one["conversations"]) == 2]
        for record in rng.sample(single, count):
            question, answer = (turn["content"] for turn in record["conversations"])
            step = _ONE_STEP.match(answer)
            thought = f"{step[1]}。" if step else NOTHING_TO_WORK_OUT
            for turns in _both(question, answer, thought, enable_thinking=True):
                yield {"conversations": turns, "category": category, "source": "reasoning"}


Asked = tuple[Chain, str, str]
"""A problem, its question, its answer."""


def _expression(side: str, rng: random.Random) -> Asked:
    """Such as 12+7-5等于多少？"""
    chain = draw_chain(rng)
    text = chain.expression
    if set(chain.signs) <= set(_WORDS) and rng.random() < IN_WORDS_SHARE:
        names = [_WORDS[chain.signs[0]][0], *(rng.choice(_WORDS[sign]) for sign in chain.signs[1:])]
        text = str(chain.numbers[0]) + "".join(
            f"{name}{number}" for name, number in zip(names, chain.numbers[1:], strict=True)
        )
    return chain, ask_expression(text, side, rng), f"答案是{chain.result}。"


def _told(side: str, rng: random.Random) -> Asked:
    """Such as 从12开始，加上7，再减5，得多少？"""
    chain = draw_chain(rng, in_order=True)
    wording = rng.choice(yaml_table(WORDINGS_FILE)["told"][side])
    return chain, framed(_clauses(chain, wording, {}, rng), rng, opens=True), f"答案是{chain.result}。"


def _story(side: str, rng: random.Random) -> Asked:
    """Such as 小明有12个梨，又买了7个，送给小红5个，现在有几个梨？"""
    wording = rng.choice(yaml_table(WORDINGS_FILE)["stories"][side])
    signs = [sign for sign in "+-×÷" if sign in wording]
    while True:
        chain = draw_chain(rng, in_order=True, signs=signs)
        # In a story that multiplies or divides, that is its first step, and each happens once.
        if not set(signs) & set("×÷") or (chain.signs[0] in "×÷" and not set(chain.signs[1:]) & set("×÷")):
            break
    who, other = rng.sample(_PEOPLE, 2)
    groups = set(wording["groups"].split(","))
    fitting = [
        thing for thing in things() if thing.groups & groups and thing.side == TRAIN and "few" not in thing.groups
    ]
    thing = rng.choice(fitting) if fitting else None
    names = {"who": who, "other": other, "t": thing.name if thing else "", "m": thing.measure if thing else ""}
    question = framed(_clauses(chain, wording, names, rng), rng, opens=True)
    return chain, question, wording["says"].format(**names, c=chain.result) + "。"


ASKERS = {"expression": _expression, "told": _told, "story": _story}


def _clauses(chain: Chain, wording: dict[str, str], names: dict[str, str], rng: random.Random) -> str:
    """The first number, a clause for each step, and the question.

    A wording of a step may have two parts with | between them: for the first step, and for later
    ones.
    """
    numbers = [str(number) for number in chain.numbers]
    if max(chain.numbers) <= MIDDLE and rng.random() < CHINESE_SHARE:
        numbers = [(counted_number if names else chinese_number)(number) for number in chain.numbers]
    clauses = [wording["first"].replace("{a}", numbers[0])]
    for place, (sign, number) in enumerate(zip(chain.signs, numbers[1:], strict=True)):
        ways = wording[sign].split("|")
        clauses.append(_chosen(ways[min(place, len(ways) - 1)], rng).replace("{n}", number))
    return _chosen("，".join([*clauses, wording["asks"]]), rng).format(**names)


def _chosen(text: str, rng: random.Random) -> str:
    """A wording with one of its alternatives for each [x/y]."""
    return _CHOICE.sub(lambda found: rng.choice(found[1].split("/")), text)
