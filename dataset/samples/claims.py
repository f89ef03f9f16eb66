"""How claims are worded, true and false (巴黎是德国的首都吧？), and doubts (你确定吗？).

Every wording is used for true and for false claims in equal numbers, so that the wording does not
tell the answer. The answer says yes or no, then what is right. The wordings are in `claims.yaml`.
`knowledge/claims.py` brings the facts, `arithmetic/claims.py` the sums.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dataset.samples.frames import bare, draw, form_by_mark, marked, unquoted
from dataset.samples.tables import yaml_table

TABLE_FILE = Path(__file__).with_name("claims.yaml")
KIND = "claims"
HALVES = ("validation", "test")
BEFORE = {"": 24, "请问": 2, "你好，": 2, "那": 1, "嗯，": 1, "问一下，": 1}
"""What may be put before a wording that begins with the claim itself, by weight."""
UNQUOTED_SHARE = 0.4
"""How often quotes and book marks are left out."""


@dataclass(frozen=True, slots=True)
class Way:
    """One wording. `style` names the words of the answer: "is" 是的, 不是; "right" 对的, 不对."""

    text: str
    style: str


def table() -> dict[str, Any]:
    """The wordings and the answers' openings."""
    return yaml_table(TABLE_FILE)


@cache
def ways(side: str) -> tuple[Way, ...]:
    """The wordings of claims for "train", "validation" or "test". {c} stands for the claim."""
    return tuple(Way(text, style) for style, sides in table()["claims"].items() for text in sides[side])


@cache
def doubts(name: str) -> tuple[Way, ...]:
    """What a user may say after a right answer.

    `name`: "asks" whether it is sure, "objects" with a wrong answer, or "agrees".
    """
    return tuple(Way(text, style) for style, texts in table()["doubts"][name].items() for text in texts)


def judged(way: Way, claim: str, right: str, *, true: bool) -> str:
    """The answer to a claim: yes or no, then what is right."""
    return openings(way, claim)[not true] + right


def openings(way: Way, claim: str) -> tuple[str, str]:
    """How an answer begins that says yes, and one that says no. Only a claim with 是 gets 是的."""
    said = table()["openings"]["is" if way.style == "is" and "是" in claim else "right"]
    return said["agrees"], said["denies"]


def also_right(right: Sequence[str], *, true: bool) -> list[str]:
    """All right answers: any way to say yes (or no), then any of the right sentences."""
    return [said["agrees" if true else "denies"] + text for said in table()["openings"].values() for text in right]


def typed(way: Way, claim: str, rng: random.Random) -> str:
    """The claim in this wording as somebody may type it."""
    text = way.text.format(c=bare(claim))
    if rng.random() < UNQUOTED_SHARE:
        text = unquoted(text)
    if way.text.startswith("{c}"):
        text = draw(BEFORE, rng) + text
    return marked(text, rng, form_by_mark(way.text))


def conversation(*said: str) -> list[dict[str, str]]:
    """Messages of the user and the assistant, who take turns."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
