"""Rules that say whether an answer to a prompt is right, strict enough to be a reward.

A policy that is rewarded finds every gap of a rule. So a rule reads the whole last sentence, never
a number or a word somewhere inside it, and nothing that only makes an answer longer can help.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evaluation.answers import normalize
from evaluation.numbers import folded

SENTENCE_END = re.compile(r"[。！？!?\n]+")
_EQUATION = re.compile(r"(?:(?P<left>-?\d+\s*[+\-×÷*/]\s*\d+)\s*=\s*)?(?P<result>-?\d+)")
_HAN_SENTENCE = re.compile(r"[一-鿿]+(?:[，、][一-鿿]+)*[。！？]")
MOST_REPEATS = 2
"""How often one character may stand outside the given words. More is padding."""


class Rule(Protocol):
    """What makes an answer to one prompt right."""

    def well_formed(self, text: str) -> bool:
        """Whether an answer has the right form, be it right or wrong."""
        ...

    def broken(self, text: str) -> str:
        """What is wrong with an answer, in a few words; empty if it is right."""
        ...


def rule_of(record: Mapping[str, Any]) -> Rule:
    """The rule of a prompt's record.

    With `words` and `length`: a sentence that has them. Else by the gold answer, which is the last
    turn: an equation or a whole number, or a text.
    """
    if "words" in record and "length" in record:
        return SentenceRule(tuple(record["words"]), record["length"])
    gold = str(record["conversations"][-1]["content"])
    return EquationRule(gold) if parsed_equation(gold) else TextRule(gold)


@dataclass(frozen=True, slots=True)
class Equation:
    """The last sentence of an answer to a sum: `3+5=8`, or `8` alone."""

    left: str
    """Without spaces; empty if the sentence is the result alone."""
    result: int


def parsed_equation(text: str) -> Equation | None:
    """The last sentence as an equation or a number; None if it is anything else."""
    sentences = [part.strip() for part in SENTENCE_END.split(folded(text)) if part.strip()]
    # `folded` makes ASCII of full-width signs, so a full stop of either kind ends a sentence.
    found = _EQUATION.fullmatch(sentences[-1].rstrip(".")) if sentences else None
    if found is None or len(found["result"]) > 18:
        return None
    return Equation(re.sub(r"\s", "", found["left"] or ""), int(found["result"]))


class EquationRule:
    """The last sentence must be the gold equation, or its result alone."""

    def __init__(self, gold: str) -> None:
        """Raises: ValueError if the gold answer is no equation."""
        equation = parsed_equation(gold)
        if equation is None:
            raise ValueError(f"no equation: {gold}")
        self.gold = equation

    def well_formed(self, text: str) -> bool:
        """Whether the last sentence is an equation or a whole number."""
        return parsed_equation(text) is not None

    def broken(self, text: str) -> str:
        """Empty if the equation is the right one."""
        said = parsed_equation(text)
        if said is None:
            return "no equation"
        if said.left not in ("", self.gold.left):
            return "another problem"
        return "" if said.result == self.gold.result else "another number"


class SentenceRule:
    """One sentence of so many Chinese characters, with all of the given words and no padding."""

    def __init__(self, words: Sequence[str], length: int) -> None:
        """Args: length: characters, without the marks."""
        self.words, self.length = words, length

    def well_formed(self, text: str) -> bool:
        """Whether it is one sentence of Chinese characters that ends with a mark."""
        return bool(_HAN_SENTENCE.fullmatch(text.strip()))

    def broken(self, text: str) -> str:
        """Empty if the sentence keeps to the rule."""
        if not self.well_formed(text):
            return "not one sentence"
        rest = "".join(char for char in text if "一" <= char <= "鿿")
        if len(rest) != self.length:
            return "another length"
        for word in self.words:
            if word not in rest:
                return f"without {word}"
            rest = rest.replace(word, "", 1)
        # What stands beside the words must be a sentence. One character again and again, or a
        # given word said twice, would only fill the length.
        if any(rest.count(char) > MOST_REPEATS for char in rest) or any(word in rest for word in self.words):
            return "padded"
        return ""


class TextRule:
    """The gold answer itself; marks and spaces don't matter."""

    def __init__(self, gold: str) -> None:
        self.gold = normalize(gold)

    def well_formed(self, text: str) -> bool:
        """Whether there is an answer."""
        return bool(normalize(text))

    def broken(self, text: str) -> str:
        """Empty if it is the same text."""
        return "" if normalize(text) == self.gold else "another text"
