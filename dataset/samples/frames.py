"""What people put around a question: a greeting before it, thanks behind it, or nothing.

A generator writes each question once, with all its marks (《静夜思》的作者是谁？). `framed` then
draws a way in which somebody may type it (你好 静夜思的作者是谁呀). In most questions it changes
only the mark at the end.

The form of a turn decides what may be put around it:

    ask     any question, also a formula
    wh      an open question; 我想知道 may come before it
    fact    a question about the world (法国首都, 法国的首都是哪里); 你知道…吗 may be around it
    do      a request
    say     something that is told
    sad     something that is told and hurts
    glad    something that is told and pleases
    line    a line of a poem, asked for the next one
    mark    a short turn (嗯, 你好), with nothing but a mark
"""

import random
import re
from collections.abc import Mapping
from typing import Literal

Form = Literal["ask", "wh", "fact", "do", "say", "sad", "glad", "line", "mark"]
Choices = Mapping[str, int]
"""Text -> its weight in the draw."""

BEFORE_SHARE: dict[Form, float] = {
    "ask": 0.25, "wh": 0.25, "fact": 0.4, "do": 0.2, "say": 0.06, "sad": 0.1, "glad": 0.1, "line": 0.14, "mark": 0.0,
}  # fmt: skip
"""How often something is put before a turn, by its form."""
AFTER_SHARE: dict[Form, float] = {
    "ask": 0.07, "wh": 0.14, "fact": 0.2, "do": 0.15, "say": 0.0, "sad": 0.2, "glad": 0.15, "line": 0.0, "mark": 0.0,
}  # fmt: skip
"""How often something is put after it."""
UNQUOTED_SHARE = 0.5
"""How often quotes and book marks are left out. Facts have wordings with and without them."""
AROUND: Choices = {"你知道{}吗": 7, "知道{}吗": 2, "能告诉我{}吗": 3, "你能告诉我{}吗": 2}
AROUND_SHARE = 0.14
"""How often AROUND is put around a fact that has nothing before it."""
HALF_WIDTH_SHARE = 0.06
"""How often all marks are those of an English keyboard."""
SPACED_SHARE = 0.06
"""How often spaces replace the commas."""

_GREETINGS: dict[str, int] = {"你好，": 6, "您好，": 2, "嗨，": 1, "哈喽，": 1, "在吗，": 1, "hi，": 1}
_ANY_QUESTION: dict[str, int] = {
    **_GREETINGS,
    "请问": 6, "请问一下，": 2, "请问，": 1, "你好，请问": 3, "您好，请问": 1, "问一下，": 2, "想问一下，": 2, "问你个问题，": 1,
    "我想问一下，": 1, "问个问题，": 1, "那": 2, "那么": 1, "嗯，": 1, "对了，": 2, "话说": 1, "诶，": 1, "我问你，": 1,
    "考考你，": 1, "顺便问一下，": 1, "再问一个，": 1, "麻烦问一下，": 1,
}  # fmt: skip
_OPEN_QUESTION: Choices = _ANY_QUESTION | {"我想知道": 3, "告诉我": 2, "我想问": 1, "说说": 1, "你说": 1}
_REQUEST: Choices = {
    **_GREETINGS,
    "请": 4, "你好，请": 1, "麻烦你": 1, "那": 2, "那就": 1, "嗯，": 1, "对了，": 1, "快": 1, "你": 1, "来，": 1, "好，": 1,
}  # fmt: skip
_STATEMENT: Choices = _GREETINGS | {"嗯，": 2, "对了，": 1, "那个，": 1, "喂，": 1}
BEFORE: dict[Form, Choices] = {
    "ask": _ANY_QUESTION,
    "wh": _OPEN_QUESTION,
    "fact": {
        "请问": 8,
        "请问一下，": 2,
        "你好，": 8,
        "你好，请问": 4,
        "您好，": 1,
        "那": 3,
        "嗯，": 2,
        "问一下，": 4,
        "想问一下，": 2,
        "问个问题，": 1,
        "考考你，": 2,
        "对了，": 1,
        "告诉我": 2,
        "我想知道": 2,
    },
    "do": _REQUEST,
    "say": _STATEMENT,
    "line": {"你好，": 10, "嗯，": 2, "您好，": 2},
    "sad": {"唉，": 4, "呜呜，": 3, "哎，": 1, "怎么办，": 1, "好难过，": 2, "你好，": 1},
    "glad": {"哈哈，": 4, "太好了，": 2, "耶，": 1, "嘿嘿，": 1, "告诉你，": 2, "你好，": 1},
    "mark": {"": 1},
}

