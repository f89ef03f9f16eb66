"""Preference pairs: `chosen` and `rejected` as lists or texts; also those of OpenAI, ms-swift."""

from collections.abc import Mapping
from typing import Any

from dataset.records.columns import CONVERSATIONS, PASSAGES, QUESTIONS, question_parts
from dataset.records.conversation import checked, holds, refuse_elsewhere, said, with_surroundings, without_marks
from dataset.records.record import BadRecord, ChatRecord, LeftOut, Message, PreferenceRecord, Record
from dataset.records.spoken import spoken_turns
from dataset.records.turns import MEDIA, assistant_turn, read_turn, read_turns, user_turn


def preference_record(fields: Mapping[str, Any], chosen: Any, rejected: Any) -> PreferenceRecord:
    """A pair from its two answers (or conversations) and the fields beside them.

    Raises: BadRecord, LeftOut.
    """
    for name in MEDIA:
        if fields.get(name):
            raise BadRecord(f"{name}: the record needs more than its text")
    before = _prompt(fields)
    cleaned = [without_marks(_side(value, fields, before)) for value in (chosen, rejected)]
    sides = [side for side, _ in cleaned]
    for side in sides:
        if not side:
            raise BadRecord("empty conversation")
        if side[-1]["role"] != "assistant":
            raise BadRecord("no assistant answer")
        if side[-1].get("loss") is False:
            raise LeftOut("chosen or rejected is marked as not to be learnt (weight, loss or train)")
        checked(side)
    first, second = sides
    if [said(m) for m in first[:-1]] != [said(m) for m in second[:-1]]:
        raise BadRecord("chosen and rejected answer different questions")
    if first[-1]["content"].strip() == second[-1]["content"].strip():
        raise BadRecord("chosen and rejected are equal")
    marks = sum(count for _, count in cleaned)
    return PreferenceRecord(first, second, {**fields, "chosen": first, "rejected": second}, marks)


def openai_preference(fields: Mapping[str, Any]) -> PreferenceRecord:
    """OpenAI's shape: `input` with `messages` and `tools`, `preferred_output`,
    `non_preferred_output`. Raises: BadRecord, LeftOut."""
    given = fields.get("input")
    if not isinstance(given, dict):
        raise BadRecord("input is not an object with messages")
    for name in CONVERSATIONS:
        if fields.get(name):
            raise BadRecord(f"{name} stands beside the conversation in input")
    own = {name: value for name, value in fields.items() if name != "input"}
    own |= {"messages": given.get("messages"), "tools": given.get("tools") or fields.get("tools")}
    record = preference_record(own, fields.get("preferred_output"), fields.get("non_preferred_output"))
    return PreferenceRecord(record.chosen, record.rejected, {**own, **_sides_of(record)}, record.marks)


def _sides_of(record: PreferenceRecord) -> dict[str, Any]:
    """The two fields of our shape."""
    return {"chosen": record.chosen, "rejected": record.rejected}


def swift_preference(fields: Mapping[str, Any], chosen: Record, rejected: Any) -> PreferenceRecord:
    """ms-swift's shape: a conversation with a good answer, and a worse answer or conversation.

    Args: fields: the record without the worse one. chosen: the same in our shape. rejected: the
    worse one.
    Raises: BadRecord, LeftOut.
    """
    if not isinstance(chosen, ChatRecord):
        raise BadRecord("rejected_response beside no conversation")
    if isinstance(rejected, list) and len(rejected) == 1 and isinstance(rejected[0], str):
        rejected = rejected[0]
    if isinstance(rejected, str):
        worse = [assistant_turn(rejected)]
    else:
        worse = read_turns(rejected)
    whole = any(message["role"] == "user" for message in worse)
    worse = with_surroundings(fields, worse) if whole else [*chosen.messages[:-1], *worse]
    record = preference_record({}, chosen.messages, worse)
    return PreferenceRecord(record.chosen, record.rejected, {**fields, **_sides_of(record)}, record.marks)


def _prompt(fields: Mapping[str, Any]) -> list[Message]:
    """The turns before the two answers, if a field of their own holds them; else none.

    History and system text are not among them. Raises: BadRecord.
    """
    messages: list[Message] = []
    # The prompt can be a list of turns, in any of these fields. It can also be a text in a field
    # that normally holds a conversation (CONVERSATIONS).
    for name in (*CONVERSATIONS, *QUESTIONS):
        if isinstance(fields.get(name), list):
            messages = read_turns(fields[name])
            break
        if fields.get(name) and not isinstance(fields[name], str):
            raise BadRecord("prompt is neither a string nor a list")
        if fields.get(name) and name in CONVERSATIONS:
            messages = read_turns(fields[name]) if fields[name].lstrip().startswith("[") else [user_turn(fields[name])]
            break
    if messages:
        refuse_elsewhere(fields, (*QUESTIONS, *PASSAGES), messages)
        return messages
    # A question in columns. Its text may itself hold several turns (HH-RLHF).
    parts = question_parts(fields)
    if not any(fields.get(name) for name in QUESTIONS):
        return []  # a passage alone is no prompt; `_side` looks for it in the conversations
    earlier = spoken_turns(parts[0]) if len(parts) == 1 else []
    if earlier and earlier[-1]["role"] == "assistant" and not earlier[-1]["content"]:
        return earlier[:-1]
    return [user_turn("\n".join(parts))] if parts else []


def _side(value: Any, fields: Mapping[str, Any], before: list[Message]) -> list[Message]:
    """One of the two conversations, whole. `before`: as `_prompt` gives it. Raises: BadRecord."""
    if isinstance(value, str) and not before:
        messages = spoken_turns(value)
        if not messages:
            raise BadRecord("preference strings without a prompt")
    elif isinstance(value, str):
        messages = [assistant_turn(value)]
    elif isinstance(value, dict):
        messages = [read_turn(value)]
    elif isinstance(value, list):
        messages = read_turns(value)
    else:
        raise BadRecord("chosen or rejected is neither a list nor a string")
    # An answer alone is completed by the turns before it. A whole conversation has them already,
    # and must contain them.
    if not any(message["role"] == "user" for message in messages):
        return with_surroundings(fields, [*before, *messages])
    messages = with_surroundings(fields, messages)
    refuse_elsewhere(fields, (*QUESTIONS, *PASSAGES), messages)
    for turn in before:
        if turn["role"] != "user" or holds(messages, turn["content"]):
            continue
        if not all(holds(messages, part) for part in turn["content"].split("\n")):
            raise BadRecord("the prompt is not in the conversations of chosen and rejected")
    return messages
