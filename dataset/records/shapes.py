"""Which record shapes (Alpaca, ShareGPT, ...) can be read, and how they become our three shapes.

- `{"text"}`, a document
- `{"conversations": [{"role", "content"}]}` with system, tool and reasoning fields
- ShareGPT (`from`/`value`), MOSS, Firefly, xtuner
- Alpaca (`instruction`/`input`/`output`) and its relatives
- preference pairs: `chosen`/`rejected` as lists, or as strings with a `prompt`; OpenAI, ms-swift
- multiple choice: question, A to D, answer; in JSON lines or in CSV

Some fields change the meaning: history, system, context, a mark that an answer is bad. We put such
a field where it belongs, or refuse the record and name the field. docs/formats.md has the table. A
record keeps its own fields. Our shape is in `text`, in `conversations`, or in `chosen` and
`rejected`.
"""

from collections.abc import Mapping
from typing import Any

from dataset.records.columns import ANSWERS, CONVERSATIONS, QUESTIONS
from dataset.records.conversation import chat_record, conversation_record, with_surroundings
from dataset.records.foreign_marks import without_foreign_marks
from dataset.records.instructions import first_answer, question_and_answer
from dataset.records.multiple_choice import is_multiple_choice, multiple_choice
from dataset.records.pairs import openai_preference, preference_record, swift_preference
from dataset.records.record import BadRecord, Record, TextRecord
from dataset.records.spoken import moss_plain_turns, moss_turns
from dataset.records.turns import assistant_turn, user_turn

_LISTS_OF_TURNS = ("items", "dialog", "dialogue", "turns", "chat_rounds")
"""Other names of a list of turns. They may also mean something else, so the value must be a list of
objects."""
_DOCUMENTS = ("content", "raw_content", "正文", "内容", "文本")
"""Names of a document, if the record has no `text` and no question."""
_WORSE = ("rejected_response", "rejected_messages")
"""ms-swift's names for the worse answer, or the worse conversation."""


def parse_record(fields: Mapping[str, Any]) -> Record:
    """Bring one record into one of our three shapes. docs/formats.md lists the fields that we know.

    The order of the questions matters: a record often has fields of several shapes.
    Raises: BadRecord with the reason, LeftOut for a record that is marked as not for training.
    """
    # Pairs come first: beside their two answers they also have a prompt or a conversation.
    if fields.get("chosen") is not None or fields.get("rejected") is not None:
        return preference_record(fields, fields.get("chosen"), fields.get("rejected"))
    if fields.get("preferred_output") is not None or fields.get("non_preferred_output") is not None:
        return openai_preference(fields)
    for name in _WORSE:
        if fields.get(name):
            good = {key: value for key, value in fields.items() if key not in _WORSE}
            return swift_preference(good, parse_record(good), fields[name])
    # Then conversations, under the names that mean nothing else.
    for name in CONVERSATIONS:
        if fields.get(name) is not None:
            return conversation_record(fields, fields[name])
    if isinstance(fields.get("chat"), dict):
        return conversation_record(fields, moss_turns(fields["chat"]))
    # Multiple choice also has a question and an answer, so it comes before those.
    if is_multiple_choice(fields):
        question, answer = multiple_choice(fields)
        return chat_record(fields, with_surroundings(fields, [user_turn(question), assistant_turn(answer)]))
    for name in _LISTS_OF_TURNS:
        if isinstance(fields.get(name), list) and all(isinstance(turn, dict) for turn in fields[name]):
            return conversation_record(fields, fields[name])
    if isinstance(fields.get("plain_text"), str) and "[Human]" in fields["plain_text"]:
        return conversation_record(fields, moss_plain_turns(fields["plain_text"]))
    # Question and answer. With a `text` too it needs a question: `text` and `answer` alone may be a
    # document and its label.
    if fields.get("answers") is not None and not any(fields.get(name) is not None for name in ANSWERS):
        fields = {**fields, "answer": first_answer(fields["answers"])}
    answered = any(fields.get(name) is not None for name in ANSWERS)
    if answered and ("text" not in fields or any(fields.get(name) for name in QUESTIONS)):
        return question_and_answer(fields)
    # What is left may be a document.
    text_name = _text_name(fields)
    if text_name:
        text = fields[text_name]
        if not isinstance(text, str):
            raise BadRecord("text is not a string")
        text, marks = without_foreign_marks(text)
        if not text.strip():
            raise BadRecord("empty text")
        return TextRecord(text, {**fields, "text": text}, marks)
    raise BadRecord(_why_unknown(fields))


def _text_name(fields: Mapping[str, Any]) -> str:
    """The name of the field that holds a document; "" if there is none."""
    if "text" in fields:
        return "text"
    if any(fields.get(name) for name in (*QUESTIONS, "desc", "description")):
        return ""
    return next((name for name in _DOCUMENTS if isinstance(fields.get(name), str)), "")


def _why_unknown(fields: Mapping[str, Any]) -> str:
    """Why a record has none of our shapes: a shape that we can't read, or just its fields."""
    if "paragraphs" in fields or "qas" in fields:
        return "SQuAD's nested paragraphs: write one question, context and answer a line"
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            if "paragraphs" in value[0]:
                return "SQuAD's nested paragraphs: write one question, context and answer a line"
            return f"unknown shape: its records are in the list {name[:20]}: write them one a line (jq -c '.{name[:20]}[]')"
    names = ", ".join(str(name)[:20] for name in list(fields)[:6])
    return f"unknown shape: fields {names}" if names else "unknown shape"
