"""Multiple choice (question, options A, B, ... and answer) as a question and its answer."""

import re
from collections.abc import Mapping
from typing import Any

from dataset.records.columns import QUESTIONS, question_parts
from dataset.records.record import BadRecord

_CHOICES = ("options", "choices", "choice")
_LETTERS = "ABCDEFGH"
_OWN_LETTER = re.compile(r"^\s*[(（]?[A-H]\s*[)）.．、:：]\s*")


def is_multiple_choice(fields: Mapping[str, Any]) -> bool:
    """Whether a record has options, each in a column named by its letter, or all in one column."""
    return ("A" in fields and "B" in fields) or any(isinstance(fields.get(name), list | dict) for name in _CHOICES)


def multiple_choice(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The question with its lettered options, and the answer with its letter. Raises: BadRecord."""
    if not any(isinstance(fields.get(name), str) and fields[name].strip() for name in QUESTIONS):
        raise BadRecord("multiple choice without a question")
    options = _options(fields)
    letter = _answer_letter(fields, options)
    lines = [part.strip() for part in question_parts(fields)]
    lines += [f"{name}. {text}" for name, text in options.items()]
    return "\n".join(lines), f"答案：{letter}。{options[letter]}"


def _options(fields: Mapping[str, Any]) -> dict[str, str]:
    """Letter -> text of each option, without a letter in the text itself. Raises: BadRecord."""
    listed = next((fields[name] for name in _CHOICES if isinstance(fields.get(name), list | dict)), None)
    if isinstance(listed, dict):
        options = dict(listed)
    elif listed is not None:
        if len(listed) > len(_LETTERS):
            raise BadRecord("multiple choice with more options than letters")
        options = dict(zip(_LETTERS[: len(listed)], listed, strict=True))
    else:
        options = {letter: fields[letter] for letter in _LETTERS if fields.get(letter) not in (None, "")}
    # Numbers are options too, as texts. A letter at the start of an option ("A. 北京") goes.
    options = {letter: str(text) if isinstance(text, int | float) else text for letter, text in options.items()}
    if len(options) < 2 or not all(isinstance(text, str) and text.strip() for text in options.values()):
        raise BadRecord("multiple choice without options")
    return {letter: _OWN_LETTER.sub("", text).strip() or text.strip() for letter, text in options.items()}


def _answer_letter(fields: Mapping[str, Any], options: dict[str, str]) -> str:
    """The letter of the right option. It is given as a letter, an index from 0, or the text.

    Raises: BadRecord when it is none of the options.
    """
    given = next(
        (fields[name] for name in ("answer", "Answer", "label") if fields.get(name) not in (None, "", [])), None
    )
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(options):
        return list(options)[given]
    if isinstance(given, str):
        letter = given.strip().strip("()（）.。").upper()
        if letter in options:
            return letter
        for name, text in options.items():
            if text == _OWN_LETTER.sub("", given).strip() or text == given.strip():
                return name
    raise BadRecord("multiple choice without a valid answer")
