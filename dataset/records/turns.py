"""The turns of a conversation: roles under all their names, contents, tool calls, what counts."""

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
"""Names of roles, in lower case, and ours."""
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
"""A question and its answer in one turn of a list."""
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_TURN_SWITCHES = ("loss", "weight", "train", "training", "output_with_loss")
"""Whether a turn is learnt: ms-swift and xtuner, OpenAI and axolotl, axolotl, axolotl, xtuner."""
_SWITCH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_SPANS = ("train_detail", "training_detail")
"""axolotl: which characters of a turn are learnt."""


def user_turn(content: Any) -> Message:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant_turn(content: Any) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def read_turns(turns: Any) -> list[Message]:
    """A list of turns, whatever they are called, as messages. Raises: BadRecord."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a cell of a CSV file
        turns = _from_json(turns, "conversation is not a list")
    if not isinstance(turns, list):
        raise BadRecord("conversation is not a list")
    messages: list[Message] = []
    for turn in turns:
        if isinstance(turn, dict) and not ("role" in turn or "from" in turn) and (pair := _pair_of(turn)):
            system = turn.get("system")
            if system and isinstance(system, str) and not messages:  # xtuner
                messages.append({"role": "system", "content": system})
            elif system and (not messages or messages[0].get("content") != system):
                raise BadRecord("a system text in a later turn")
            messages += pair
        else:
            messages.append(read_turn(turn))
    return messages


def _pair_of(turn: Mapping[str, Any]) -> list[Message]:
    """A question and its answer in one object (Firefly, ms-swift, xtuner); empty when it is
    none."""
    for asked, answered in _PAIR_NAMES:
        if asked in turn and answered in turn:
            marks = {name: turn[name] for name in (*_TURN_SWITCHES, *_SPANS) if name in turn}
            return [read_turn(user_turn(turn[asked])), read_turn({**assistant_turn(turn[answered]), **marks})]
    return []


def read_turn(turn: Any) -> Message:
    """One turn, under `role` and `content`. Other fields stay where they hold something."""
    if not isinstance(turn, dict):
        raise BadRecord("turn is not an object")
    if turn.keys() == _PLAIN_TURN and turn["role"] in _CHAT_ROLES and isinstance(turn["content"], str):
        return turn  # nearly all turns are so
    role = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    if role == "function_call":  # ShareGPT's name for an assistant that calls a tool
        call = {"role": "assistant", "content": "", "tool_calls": named_entries(content)}
        return call if _is_learnt(turn) else {**call, "loss": False}
    if not isinstance(role, str) or role.strip().lower() not in _ROLES:
        raise BadRecord(f"unknown role: {str(role).strip()[:20]}")
    role = _ROLES[role.strip().lower()]
    named = {"role", "content", "from", "value", *_TURN_SWITCHES}
    extra = {key: value for key, value in turn.items() if key not in named and value}
    if not _is_learnt(turn) and role == "assistant":
        extra["loss"] = False
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


def _is_learnt(turn: Mapping[str, Any]) -> bool:
    """Whether no mark says that a turn is context alone. Raises: BadRecord for a mark that can't be
    honoured."""
    learnt = True
    for name in _TURN_SWITCHES:
        value = turn.get(name)
        if value is None:
            continue
        switch = _SWITCH.get(str(value).strip().lower())
        if switch is None:
            raise BadRecord(f"a turn's {name} is neither 0 nor 1, false nor true")
        learnt = learnt and switch
    for name in _SPANS:
        if turn.get(name):
            raise BadRecord(f"a turn's {name} marks single characters")
    return learnt


def _joined_parts(content: Any) -> Any:
    """The text of a list of text parts (OpenAI, ms-swift); anything else as it is. Raises:
    BadRecord for a picture."""
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
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRecord(problem) from None


def named_entries(value: Any) -> list[dict[str, Any]]:
    """Tools or calls as a list of objects; data sets also store them as text that holds JSON."""
    if isinstance(value, str):
        value = _from_json(value, "tools or tool_calls are not JSON")
    entries = value if isinstance(value, list) else [value]
    if not all(map(has_name, entries)):
        raise BadRecord("a tool or tool call without a name")
    return entries


def read_history(value: Any) -> list[Message]:
    """Earlier turns: pairs of question and answer, as lists or objects, or a list of turns."""
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