_THANKS_ALONE: dict[str, int] = {"，谢谢": 4, "，谢谢你": 1, "，谢谢啦": 1, "？谢谢": 2, "，多谢": 1}
_THANKS: dict[str, int] = _THANKS_ALONE | {"，你知道吗": 2}
AFTER: dict[Form, Choices] = {
    "ask": _THANKS,
    "wh": _THANKS | {"呢": 5, "呀": 4, "啊": 4, "，告诉我": 1},
    "fact": _THANKS_ALONE | {"呢": 5, "呀": 2, "啊": 3},
    "do": {"吧": 6, "呗": 1, "，谢谢": 3, "，好吗": 2, "，可以吗": 1, "，行吗": 1, "，好不好": 1},
    "say": {"": 1},
    "sad": {
        "，好难过": 5,
        "，怎么办": 4,
        "，好难受": 2,
        "，心里难受": 2,
        "，心情不好": 2,
        "，想哭": 1,
        "，不知道怎么办": 1,
        "，安慰我一下": 1,
    },
    "glad": {
        "，好开心": 5,
        "，太开心了": 3,
        "，好高兴": 2,
        "，哈哈": 2,
        "，开心死了": 1,
        "，好激动": 1,
        "，快恭喜我": 1,
    },
    "line": {"": 1},
    "mark": {"": 1},
}

_QUESTION_MARKS: Choices = {"？": 42, "": 34, "?": 14, "！": 3, "。": 4, "??": 1, "？？": 1, "~": 1}
MARKS: dict[Form, Choices] = {
    "ask": _QUESTION_MARKS,
    "wh": _QUESTION_MARKS,
    "fact": {"？": 46, "": 27, "?": 12, "！": 4, "。": 3, "？？": 1, "~": 1},
    "do": {"": 48, "。": 34, "！": 7, "!": 2, "~": 3, ".": 2, "？": 1},
    "say": {"": 44, "。": 32, "！": 8, "…": 3, "……": 2, "!": 2, ".": 2, "。。。": 2},
    "sad": {"": 44, "。": 32, "！": 6, "…": 4, "……": 4, ".": 2, "。。。": 2},
    "glad": {"": 44, "。": 18, "！": 24, "!": 6, "~": 5, "！！": 1},
    "line": {"，": 40, "": 35, "……": 15, "？": 10},
    "mark": {"": 44, "。": 24, "！": 14, "~": 6, "!": 3, ".": 2},
}
"""The mark at the end, by form."""

_CLOSING: Choices = {"": 6, "。": 3, "！": 2, "~": 1, "!": 1}
_FORMULA: Choices = {"": 5, "?": 3, "？": 3}
_END = "？?。.！!~…，, "
_PARTICLES = ("呢", "吗", "啊", "呀", "吧", "嘛", "了", "哦", "么", "呗")
# A turn that begins like this gets nothing before it: two openings would sound odd (请问请,
# 你好，你好).
_OPENED = (
    "请", "你好", "您好", "那", "嗯", "问", "想问", "我想", "麻烦", "告诉", "说", "对了", "再问", "教", "讲", "解释", "介绍",
    "聊", "比较", "不知道", "唉", "呜呜", "哈哈", "耶",
)  # fmt: skip
_OPENED_REQUEST = (*_OPENED, "帮", "给", "你", "我", "能", "可以", "快", "再", "来", "换", "还", "陪", "不")
# A turn with one of these already says a feeling or asks for help, so nothing like it comes after:
# not 失恋了怎么办，怎么办.
_FELT = ("怎么", "难过", "难受", "开心", "高兴", "哭", "烦", "心情", "恭喜", "祝我")
_REQUESTING = re.compile(
    "介绍|简单介绍|给|讲|说|数一数|科普|解释|写|帮|用|教我|翻译|把|以|告诉|概括|赏析|总结|替我|举|来|求|列|我想知道|我想了解"
)
_ASKING = re.compile(
    "什么|谁|哪|几|多少|怎么|啥|咋|何|吗|多[大高长久远重深快厚早贵]|[是会能有]不[是会能]|有没有|还是|不$|没$"
)
"""Question words. A fact without one gets no particle: not 法国首都呢."""
_KNOWABLE = re.compile("(?!请|能|介绍|听说|了解|知道)[^你我，：]+(?<![吗呢吧呀啊没不])")
"""What may be put into 你知道…吗."""
_HALF_WIDTH = str.maketrans("，。？！：；（）", ",.?!:;()")
_NOT_IN_EARNEST = ("考考你", "告诉我你能", "告诉我你会", "告诉我你可以", "告诉我你知道", "告诉我你有")
_QUOTES = str.maketrans("", "", '“”‘’《》「」『』"')


