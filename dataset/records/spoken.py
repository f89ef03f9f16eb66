"""Several turns inside one text: `Human:` and `Assistant:` (BELLE, HH-RLHF), and MOSS's marks."""

import re
from collections.abc import Mapping
from typing import Any

from dataset.records.record import BadRecord, Message
from dataset.records.turns import assistant_turn, user_turn

_SPOKEN = re.compile(r"(?:^|\n)\s*(Human|Assistant)\s*[:：][ \t]*")
_MOSS_MARKS = re.compile(r"<\|\w+(?: \w+)?\|>:?|<eo\w>")


def spoken_turns(text: str) -> list[Message]:
    """The turns of a text that marks them by `Human:` and `Assistant:`; none for another text.

    BELLE's multi-turn set and HH-RLHF are written so.
    """
    if not text.lstrip().startswith(("Human:", "Human：")):
        return []
    _, *pieces = _SPOKEN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[name], "content": said.strip()} for name, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return turns if any(turn["role"] == "assistant" for turn in turns) else []


def moss_turns(chat: Mapping[str, Any]) -> list[Message]:
    """The turns of MOSS's `chat`: `turn_1`, `turn_2` ... with `Human` and `MOSS`.

    Raises: BadRecord for a turn without them, or one that calls a plugin.
    """
    messages: list[Message] = []
    for turn in chat.values():
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("Human"), str)
            or not isinstance(turn.get("MOSS"), str)
        ):
            raise BadRecord("a turn of chat without Human and MOSS")
        for name in ("Inner Thoughts", "Commands", "Tool Responses"):
            plugin = _MOSS_MARKS.sub("", str(turn.get(name) or "")).strip()
            if plugin and plugin != "None":
                raise BadRecord(f"{name}: a call of MOSS's own plugins")
        human, moss = (_MOSS_MARKS.sub("", turn[name]).strip() for name in ("Human", "MOSS"))
        messages += [user_turn(human), assistant_turn(moss)]
    return messages


def moss_plain_turns(text: str) -> list[Message]:
    """The turns of MOSS 002's text: `[Human]: ... <eoh> [MOSS]: ... <eoa>`."""
    _, *pieces = re.split(r"\[(Human|MOSS)\]\s*[:：]", text)
    said = zip(pieces[::2], pieces[1::2], strict=True)
    return [
        user_turn(t) if who == "Human" else assistant_turn(t)
        for who, piece in said
        for t in [_MOSS_MARKS.sub("", piece).strip()]
    ]
