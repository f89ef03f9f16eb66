"""Answers that are thought about first: which are right, and which are well formed.

A problem is asked twice: in the form that thinks, and in the form that does not. Nothing that
stands in a thought can make an answer right.
"""

import re
from collections.abc import Collection

from dataset.chat import ChatFormat
from evaluation.answers import Key, Said, normalize
from evaluation.questions import Question
from inference.engine import Answer

_SENTENCE_END = re.compile(r"[。！？!?\n]+")


class LastSentenceRule:
    """The strict rule of reasoning: the whole last sentence of the answer is the expected one.

    A right number in another sentence does not count: not before it, and not inside a thought,
    which is no part of the answer. Spaces and punctuation do not matter.
    """

    has_more = False

    def __init__(self, question: Question) -> None:
        self.right = {last_sentence(text) for text in (question.expected, *question.accepted)} - {""}

    @property
    def keys(self) -> Collection[Key]:
        """Answers of one sentence that are right."""
        return [("text", text) for text in self.right]

    def broken(self, said: Said) -> str:
        """What is wrong with an answer; empty if it is right."""
        if not said.plain:
            return "empty"
        return "" if last_sentence(said.text) in self.right else "another last sentence"


def last_sentence(text: str) -> str:
    """The last sentence of a text, without spaces and punctuation; empty if there is none."""
    return next(filter(None, map(normalize, reversed(_SENTENCE_END.split(text)))), "")


def is_well_formed(said: Answer, chat_format: ChatFormat) -> bool:
    """Whether an answer to a prompt that opens a thought has one thought, then words, then its end.

    Args: said: with all that was `written`.
    """
    begin, end = chat_format.thought
    thought, closed, answer = said.written.partition(end)
    return (
        said.ended
        and bool(closed and thought.strip() and answer.strip())
        and begin not in thought.lstrip().removeprefix(begin)  # other formats let the model write the first mark
        and begin not in answer
        and end not in answer
    )