def bare(question: str) -> str:
    """The question without the marks at its end."""
    return question.rstrip(_END) or question


def unquoted(question: str) -> str:
    """The question without quotes and book marks."""
    return question.translate(_QUOTES)


def half_width(question: str) -> str:
    """The question with the marks of an English keyboard."""
    return question.translate(_HALF_WIDTH)


def form_by_mark(wording: str) -> Form:
    """The form of a table's wording, by the mark at its end. A fact has none."""
    if wording.endswith("。"):
        return "do" if _REQUESTING.match(wording) else "say"
    if wording.endswith("？"):
        return "ask"
    return "line" if wording.endswith("，") else "fact"


def draw(choices: Choices, rng: random.Random) -> str:
    """One of the texts, drawn by weight."""
    left = rng.random() * sum(choices.values())
    for text, weight in choices.items():
        left -= weight
        if left < 0:
            return text
    raise ValueError("nothing to draw from")


def marked(question: str, rng: random.Random, form: Form = "ask") -> str:
    """The question with a drawn mark at its end, or with none."""
    text = bare(question)
    return text + draw(_FORMULA if text.endswith(("=", "＝")) else MARKS[form], rng)


def framed(question: str, rng: random.Random, form: Form = "ask") -> str:
    """The question as somebody may type it. Its words stay; most often only the mark changes."""
    text = bare(question)
    if rng.random() < UNQUOTED_SHARE and form != "fact":
        text = unquoted(text)
    opened = _OPENED_REQUEST if form == "do" else _OPENED
    # Nothing before a very short turn: 你好，烦 would look like 你好烦.
    long_enough = len(text) > 2 or form in ("ask", "wh")
    if rng.random() < BEFORE_SHARE[form] and long_enough and not text.startswith(opened):
        text = draw(BEFORE[form], rng) + text
    elif form == "fact" and rng.random() < AROUND_SHARE and _KNOWABLE.fullmatch(text):
        text = draw(AROUND, rng).format(text)
    after = draw(AFTER[form], rng) if rng.random() < AFTER_SHARE[form] else ""
    if form in ("sad", "glad") and any(word in text for word in _FELT):
        after = ""
    elif text.endswith(_PARTICLES) and (len(after) == 1 or after.endswith("吗")):
        after = ""  # one particle is enough
    elif form == "fact" and len(after) == 1 and not _ASKING.search(text):
        after = ""
    if "谢" in after or "告诉" in after:
        text = (text + after if not text.endswith(("=", "＝")) else f"{text}？谢谢") + draw(_CLOSING, rng)
    elif text.endswith(("=", "＝")):
        text = marked(text, rng)
    else:
        text = marked(text + after, rng, form)
    if rng.random() < HALF_WIDTH_SHARE:
        return half_width(text)
    return text.replace("，", " ").rstrip() if rng.random() < SPACED_SHARE else text


def in_earnest(question: str, rng: random.Random, form: Form = "ask") -> str:
    """As `framed`, for a question that the user really has.

    A quiz would sound odd there: no 考考你，胃疼几天能好, and no 告诉我你能付款吗.
    """
    text = framed(question, rng, form)
    while text.startswith(_NOT_IN_EARNEST) and not question.startswith(_NOT_IN_EARNEST):
        text = framed(question, rng, form)
    return text
