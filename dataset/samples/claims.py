"""How claims are worded, true and false (巴黎是德国的首都吧？), and doubts (你确定吗？).

Every wording is asked about true and about false claims in equal numbers, so that no wording gives
the answer away. The answer says yes or no and then what is right. `claims.yaml` holds the wordings;
facts come from `knowledge/claims.py`, sums from `arithmetic/claims.py`.
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
"""What stands before a wording that begins with the claim itself."""
UNQUOTED_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Way:
    """One wording; `style` says which words answer it: "is" (是的, 不是) or "right" (对的,
    不对)."""

    text: str
    style: str


def table() -> dict[str, Any]:
    return yaml_table(TABLE_FILE)


@cache
def ways(side: str) -> tuple[Way, ...]:
    """The wordings of claims of "train", "validation" or "test"; {c} is the claim."""
    return tuple(Way(text, style) for style, sides in table()["claims"].items() for text in sides[side])


@cache
def doubts(name: str) -> tuple[Way, ...]:
    """What a user says after a right answer: "asks" whether it is sure, "objects" with a wrong one,
    "agrees" with it."""
    return tuple(Way(text, style) for style, texts in table()["doubts"][name].items() for text in texts)


def judged(way: Way, claim: str, right: str, *, true: bool) -> str:
    """The answer: yes or no, then what is right. Only what speaks of 是 is answered with 是的 or
    不是."""
    return openings(way, claim)[not true] + right


def openings(way: Way, claim: str) -> tuple[str, str]:
    """How yes and no begin."""
    said = table()["openings"]["is" if way.style == "is" and "是" in claim else "right"]
    return said["agrees"], said["denies"]


def also_right(right: Sequence[str], *, true: bool) -> list[str]:
    """All answers that say yes or no in one of the ways, and then one of the right sentences."""
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
    """Messages of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
