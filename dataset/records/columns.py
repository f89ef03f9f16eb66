"""The columns (fields) that hold a question, a passage or an answer, and how they are joined."""

from collections.abc import Mapping
from typing import Any

from dataset.records.record import BadRecord

CONVERSATIONS = ("conversations", "messages", "conversation")
TASKS = ("instruction", "prompt", "指令", "textbox_q_instruction")
PASSAGES = (
    "passage",
    "context",
    "content",
    "paragraph",
    "article",
    "document",
    "background",
    "上下文",
    "材料",
    "背景",
    "textbox_q_context",
)
QUERIES = ("question", "Question", "query", "input", "problem", "问题", "输入", "textbox_question")
QUESTIONS = (*TASKS, *QUERIES)
ANSWERS = ("output", "response", "completion", "answer", "golden", "target", "回答", "答案", "输出", "textbox_answer")


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """The text of a question or a passage. A passage may be a list of texts. Raises: BadRecord."""
    value = fields[name]
    if isinstance(value, list) and name in PASSAGES and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadRecord("question or answer is not a string" if name in QUESTIONS else f"{name} is not a string")
    return value


def question_parts(fields: Mapping[str, Any]) -> list[str]:
    """The parts of a question: the task, the passage, the question itself, equal texts only once.

    Raises: BadRecord for a part that is not text.
    """
    parts: list[str] = []
    for name in (*TASKS, *PASSAGES, *QUERIES):
        if not fields.get(name):
            continue
        text = text_of(fields, name)
        if text.strip() and text.strip() not in [part.strip() for part in parts]:
            parts.append(text)
    return parts
