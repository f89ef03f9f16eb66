"""Thought and answer inside one text, between `<think>` and `<answer>`, as in data of R1.

    <think>12+7=19。19-5=14。</think><answer>答案是14。</answer>         (minimind's r1_mix)
    <think>\n12+7=19。19-5=14。\n</think>\n\n答案是14。                (DeepSeek R1, Qwen3)

become `reasoning_content` and `content`. A text that only speaks of such marks stays as it is.
"""

import re
from typing import Any

_WHOLE = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
"""minimind's form: all four marks, nothing before, between or after them."""
_LINES = re.compile(r"\s*<think>\n(.*\n|)</think>\n(.*)", re.DOTALL)
"""R1's form. Only line ends tell it from a text about the marks, so they are required."""
_BORDER = re.compile(r"</think>\s*<answer>")
_MARKS = ("<think>", "</think>", "<answer>", "</answer>")


def with_thought_apart(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's message with `reasoning_content`, if its content holds thought and answer.

    An empty thought becomes `enable_thinking: false`: in Qwen3's data it stands before the answers
    to prompts that were rendered so.
    """
    content = message["content"]
    if "</think>" not in content or message["role"] != "assistant" or message.get("reasoning_content"):
        return message
    parts = _parts(content)
    if parts is None:
        return message
    thought, answer = (part.strip() for part in parts)
    more: dict[str, Any] = {"reasoning_content": thought} if thought else {"enable_thinking": False}
    return {**message, "content": answer, **more}


def _parts(content: str) -> tuple[str, str] | None:
    """Thought and answer; None if the text has neither form, or can be cut in two ways."""
    if found := _WHOLE.fullmatch(content):
        # Inside thought and answer a mark may be spoken of, but then the border must be plain.
        return (found[1], found[2]) if len(_BORDER.findall(content)) == 1 else None
    if (found := _LINES.fullmatch(content)) and not any(mark in found[1] or mark in found[2] for mark in _MARKS):
        return found[1], found[2]
    return None
