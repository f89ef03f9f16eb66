"""A whole conversation: its turns, and the fields beside them (history, system text, tools)."""

from collections.abc import Mapping
from typing import Any

from dataset.chat import place_fault
from dataset.records.columns import PASSAGES, QUESTIONS, text_of
from dataset.records.foreign_marks import holds_turns, is_wrapped, without_foreign_marks
from dataset.records.record import BadRecord, ChatRecord, LeftOut, Message
from dataset.records.spoken import spoken_turns
from dataset.records.thoughts import with_thought_apart
from dataset.records.turns import MEDIA, named_entries, read_history, read_turns, user_turn

_SYSTEMS = ("system", "system_prompt", "system_message", "meta_instruction")
"""Names of a system text beside a conversation."""
_BAD_ANSWER = ("label", "kto_tag")
"""KTO's fields that say whether an answer is good or bad."""


def chat_record(fields: Mapping[str, Any], messages: list[Message]) -> ChatRecord:
    """A record of these messages, without other formats' marks. Raises: BadRecord, LeftOut."""
    _refuse_unlearnable(fields)
    messages, marks = without_marks(messages)
    messages = checked([with_thought_apart(message) for message in messages])
    return ChatRecord(messages, {**fields, "conversations": messages}, marks)


def conversation_record(fields: Mapping[str, Any], turns: Any) -> ChatRecord:
    """A record of a list of turns and the fields beside it. Raises: BadRecord, LeftOut."""
    messages = with_surroundings(fields, read_turns(turns))
    refuse_elsewhere(fields, (*QUESTIONS, *PASSAGES), messages)
    return chat_record(fields, messages)


def without_marks(messages: list[Message]) -> tuple[list[Message], int]:
    """The turns without the marks of other formats, and how many marks there were.

    Marks inside a turn stay: somebody may talk about them.
    Raises: BadRecord when one turn holds several turns: we would have to guess who speaks.
    """
    cleaned, count = [], 0
    for message in messages:
        text, marks = without_foreign_marks(message["content"])
        if marks and holds_turns(message["content"]):
            raise BadRecord("a turn holds several turns (marks of another chat format inside it)")
        marks *= is_wrapped(message["content"])
        cleaned.append({**message, "content": text} if marks else message)
        count += marks
    return cleaned, count


def _refuse_unlearnable(fields: Mapping[str, Any]) -> None:
    """Raises: LeftOut when a record says that its answer is bad or not for training; BadRecord when
    it needs more than text, such as a picture."""
    for name in _BAD_ANSWER:
        value = fields.get(name)
        if value is False or (isinstance(value, str) and value.strip().lower() == "false"):
            raise LeftOut(f"{name} is false: an answer marked as bad")
    if fields.get("kto_tag") in (0, "0"):
        raise LeftOut("kto_tag is false: an answer marked as bad")
    for name in ("train", "loss", "weight"):
        value = fields.get(name)
        if value is False or (name == "weight" and isinstance(value, int | float) and value == 0):
            raise LeftOut(f"{name} is false: marked as not to be learnt")
    for name in MEDIA:
        if fields.get(name):
            raise BadRecord(f"{name}: the record needs more than its text")


def with_surroundings(fields: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """A conversation with the history, the system text and the tools that are in fields beside it.

    Raises: BadRecord when they contradict the conversation.
    """
    earlier = read_history(fields.get("history"))
    if earlier:
        # The history goes behind the conversation's own system message, unless it has one itself.
        start = int(bool(messages) and messages[0]["role"] == "system" != earlier[0]["role"])
        if not _begins_with(messages[start:], earlier):
            messages = [*messages[:start], *earlier, *messages[start:]]
    return _with_system(fields, messages)


def _begins_with(messages: list[Message], earlier: list[Message]) -> bool:
    """Whether the history is already the beginning of the conversation."""
    return [said(m) for m in messages[: len(earlier)]] == [said(m) for m in earlier]


def said(message: Message) -> tuple[str, str]:
    """Role and text of a message, to compare two messages."""
    return message["role"], _bare(message["content"])


def _bare(text: str) -> str:
    """A text without the marks of other formats, to compare it with a turn.

    A record that we wrote has lost them in its turns, but not in its other fields.
    """
    return without_foreign_marks(text)[0].strip()


def holds(messages: list[Message], text: str) -> bool:
    """Whether some turn contains a text."""
    return any(text.strip() in m["content"] or _bare(text) in _bare(m["content"]) for m in messages)


def refuse_elsewhere(fields: Mapping[str, Any], names: tuple[str, ...], messages: list[Message]) -> None:
    """Refuse a question or passage beside a conversation that does not contain it.

    We would have to guess where it belongs.
    Args: names: the fields to check.
    Raises: BadRecord with the field's name.
    """
    for name in names:
        if not fields.get(name):
            continue
        value = fields[name]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            texts = [m["content"] for m in read_turns(value) if m["role"] == "user"]
        else:
            texts = [
                turn["content"] for turn in spoken_turns(text_of(fields, name)) or [user_turn(text_of(fields, name))]
            ]
        if not all(holds(messages, text) for text in texts):
            raise BadRecord(f"{name} stands beside the conversation, which does not hold it")


def _with_system(fields: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The conversation with `system` and `tools` of the fields beside it. Raises: BadRecord."""
    system, tools = _system(fields), fields.get("tools")
    if not system and not tools:
        return messages
    # There may be two system texts: one in the conversation, and one in a field beside it. If both
    # have words, the words must be the same.
    if messages and messages[0]["role"] == "system":
        first, rest = dict(messages[0]), messages[1:]
        if system and _bare(first["content"]) != _bare(system):
            if first["content"].strip():
                raise BadRecord("system beside the conversation differs from the one in it")
            first["content"] = system
    else:
        first, rest = {"role": "system", "content": system}, messages
    if tools and "tools" not in first:
        first["tools"] = named_entries(tools)
    return [first, *rest]


def _system(fields: Mapping[str, Any]) -> str:
    """The system text in the fields beside a question or a conversation; "" if there is none.

    Raises: BadRecord when two fields differ.
    """
    found = ""
    for name in _SYSTEMS:
        text = fields.get(name)
        if not text:
            continue
        if not isinstance(text, str):
            raise BadRecord(f"{name} is not a string")
        if found and text.strip() != found.strip():
            raise BadRecord(f"{name} differs from another system text")
        found = found or text
    return found


def checked(messages: list[Message]) -> list[Message]:
    """The conversation up to its last answer with targets: what comes after it teaches nothing.

    Raises: BadRecord when it can't be rendered for training, LeftOut when no answer has targets.
    """
    # Cut the end off, back to the last answer with targets.
    if any(m["role"] == "assistant" for m in messages):
        end = len(messages)
        while end and (messages[end - 1]["role"] in {"user", "tool"} or messages[end - 1].get("loss") is False):
            end -= 1
        if not end:
            raise LeftOut("all answers are marked as not to be learnt (weight, loss or train)")
        messages = messages[:end]
    if not messages:
        raise BadRecord("empty conversation")
    before = ""
    for message in messages:
        if fault := place_fault(message, before, to_learn=True):
            raise BadRecord(fault.reason)
        before = message["role"]
    if before == "system" and any(m.get("loss") is False for m in messages):
        raise LeftOut("all answers are marked as not to be learnt (weight, loss or train)")
    if before != "assistant":
        raise BadRecord("no assistant answer")
    return messages
