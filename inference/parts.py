"""Thought, answer and tool calls of a text that grows, told apart by the marks between them."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from dataset.chat import ChatFormat
from dataset.tokenizer import RustBPETokenizer

PartKind = Literal["answer", "thought", "call"]


def marks_of(chat_format: ChatFormat) -> dict[str, PartKind]:
    """Mark -> what follows it."""
    think, answer = chat_format.thought
    call, after_call = chat_format.tool_call
    return {think: "thought", answer: "answer", call: "call", after_call: "answer"}


class Part(NamedTuple):
    """A piece of the text, and what it belongs to. A call comes whole."""

    kind: PartKind
    text: str


class Splitter:
    """Takes a text piece by piece, and gives its parts as soon as they are sure."""

    def __init__(self, marks: dict[str, PartKind], *, begins_with_thought: bool = False) -> None:
        """Args: marks: of `marks_of`. begins_with_thought: the prompt has opened it already."""
        self._marks, self._mark = marks, re.compile("|".join(map(re.escape, marks)))
        self._kind: PartKind = "thought" if begins_with_thought else "answer"
        self._held_back, self._call = "", ""

    def add(self, text: str, *, last: bool = False) -> Iterator[Part]:
        """Args: last: nothing follows, so nothing is held back."""
        text, start = self._held_back + text, 0
        for mark in self._mark.finditer(text):
            yield from self._take(text[start : mark.start()])
            yield from self._end_call()
            self._kind, start = self._marks[mark[0]], mark.end()
        end = len(text) - (0 if last else self._begun_mark(text[start:]))
        self._held_back = text[end:]
        yield from self._take(text[start:end])
        if last:
            yield from self._end_call()

    def _begun_mark(self, text: str) -> int:
        """Characters at the end of a text that may begin a mark. All marks begin with `<`."""
        place = text.rfind("<")
        end = text[place:] if place >= 0 else ""
        return len(end) if end and any(mark.startswith(end) for mark in self._marks) else 0

    def _take(self, text: str) -> Iterator[Part]:
        if self._kind == "call":
            self._call += text
        elif text:
            yield Part(self._kind, text)

    def _end_call(self) -> Iterator[Part]:
        if self._kind == "call":
            call, self._call = self._call, ""
            # What is no call is shown as it is, since nothing may be lost.
            yield Part("call" if parse_call(call) else "answer", call)


def opens_thought(prompt: Sequence[int], tokenizer: RustBPETokenizer) -> bool:
    """Whether a prompt ends where a thought begins: its last mark, but for line ends, says so."""
    return tokenizer.decode(prompt[-8:]).rstrip().endswith(tokenizer.chat_format.thought[0])


def split(text: str, chat_format: ChatFormat, *, begins_with_thought: bool = False) -> tuple[str, str]:
    """Thought and answer of a whole text. The answer is empty if the thought has no end."""
    splitter = Splitter(marks_of(chat_format), begins_with_thought=begins_with_thought)
    parts = list(splitter.add(text, last=True))
    thought, answer = ("".join(p.text for p in parts if (p.kind == "thought") == wanted) for wanted in (True, False))
    return thought, answer


def parse_call(text: str) -> dict[str, Any] | None:
    """`{"name": ..., "arguments": ...}` in OpenAI's form, its arguments as JSON text; else None."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"name": call["name"], "arguments": arguments}
