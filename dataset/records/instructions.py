"""Questions and answers in columns: Alpaca and its relatives, SQuAD, trl's completions."""

from collections.abc import Mapping
from typing import Any

from dataset.records.columns import ANSWERS, PASSAGES, QUESTIONS, question_parts
from dataset.records.conversation import chat_record, refuse_elsewhere, with_surroundings
from dataset.records.record import BadRecord, ChatRecord
from dataset.records.spoken import spoken_turns
from dataset.records.turns import assistant_turn, read_turns, user_turn


def question_and_answer(fields: Mapping[str, Any]) -> ChatRecord:
    """`instruction` and `input` with `output`, also under other names, with an optional `history`.

    Raises: BadRecord, LeftOut.
    """
    given = [fields[name] for name in ANSWERS if fields.get(name) is not None]
    answer = next((value for value in given if value != ""), given[0])
    if isinstance(answer, list) or any(isinstance(fields.get(name), list) for name in QUESTIONS):
        return _prompt_and_completion(fields, answer)
    parts = question_parts(fields)
    if not any(fields.get(name) for name in QUESTIONS) or not parts:
        raise BadRecord("answer without a question")
    if not isinstance(answer, str):
        raise BadRecord("question or answer is not a string")
    earlier = spoken_turns(parts[0]) if len(parts) == 1 else []
    if earlier:
        if earlier[-1]["role"] == "assistant" and not earlier[-1]["content"]:
            earlier.pop()
        return chat_record(fields, with_surroundings(fields, [*earlier, assistant_turn(answer)]))
    question = "\n".join(_with_passage(fields, parts))
    return chat_record(fields, with_surroundings(fields, [user_turn(question), assistant_turn(answer)]))


def _with_passage(fields: Mapping[str, Any], parts: list[str]) -> list[str]:
    """The question with `text`, a passage. In Alpaca `text` repeats the exchange: it stays out."""
    text = fields.get("text")
    if not isinstance(text, str) or not text.strip():
        return parts
    if all(part.strip() in text for part in parts):
        return parts
    return [text, *parts]


def _prompt_and_completion(fields: Mapping[str, Any], answer: Any) -> ChatRecord:
    """trl's conversational prompt and completion. Only the completion has targets.

    Raises: BadRecord, LeftOut.
    """
    turns = next((fields[name] for name in QUESTIONS if isinstance(fields.get(name), list) and fields[name]), None)
    parts = question_parts(fields) if turns is None else []
    if turns is None and not parts:
        raise BadRecord("answer without a question")
    before = [user_turn("\n".join(parts))] if turns is None else read_turns(turns)
    before = [{**turn, "loss": False} if turn["role"] == "assistant" else turn for turn in before]
    if isinstance(answer, str):
        after = [assistant_turn(answer)]
    elif isinstance(answer, list) and answer and isinstance(answer[0], dict):
        after = read_turns(answer)
    else:
        raise BadRecord("question or answer is not a string")
    if not any(turn["role"] == "assistant" for turn in after):
        raise BadRecord("no assistant answer")
    messages = with_surroundings(fields, [*before, *after])
    refuse_elsewhere(fields, (*QUESTIONS, *PASSAGES), messages)
    return chat_record(fields, messages)


def first_answer(answers: Any) -> Any:
    """The first of the `answers` of SQuAD and CMRC. Raises: BadRecord.

    They are `{"text": [...]}`, or a list of texts, or a list of objects with a `text`.
    """
    if isinstance(answers, dict):
        answers = answers.get("text")
    first = answers[0] if isinstance(answers, list) and answers else answers
    if isinstance(first, dict):
        first = first.get("text")
    if not isinstance(first, str) or not first.strip():
        raise BadRecord("answers holds no text")
    return first
