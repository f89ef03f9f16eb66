"""The turns of a conversation: all names of roles, contents, tool calls, and what has targets."""

import json
from collections.abc import Mapping
from typing import Any

from dataset.chat import has_name, is_wordless, message_fault
from dataset.records.record import BadRecord, Message

_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "用户": "user",
    "人类": "user",
    "问": "user",
    "提问": "user",
    "question": "user",
    "customer": "user",
    "客户": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "moss": "assistant",
    "belle": "assistant",
    "claude": "assistant",
    "bing": "assistant",
    "chatbot": "assistant",
    "answer": "assistant",
    "agent": "assistant",
    "答": "assistant",
    "回答": "assistant",
    "客服": "assistant",
    "助手": "assistant",
    "助理": "assistant",
    "机器人": "assistant",
    "模型": "assistant",
    "system": "system",
    "developer": "system",
    "系统": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "工具": "tool",
}
"""Name of a role in other data, in lower case -> our role."""
_PLAIN_TURN = {"role", "content"}
_CHAT_ROLES = ("system", "user", "assistant")
_PAIR_NAMES = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("instruction", "output"),
    ("input", "output"),
)
"""Fields of an object that holds a question and its answer."""
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Fields of a record that needs more than text."""
_TURN_SWITCHES = ("loss", "weight", "train", "training", "output_with_loss")
"""Fields that say whether a turn has targets. They come from ms-swift and xtuner; OpenAI and
axolotl; axolotl; axolotl; xtuner."""
_SWITCH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""Value of such a field, as text -> whether the turn has targets."""
_SPANS = ("train_detail", "training_detail")
"""axolotl's fields that say which characters of a turn are targets."""


def user_turn(content: Any) -> Message:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant_turn(content: Any) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def read_turns(turns: Any) -> list[Message]:
    """A list of turns, with any names of fields and roles, as messages. Raises: BadRecord."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a cell of a CSV file
        turns = _from_json(turns, "conversation is not a list")
    if not isinstance(turns, list):
        raise BadRecord("conversation is not a list")
    messages: list[Message] = []
    for turn in turns:
        if isinstance(turn, dict) and not ("role" in turn or "from" in turn) and (pair := _pair_of(turn)):
            system = turn.get("system")
            # xtuner writes the system text into the first pair. A later one must be the same text.
            if system and isinstance(system, str) and not messages:
                messages.append({"role": "system", "content": system})
            elif system and (not messages or messages[0].get("content") != system):
                raise BadRecord("a system text in a later turn")
            messages += pair
        else:
            messages.append(read_turn(turn))
    return messages


def _pair_of(turn: Mapping[str, Any]) -> list[Message]:
    """Two messages of an object that holds a question and its answer (Firefly, ms-swift, xtuner).

    Empty if the object is something else.
    """
    for asked, answered in _PAIR_NAMES:
        if asked in turn and answered in turn:
            marks = {name: turn[name] for name in (*_TURN_SWITCHES, *_SPANS) if name in turn}
            return [read_turn(user_turn(turn[asked])), read_turn({**assistant_turn(turn[answered]), **marks})]
    return []


def read_turn(turn: Any) -> Message:
    """One turn as a message with `role` and `content`. Other fields stay unless they are empty.

    Raises: BadRecord.
    """
    if not isinstance(turn, dict):
        raise BadRecord("turn is not an object")
    if turn.keys() == _PLAIN_TURN and turn["role"] in _CHAT_ROLES and isinstance(turn["content"], str):
        return turn  # the common case, kept fast
    role = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    if role == "function_call":  # ShareGPT's name for an assistant that calls a tool
        call = {"role": "assistant", "content": "", "tool_calls": named_entries(content)}
        return call if _has_targets(turn) else {**call, "loss": False}
    if not isinstance(role, str) or role.strip().lower() not in _ROLES:
        raise BadRecord(f"unknown role: {str(role).strip()[:20]}")
    role = _ROLES[role.strip().lower()]
    # `extra` holds the fields that we have not read yet and that are not empty. The message keeps
    # these fields.
    named = {"role", "content", "from", "value", *_TURN_SWITCHES}
    extra = {key: value for key, value in turn.items() if key not in named and value}
    if not _has_targets(turn) and role == "assistant":
        extra["loss"] = False
    if turn.get("enable_thinking") is False and role == "assistant":
        extra["enable_thinking"] = False
    for key in ("tools", "tool_calls"):
        if key in extra:
            extra[key] = named_entries(extra[key])
        if not extra.get(key):
            extra.pop(key, None)
    for name in MEDIA:
        if name in extra:
            raise BadRecord(f"{name}: the record needs more than its text")
    message = {"role": role, "content": _joined_parts(content), **extra}
    if is_wordless(message):
        message["content"] = ""
    if fault := message_fault(message):
        raise BadRecord(fault.reason)
    return message


def _has_targets(turn: Mapping[str, Any]) -> bool:
    """Whether an assistant's turn has targets: no field says that it is only context.

    Raises: BadRecord for a field that we can't follow.
    """
    has_targets = True
    for name in _TURN_SWITCHES:
        value = turn.get(name)
        if value is None:
            continue
        switch = _SWITCH.get(str(value).strip().lower())
        if switch is None:
            raise BadRecord(f"a turn's {name} is neither 0 nor 1, false nor true")
        has_targets = has_targets and switch
    for name in _SPANS:
        if turn.get(name):
            raise BadRecord(f"a turn's {name} marks single characters")
    return has_targets


def _joined_parts(content: Any) -> Any:
    """The text of a list of text parts (OpenAI, ms-swift); other contents unchanged.

    Raises: BadRecord for a part that is not text, such as a picture.
    """
    if isinstance(content, dict) and isinstance(content.get("parts"), list):  # an exported ChatGPT conversation
        content = content["parts"]
    elif isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(part, dict) and part.get("type", "text") not in ("text", "input_text", "output_text"):
            raise BadRecord("a turn's content has a part that is not text")
        if not isinstance(text, str):
            raise BadRecord("turn's content is not a string")
        texts.append(text)
    return "".join(texts)


def _from_json(text: str, problem: str) -> Any:
    """The value in a text of JSON. Raises: BadRecord with `problem` as the reason."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRecord(problem) from None


def named_entries(value: Any) -> list[dict[str, Any]]:
    """Tools or calls as a list of objects. Data sets also store them as a text that holds JSON.

    Raises: BadRecord for one without a name.
    """
    if isinstance(value, str):
        value = _from_json(value, "tools or tool_calls are not JSON")
    entries = value if isinstance(value, list) else [value]
    if not all(map(has_name, entries)):
        raise BadRecord("a tool or tool call without a name")
    return entries


def read_history(value: Any) -> list[Message]:
    """The earlier turns in `history`: pairs of question and answer, or turns, as messages.

    Raises: BadRecord.
    """
    if isinstance(value, str) and value.strip():  # a cell of a CSV file
        value = _from_json(value, "history is not a list of [question, answer]")
    if not value or isinstance(value, str):
        return []
    if not isinstance(value, list):
        raise BadRecord("history is not a list of [question, answer]")
    messages: list[Message] = []
    for entry in value:
        if isinstance(entry, dict):
            messages += read_turns([entry])
        elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            messages += [user_turn(entry[0]), assistant_turn(entry[1])]
        else:
            raise BadRecord("history is not a list of [question, answer]")
    return messages
