"""How people type a question: greetings and fillers before it, marks or nothing after it, thanks at the end."""

import random
import re

from dataset.samples.frames import draw

# Each text with its weight.
# fmt: off
OPENINGS = {
    "": 56, "请问": 8, "请问一下，": 3, "你好，": 8, "你好，请问": 4, "您好，": 1, "那": 3, "嗯，": 2, "问一下，": 4,
    "想问一下，": 2, "问个问题，": 1, "考考你，": 2, "对了，": 1,
}
TELLING = {"告诉我": 2, "我想知道": 2}
"""Openings that make a statement of the question."""
TELLING_ENDS = {"。": 5, "": 4, "？": 1}
AROUND = {"{}": 86, "你知道{}吗": 7, "知道{}吗": 2, "能告诉我{}吗": 3, "你能告诉我{}吗": 2}
ENDS = {"？": 46, "?": 12, "": 27, "。": 3, "！": 4, "？？": 1, " ？": 1}
PARTICLES = {"": 86, "呢": 7, "呀": 3, "啊": 4}
PARTICLE_ENDS = {"？": 6, "?": 2, "": 2}
WHOLE_OPENINGS = {"": 86, "你好，": 10, "嗯，": 2, "您好，": 2}
WHOLE_ENDS = {
    "？": {"？": 55, "?": 15, "": 25, "！": 3, "？？": 2},
    "。": {"。": 55, "": 32, "吧": 5, "吧。": 3, "！": 5},
    "，": {"，": 40, "": 35, "……": 15, "？": 10},
}
"""A question that ends with one of these marks is asked as it stands, but for the mark."""
# fmt: on
THANKS_SHARE = 0.08
THANKS = ("谢谢", "谢谢！", "谢谢。", "谢谢你", "谢谢你！", "谢谢啦", "多谢")
BEFORE_THANKS = ("？", "，", " ", "？", "，", "")
HALF_WIDTH_SHARE = 0.05
"""How often all marks are those of an English keyboard."""
SPACED_SHARE = 0.04
"""How often a space stands where a comma should."""
_HALF_WIDTH = str.maketrans("，。？！", ",.?!")

_ASKING = re.compile("什么|谁|哪|几|多少|怎么|啥|咋|何")
"""A question without these words takes no particle."""


def framed(question: str, rng: random.Random) -> str:
    """The question as somebody might type it."""
    if question[-1] in WHOLE_ENDS:
        asked, end = draw(WHOLE_OPENINGS, rng) + question[:-1], draw(WHOLE_ENDS[question[-1]], rng)
    else:
        opening = draw(OPENINGS | TELLING, rng)
        if opening in TELLING:
            asked, end = opening + question, draw(TELLING_ENDS, rng)
        else:
            around = draw(AROUND, rng)
            particle = draw(PARTICLES, rng) if around == "{}" and _ASKING.search(question) else ""
            asked, end = opening + around.format(question) + particle, draw(PARTICLE_ENDS if particle else ENDS, rng)
    if rng.random() < THANKS_SHARE:
        end = rng.choice(BEFORE_THANKS) + rng.choice(THANKS)
    if rng.random() < HALF_WIDTH_SHARE:
        return (asked + end).translate(_HALF_WIDTH)
    if rng.random() < SPACED_SHARE:
        return (asked + end).replace("，", " ").rstrip()
    return asked + end
