"""The record shapes that MiniLLM reads, brought to three: raw text, a conversation, a preference pair.

Accepted: `{"text"}`; `{"conversations": [{"role", "content"}]}` with system, tool and reasoning fields; ShareGPT
(`from`/`value`); Alpaca (`instruction`/`input`/`output`) and its relatives; MOSS, Firefly, xtuner; preference pairs
(`chosen`/`rejected`, lists or strings with a `prompt`; OpenAI, ms-swift); multiple choice (question, A to D, answer),
in JSON lines or in CSV. A field that changes the meaning (history, system, context, a mark that an answer is bad)
takes its place or the record is refused by the field's name; docs/formats.md has the table. A record keeps its own
fields; what is brought into shape goes to `text`, `conversations`, or `chosen` and `rejected`.
"""

import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from configs.paths import display
from configs.schema import UserError
from dataset.file_kinds import (
    BOM,
    ENCODING_NAMES,
    head_of,
    is_chinese_gb18030,
    is_multi_line,
    read_values,
    refuse_table,
    unicode_file,
    why_no_json,
)
from dataset.marks import holds_turns, is_wrapped, without_foreign_marks

MAX_LINE_BYTES = 64 << 20
"""A longer line is rejected without being held in memory."""
READ_BLOCK_BYTES = 1 << 20
HEAD_BYTES = 800
"""Bytes of a rejected line that are kept to show it."""
PLAIN_SUFFIXES = (".jsonl", ".json", ".csv")
PACKED_SUFFIXES = (".gz", ".xz")

Message = dict[str, Any]


class BadRecord(Exception):
    """A record that can't be used. The message is a fixed phrase, by which such records are counted."""


class LeftOut(BadRecord):
    """A record that is sound, and says itself that it is not to be learnt."""


@dataclass(frozen=True, slots=True)
class BadItem:
    """A line that can't even be read as JSON or as a row."""

    reason: str
    head: bytes


Item = bytes | dict[str, str] | BadItem
"""A line of JSON, a row of CSV, or neither."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A document."""

    text: str
    fields: dict[str, Any]
    """The whole record: its own fields and the ones brought into shape."""
    marks: int = 0
    """Marks of other chat formats that became line ends."""

    def plain_text(self) -> str:
        return self.text

    def questions(self) -> list[str]:
        return []


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation that ends with the assistant."""

    messages: list[Message]
    fields: dict[str, Any]
    marks: int = 0
    """As in `TextRecord`."""

    def plain_text(self) -> str:
        """What user and assistant say, a turn a line, without the turns that are not to be learnt."""
        said = [m for m in self.messages if m["role"] in {"user", "assistant"} and m.get("loss") is not False]
        return "\n".join(m["content"] for m in said if m["content"])

    def questions(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message["content"] for message in self.messages if message["role"] == "user"]


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two conversations that differ in the last answer alone."""

    chosen: list[Message]
    rejected: list[Message]
    fields: dict[str, Any]
    marks: int = 0
    """As in `TextRecord`."""

    def questions(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message["content"] for message in self.chosen if message["role"] == "user"]


Record = TextRecord | ChatRecord | PreferenceRecord


# --- keys: what must not stand on both sides of the held-out split --------------------------------------------------

_COMMON_MARKS = re.compile(r"[\s，。！？、：；“”‘’（）《》【】…—,.!?;:'\"()\[\]-]+")
"""Marks that NFKC turns into marks alone: taken out first, because NFKC is slow wherever it has anything to change."""
_MARKS = re.compile(r"[\W_]+")
_MARKS_BUT_IN_NUMBERS = re.compile(r"(?<!\d)[\W_]+|[\W_]+(?!\d)")


def normalised(text: str) -> str:
    """The letters and digits of a text, widths and cases made equal: two texts that differ only in case, spacing or
    punctuation become one. A text of marks alone stays as it is, without its spaces."""
    bare = _COMMON_MARKS.sub("", text)
    return _MARKS.sub("", unicodedata.normalize("NFKC", bare).casefold()) or "".join(text.split())


def normalised_question(text: str) -> str:
    """As `normalised`, but marks between two digits stay, so that 12+3 and 1+23 remain two questions."""
    spaceless = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _MARKS_BUT_IN_NUMBERS.sub("", spaceless) or spaceless


SPLITS = ("train", "heldout", "validation", "valid", "val", "dev", "test")
"""Values of `split` that decide a record's side. Any other one is a column of somebody's own."""


def split_of(fields: Mapping[str, Any]) -> str | None:
    """The side that a record itself names; None where its `split` is missing or not one of `SPLITS`."""
    split = fields.get("split")
    return split if isinstance(split, str) and split in SPLITS else None


def has_group(record: Record) -> bool:
    """Whether a record has a `group` that can decide its side: a text."""
    group = record.fields.get("group")
    return isinstance(group, str) and group != ""


def group_key(record: Record) -> str:
    """A record's `group`, normalised. Marks become spaces instead of vanishing: `sum:1,23` and `sum:12,3` are two."""
    group = unicodedata.normalize("NFKC", record.fields["group"]).casefold()
    return "group " + " ".join(_MARKS.split(group)).strip()


def question_key(record: Record) -> str:
    """What decides the side of a record without a group: the first user turn, else the text; normalised."""
    return normalised(record.text if isinstance(record, TextRecord) else record.questions()[0])


def heldout_key(record: Record) -> str:
    """What decides a record's side: its `group`, else its question or text."""
    return group_key(record) if has_group(record) else question_key(record)


# --- shapes -----------------------------------------------------------------------------------------------------

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
ROLES = ("system", "user", "assistant", "tool")
_ONLY_ON = {"tools": "system", "tool_calls": "assistant", "reasoning_content": "assistant"}
_PLAIN_TURN = {"role", "content"}
_CHAT_ROLES = ("system", "user", "assistant")
_CONVERSATIONS = ("conversations", "messages", "conversation")
_LISTS_OF_TURNS = ("items", "dialog", "dialogue", "turns", "chat_rounds")
"""The same under names that other things bear too: taken where they are lists of objects."""
_DOCUMENTS = ("content", "raw_content", "正文", "内容", "文本")
"""A document where there is no `text` and no question."""
_TASKS = ("instruction", "prompt", "指令", "textbox_q_instruction")
_PASSAGES = (
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
_QUERIES = ("question", "Question", "query", "input", "problem", "问题", "输入", "textbox_question")
_QUESTIONS = (*_TASKS, *_QUERIES)
_ANSWERS = ("output", "response", "completion", "answer", "golden", "target", "回答", "答案", "输出", "textbox_answer")
_SYSTEMS = ("system", "system_prompt", "system_message", "meta_instruction")
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
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_TURN_SWITCHES = ("loss", "weight", "train", "training", "output_with_loss")
"""Whether a turn is learnt: ms-swift and xtuner, OpenAI and axolotl, axolotl, axolotl, xtuner."""
_SWITCH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_SPANS = ("train_detail", "training_detail")
"""axolotl: which characters of a turn are learnt."""
_BAD_ANSWER = ("label", "kto_tag")
"""KTO's mark of a single answer: good or bad."""
_CHOICES = ("options", "choices", "choice")
_LETTERS = "ABCDEFGH"
_OWN_LETTER = re.compile(r"^\s*[(（]?[A-H]\s*[)）.．、:：]\s*")
_SPOKEN = re.compile(r"(?:^|\n)\s*(Human|Assistant)\s*[:：][ \t]*")
_MOSS_MARKS = re.compile(r"<\|\w+(?: \w+)?\|>:?|<eo\w>")


def parse_record(fields: Mapping[str, Any]) -> Record:
    """Bring one record into shape. Every field whose meaning is known takes its place: docs/formats.md lists them.

    Raises: BadRecord with the reason, LeftOut for what is marked as not to be learnt.
    """
    if fields.get("chosen") is not None or fields.get("rejected") is not None:
        return _preference(fields, fields.get("chosen"), fields.get("rejected"))
    if fields.get("preferred_output") is not None or fields.get("non_preferred_output") is not None:
        return _openai_preference(fields)
    for name in ("rejected_response", "rejected_messages"):
        if fields.get(name):
            return _swift_preference(fields, fields[name])
    for name in _CONVERSATIONS:
        if fields.get(name) is not None:
            return _conversation(fields, fields[name])
    if isinstance(fields.get("chat"), dict):
        return _conversation(fields, _moss_turns(fields["chat"]))
    if _is_multiple_choice(fields):
        question, answer = _multiple_choice(fields)
        return _chat(fields, _around(fields, [_user(question), _assistant(answer)]))
    for name in _LISTS_OF_TURNS:
        if isinstance(fields.get(name), list) and all(isinstance(turn, dict) for turn in fields[name]):
            return _conversation(fields, fields[name])
    if isinstance(fields.get("plain_text"), str) and "[Human]" in fields["plain_text"]:
        return _conversation(fields, _moss_plain_turns(fields["plain_text"]))
    if fields.get("answers") is not None and not any(fields.get(name) is not None for name in _ANSWERS):
        fields = {**fields, "answer": _first_answer(fields["answers"])}
    answered = any(fields.get(name) is not None for name in _ANSWERS)
    if answered and ("text" not in fields or any(fields.get(name) for name in _QUESTIONS)):
        return _alpaca(fields)
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
    """The field that holds a document; empty where there is none."""
    if "text" in fields:
        return "text"
    if any(fields.get(name) for name in (*_QUESTIONS, "desc", "description")):
        return ""
    return next((name for name in _DOCUMENTS if isinstance(fields.get(name), str)), "")


def _first_answer(answers: Any) -> Any:
    """SQuAD's and CMRC's `answers`: `{"text": [...]}`, or a list of texts or of objects with a text; the first one."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    first = answers[0] if isinstance(answers, list) and answers else answers
    if isinstance(first, dict):
        first = first.get("text")
    if not isinstance(first, str) or not first.strip():
        raise BadRecord("answers holds no text")
    return first


def _moss_plain_turns(text: str) -> list[Message]:
    """MOSS 002: `[Human]: ... <eoh> [MOSS]: ... <eoa>` in one text."""
    _, *pieces = re.split(r"\[(Human|MOSS)\]\s*[:：]", text)
    said = zip(pieces[::2], pieces[1::2], strict=True)
    return [
        _user(t) if who == "Human" else _assistant(t)
        for who, piece in said
        for t in [_MOSS_MARKS.sub("", piece).strip()]
    ]


def _why_unknown(fields: Mapping[str, Any]) -> str:
    """The name of a known shape that is not read, with what to do, else the fields that there are."""
    if "paragraphs" in fields or "qas" in fields:
        return "SQuAD's nested paragraphs: write one question, context and answer a line"
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            if "paragraphs" in value[0]:
                return "SQuAD's nested paragraphs: write one question, context and answer a line"
            return f"unknown shape: its records are in the list {name[:20]}: write them one a line (jq -c '.{name[:20]}[]')"
    names = ", ".join(str(name)[:20] for name in list(fields)[:6])
    return f"unknown shape: fields {names}" if names else "unknown shape"


def _user(content: Any) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: Any) -> Message:
    return {"role": "assistant", "content": content}


def _chat(fields: Mapping[str, Any], messages: list[Message]) -> ChatRecord:
    _refuse_unlearnable(fields)
    messages, marks = _without_marks(messages)
    messages = _checked(messages)
    return ChatRecord(messages, {**fields, "conversations": messages}, marks)


def _without_marks(messages: list[Message]) -> tuple[list[Message], int]:
    """The turns without other formats' marks, and how many there were.

    Raises: BadRecord where one turn holds several: who speaks where would be guesswork.
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


def _conversation(fields: Mapping[str, Any], turns: Any) -> ChatRecord:
    """A list of turns, and what stands beside it."""
    messages = _around(fields, _messages(turns))
    _refuse_elsewhere(fields, (*_QUESTIONS, *_PASSAGES), messages)
    return _chat(fields, messages)


def _refuse_unlearnable(fields: Mapping[str, Any]) -> None:
    """Raises: LeftOut where the record says that its answer is bad, BadRecord where it holds what is no text."""
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
    for name in _MEDIA:
        if fields.get(name):
            raise BadRecord(f"{name}: the record needs more than its text")


def _around(fields: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Add the history, the system text and the tools that stand beside a conversation instead of in it."""
    earlier = _history(fields.get("history"))
    if earlier:
        start = int(bool(messages) and messages[0]["role"] == "system" != earlier[0]["role"])
        if not _begins_with(messages[start:], earlier):
            messages = [*messages[:start], *earlier, *messages[start:]]
    return _with_system(fields, messages)


def _begins_with(messages: list[Message], earlier: list[Message]) -> bool:
    return [_said(m) for m in messages[: len(earlier)]] == [_said(m) for m in earlier]


def _said(message: Message) -> tuple[str, str]:
    return message["role"], _bare(message["content"])


def _bare(text: str) -> str:
    """A text as it is compared with a turn that may have lost other formats' marks already: a record that was brought
    into shape and written is read once more."""
    return without_foreign_marks(text)[0].strip()


def _holds(messages: list[Message], text: str) -> bool:
    """Whether a turn holds a text."""
    return any(text.strip() in m["content"] or _bare(text) in _bare(m["content"]) for m in messages)


def _refuse_elsewhere(fields: Mapping[str, Any], names: tuple[str, ...], messages: list[Message]) -> None:
    """A question or passage beside a conversation that does not hold it: nobody can tell where it belongs.

    Raises: BadRecord with the field's name.
    """
    for name in names:
        if not fields.get(name):
            continue
        value = fields[name]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            texts = [m["content"] for m in _messages(value) if m["role"] == "user"]
        else:
            texts = [turn["content"] for turn in _spoken(_text_of(fields, name)) or [_user(_text_of(fields, name))]]
        if not all(_holds(messages, text) for text in texts):
            raise BadRecord(f"{name} stands beside the conversation, which does not hold it")


def _messages(turns: Any) -> list[Message]:
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
            messages.append(_message(turn))
    return messages


def _pair_of(turn: Mapping[str, Any]) -> list[Message]:
    """A question and its answer in one object (Firefly, ms-swift, xtuner); empty when it is none."""
    for asked, answered in _PAIR_NAMES:
        if asked in turn and answered in turn:
            marks = {name: turn[name] for name in (*_TURN_SWITCHES, *_SPANS) if name in turn}
            return [_message(_user(turn[asked])), _message({**_assistant(turn[answered]), **marks})]
    return []


def _message(turn: Any) -> Message:
    """One turn, under `role` and `content`. Other fields stay where they hold something."""
    if not isinstance(turn, dict):
        raise BadRecord("turn is not an object")
    if turn.keys() == _PLAIN_TURN and turn["role"] in _CHAT_ROLES and isinstance(turn["content"], str):
        return turn  # nearly all turns are so
    role = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    if role == "function_call":  # ShareGPT's name for an assistant that calls a tool
        call = {"role": "assistant", "content": "", "tool_calls": _entries(content)}
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
            extra[key] = _entries(extra[key])
        if not extra.get(key):
            extra.pop(key, None)
    for name in _MEDIA:
        if name in extra:
            raise BadRecord(f"{name}: the record needs more than its text")
    if content is None and "tool_calls" in extra:
        content = ""
    content = _joined_parts(content)
    if not isinstance(content, str):
        raise BadRecord("turn's content is not a string")
    if not isinstance(extra.get("reasoning_content", ""), str):
        raise BadRecord("reasoning_content is not a string")
    if any(key in extra and role != owner for key, owner in _ONLY_ON.items()):
        raise BadRecord("tools, tool_calls or reasoning_content in the wrong role")
    return {"role": role, "content": content, **extra}


def _is_learnt(turn: Mapping[str, Any]) -> bool:
    """Whether no mark says that a turn is context alone. Raises: BadRecord for a mark that can't be honoured."""
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
    """The text of a list of text parts (OpenAI, ms-swift); anything else as it is. Raises: BadRecord for a picture."""
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


def _entries(value: Any) -> list[dict[str, Any]]:
    """Tools or calls as a list of objects; data sets also store them as text that holds JSON."""
    if isinstance(value, str):
        value = _from_json(value, "tools or tool_calls are not JSON")
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        function = (entry.get("function") or entry) if isinstance(entry, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRecord("a tool or tool call without a name")
    return entries


def _with_system(fields: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Add `system` and `tools` that stand beside the conversation instead of in it."""
    system, tools = _system(fields), fields.get("tools")
    if not system and not tools:
        return messages
    if messages and messages[0]["role"] == "system":
        first, rest = dict(messages[0]), messages[1:]
        if system and _bare(first["content"]) != _bare(system):
            if first["content"].strip():
                raise BadRecord("system beside the conversation differs from the one in it")
            first["content"] = system
    else:
        first, rest = {"role": "system", "content": system}, messages
    if tools and "tools" not in first:
        first["tools"] = _entries(tools)
    return [first, *rest]


def _system(fields: Mapping[str, Any]) -> str:
    """The system text beside a question or a conversation, or empty."""
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


def _history(value: Any) -> list[Message]:
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
            messages += _messages([entry])
        elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            messages += [_user(entry[0]), _assistant(entry[1])]
        else:
            raise BadRecord("history is not a list of [question, answer]")
    return messages


def _checked(messages: list[Message]) -> list[Message]:
    """The conversation up to the last answer that is learnt: what comes after it teaches nothing.

    Raises: BadRecord, LeftOut.
    """
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
    asked = False
    for message in messages:
        role, blank = message["role"], not message["content"].strip()
        if role == "system":
            if before:
                raise BadRecord("system message is not the first")
        elif role == "user":
            if before not in {"", "system", "assistant"}:
                raise BadRecord("roles do not alternate")
            if blank:
                raise BadRecord("empty user turn")
            asked = True
        elif role == "tool":
            if before not in {"assistant", "tool"} or not asked:
                raise BadRecord("tool result without a call")
        else:
            if before not in {"user", "tool"}:
                raise BadRecord("roles do not alternate")
            if blank and not message.get("tool_calls"):
                raise BadRecord("empty assistant answer")
        before = role
    if before == "system" and any(m.get("loss") is False for m in messages):
        raise LeftOut("all answers are marked as not to be learnt (weight, loss or train)")
    if before != "assistant":
        raise BadRecord("no assistant answer")
    return messages


def _moss_turns(chat: Mapping[str, Any]) -> list[Message]:
    """MOSS: `turn_1`, `turn_2` ... with `Human` and `MOSS`."""
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
        messages += [_user(human), _assistant(moss)]
    return messages


def _spoken(text: str) -> list[Message]:
    """The turns of a text that writes them as `Human:` and `Assistant:` (BELLE's multi-turn set, HH-RLHF), else none."""
    if not text.lstrip().startswith(("Human:", "Human：")):
        return []
    _, *pieces = _SPOKEN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[name], "content": said.strip()} for name, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return turns if any(turn["role"] == "assistant" for turn in turns) else []


def _text_of(fields: Mapping[str, Any], name: str) -> str:
    """A question's or a passage's text. Raises: BadRecord."""
    value = fields[name]
    if isinstance(value, list) and name in _PASSAGES and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadRecord("question or answer is not a string" if name in _QUESTIONS else f"{name} is not a string")
    return value


def _asked(fields: Mapping[str, Any]) -> list[str]:
    """What makes up the question: the task, the passage, the question itself, each text once."""
    parts: list[str] = []
    for name in (*_TASKS, *_PASSAGES, *_QUERIES):
        if not fields.get(name):
            continue
        text = _text_of(fields, name)
        if text.strip() and text.strip() not in [part.strip() for part in parts]:
            parts.append(text)
    return parts


def _with_passage(fields: Mapping[str, Any], parts: list[str]) -> list[str]:
    """Add `text`: a passage, unless it is (Alpaca) the whole exchange once more."""
    text = fields.get("text")
    if not isinstance(text, str) or not text.strip():
        return parts
    if all(part.strip() in text for part in parts):
        return parts
    return [text, *parts]


def _alpaca(fields: Mapping[str, Any]) -> ChatRecord:
    """`instruction` and `input` to `output`, and the same under other names, with an optional `history`."""
    given = [fields[name] for name in _ANSWERS if fields.get(name) is not None]
    answer = next((value for value in given if value != ""), given[0])
    if isinstance(answer, list) or any(isinstance(fields.get(name), list) for name in _QUESTIONS):
        return _prompt_and_completion(fields, answer)
    parts = _asked(fields)
    if not any(fields.get(name) for name in _QUESTIONS) or not parts:
        raise BadRecord("answer without a question")
    if not isinstance(answer, str):
        raise BadRecord("question or answer is not a string")
    earlier = _spoken(parts[0]) if len(parts) == 1 else []
    if earlier:
        if earlier[-1]["role"] == "assistant" and not earlier[-1]["content"]:
            earlier.pop()
        return _chat(fields, _around(fields, [*earlier, _assistant(answer)]))
    question = "\n".join(_with_passage(fields, parts))
    return _chat(fields, _around(fields, [_user(question), _assistant(answer)]))


def _prompt_and_completion(fields: Mapping[str, Any], answer: Any) -> ChatRecord:
    """trl's conversational prompt and completion: the completion alone is learnt."""
    turns = next((fields[name] for name in _QUESTIONS if isinstance(fields.get(name), list) and fields[name]), None)
    parts = _asked(fields) if turns is None else []
    if turns is None and not parts:
        raise BadRecord("answer without a question")
    before = [_user("\n".join(parts))] if turns is None else _messages(turns)
    before = [{**turn, "loss": False} if turn["role"] == "assistant" else turn for turn in before]
    if isinstance(answer, str):
        after = [_assistant(answer)]
    elif isinstance(answer, list) and answer and isinstance(answer[0], dict):
        after = _messages(answer)
    else:
        raise BadRecord("question or answer is not a string")
    if not any(turn["role"] == "assistant" for turn in after):
        raise BadRecord("no assistant answer")
    messages = _around(fields, [*before, *after])
    _refuse_elsewhere(fields, (*_QUESTIONS, *_PASSAGES), messages)
    return _chat(fields, messages)


def _preference(fields: Mapping[str, Any], chosen: Any, rejected: Any) -> PreferenceRecord:
    for name in _MEDIA:
        if fields.get(name):
            raise BadRecord(f"{name}: the record needs more than its text")
    before = _prompt(fields)
    cleaned = [_without_marks(_side(value, fields, before)) for value in (chosen, rejected)]
    sides = [side for side, _ in cleaned]
    for side in sides:
        if not side:
            raise BadRecord("empty conversation")
        if side[-1]["role"] != "assistant":
            raise BadRecord("no assistant answer")
        if side[-1].get("loss") is False:
            raise LeftOut("chosen or rejected is marked as not to be learnt (weight, loss or train)")
        _checked(side)
    first, second = sides
    if [_said(m) for m in first[:-1]] != [_said(m) for m in second[:-1]]:
        raise BadRecord("chosen and rejected answer different questions")
    if first[-1]["content"].strip() == second[-1]["content"].strip():
        raise BadRecord("chosen and rejected are equal")
    marks = sum(count for _, count in cleaned)
    return PreferenceRecord(first, second, {**fields, "chosen": first, "rejected": second}, marks)


def _openai_preference(fields: Mapping[str, Any]) -> PreferenceRecord:
    """`input` with `messages` and `tools`, `preferred_output`, `non_preferred_output`."""
    given = fields.get("input")
    if not isinstance(given, dict):
        raise BadRecord("input is not an object with messages")
    for name in _CONVERSATIONS:
        if fields.get(name):
            raise BadRecord(f"{name} stands beside the conversation in input")
    own = {name: value for name, value in fields.items() if name != "input"}
    own |= {"messages": given.get("messages"), "tools": given.get("tools") or fields.get("tools")}
    record = _preference(own, fields.get("preferred_output"), fields.get("non_preferred_output"))
    return PreferenceRecord(record.chosen, record.rejected, {**own, **_sides_of(record)}, record.marks)


def _sides_of(record: PreferenceRecord) -> dict[str, Any]:
    return {"chosen": record.chosen, "rejected": record.rejected}


def _swift_preference(fields: Mapping[str, Any], rejected: Any) -> PreferenceRecord:
    """ms-swift: a conversation with a good answer, and beside it a worse one, or a worse conversation."""
    good = {name: value for name, value in fields.items() if name not in ("rejected_response", "rejected_messages")}
    chosen = parse_record(good)
    if not isinstance(chosen, ChatRecord):
        raise BadRecord("rejected_response beside no conversation")
    if isinstance(rejected, list) and len(rejected) == 1 and isinstance(rejected[0], str):
        rejected = rejected[0]
    if isinstance(rejected, str):
        worse = [_assistant(rejected)]
    else:
        worse = _messages(rejected)
    whole = any(message["role"] == "user" for message in worse)
    worse = _around(good, worse) if whole else [*chosen.messages[:-1], *worse]
    record = _preference({}, chosen.messages, worse)
    return PreferenceRecord(record.chosen, record.rejected, {**good, **_sides_of(record)}, record.marks)


def _prompt(fields: Mapping[str, Any]) -> list[Message]:
    """The turns before the two answers, where they stand apart from them, without history and system text."""
    messages: list[Message] = []
    for name in (*_CONVERSATIONS, *_QUESTIONS):
        if isinstance(fields.get(name), list):
            messages = _messages(fields[name])
            break
        if fields.get(name) and not isinstance(fields[name], str):
            raise BadRecord("prompt is neither a string nor a list")
        if fields.get(name) and name in _CONVERSATIONS:
            messages = _messages(fields[name]) if fields[name].lstrip().startswith("[") else [_user(fields[name])]
            break
    if messages:
        _refuse_elsewhere(fields, (*_QUESTIONS, *_PASSAGES), messages)
        return messages
    parts = _asked(fields)
    if not any(fields.get(name) for name in _QUESTIONS):
        return []  # a passage alone is no prompt; beside whole conversations it is looked for in them
    earlier = _spoken(parts[0]) if len(parts) == 1 else []
    if earlier and earlier[-1]["role"] == "assistant" and not earlier[-1]["content"]:
        return earlier[:-1]
    return [_user("\n".join(parts))] if parts else []


def _side(value: Any, fields: Mapping[str, Any], before: list[Message]) -> list[Message]:
    """One of the two conversations, whole."""
    if isinstance(value, str) and not before:
        messages = _spoken(value)
        if not messages:
            raise BadRecord("preference strings without a prompt")
    elif isinstance(value, str):
        messages = [_assistant(value)]
    elif isinstance(value, dict):
        messages = [_message(value)]
    elif isinstance(value, list):
        messages = _messages(value)
    else:
        raise BadRecord("chosen or rejected is neither a list nor a string")
    if not any(message["role"] == "user" for message in messages):
        return _around(fields, [*before, *messages])
    messages = _around(fields, messages)
    _refuse_elsewhere(fields, (*_QUESTIONS, *_PASSAGES), messages)
    for turn in before:
        if turn["role"] != "user" or _holds(messages, turn["content"]):
            continue
        if not all(_holds(messages, part) for part in turn["content"].split("\n")):
            raise BadRecord("the prompt is not in the conversations of chosen and rejected")
    return messages


def _is_multiple_choice(fields: Mapping[str, Any]) -> bool:
    return ("A" in fields and "B" in fields) or any(isinstance(fields.get(name), list | dict) for name in _CHOICES)


def _multiple_choice(fields: Mapping[str, Any]) -> tuple[str, str]:
    """Question with lettered options, and the answer with its letter."""
    if not any(isinstance(fields.get(name), str) and fields[name].strip() for name in _QUESTIONS):
        raise BadRecord("multiple choice without a question")
    options = _options(fields)
    letter = _answer_letter(fields, options)
    lines = [part.strip() for part in _asked(fields)]
    lines += [f"{name}. {text}" for name, text in options.items()]
    return "\n".join(lines), f"答案：{letter}。{options[letter]}"


def _options(fields: Mapping[str, Any]) -> dict[str, str]:
    listed = next((fields[name] for name in _CHOICES if isinstance(fields.get(name), list | dict)), None)
    if isinstance(listed, dict):
        options = dict(listed)
    elif listed is not None:
        if len(listed) > len(_LETTERS):
            raise BadRecord("multiple choice with more options than letters")
        options = dict(zip(_LETTERS[: len(listed)], listed, strict=True))
    else:
        options = {letter: fields[letter] for letter in _LETTERS if fields.get(letter) not in (None, "")}
    options = {letter: str(text) if isinstance(text, int | float) else text for letter, text in options.items()}
    if len(options) < 2 or not all(isinstance(text, str) and text.strip() for text in options.values()):
        raise BadRecord("multiple choice without options")
    return {letter: _OWN_LETTER.sub("", text).strip() or text.strip() for letter, text in options.items()}


def _answer_letter(fields: Mapping[str, Any], options: dict[str, str]) -> str:
    """The right option, given by letter, by index from 0, or by its text."""
    given = next(
        (fields[name] for name in ("answer", "Answer", "label") if fields.get(name) not in (None, "", [])), None
    )
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(options):
        return list(options)[given]
    if isinstance(given, str):
        letter = given.strip().strip("()（）.。").upper()
        if letter in options:
            return letter
        for name, text in options.items():
            if text == _OWN_LETTER.sub("", given).strip() or text == given.strip():
                return name
    raise BadRecord("multiple choice without a valid answer")


# --- files ------------------------------------------------------------------------------------------------------


def is_source(path: Path) -> bool:
    """Whether a file's name says that it holds records."""
    return bare_name(path).lower().endswith(PLAIN_SUFFIXES)


def bare_name(path: Path) -> str:
    """The file name without `.gz` or `.xz`."""
    return path.stem if path.suffix.lower() in PACKED_SUFFIXES else path.name


class _Watched(io.RawIOBase):
    """A file as it lies on the disk; reports the bytes that are read, to a hash and to a progress bar."""

    def __init__(self, file: io.FileIO, on_bytes: Callable[[memoryview], object] | None) -> None:
        self.file, self.on_bytes = file, on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self.file.readinto(buffer) or 0
        if self.on_bytes is not None:
            self.on_bytes(memoryview(buffer)[:size])
        return size


class _Filled(io.RawIOBase):
    """A packed file, read in whole blocks: its first bytes tell what it is."""

    def __init__(self, file: gzip.GzipFile | lzma.LZMAFile) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self.file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


@contextmanager
def open_source(path: Path, on_bytes: Callable[[memoryview], object] | None = None) -> Iterator[IO[bytes]]:
    """Open a record file for reading, unpacked where its name ends in `.gz` or `.xz`.

    Raises: UserError when it can't be read or its packing is damaged, also while it is being read.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(io.FileIO(path))
            file: IO[bytes] = io.BufferedReader(_Watched(raw, on_bytes), READ_BLOCK_BYTES)
            if path.suffix.lower() == ".gz":
                file = io.BufferedReader(_Filled(stack.enter_context(gzip.GzipFile(fileobj=file))), READ_BLOCK_BYTES)
            elif path.suffix.lower() == ".xz":
                file = io.BufferedReader(_Filled(stack.enter_context(lzma.LZMAFile(file))), READ_BLOCK_BYTES)
            yield file
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{display(path)}: damaged or cut short ({error}). Fetch it again.", "文件损坏或不完整：请重新下载"
        ) from error
    except FileNotFoundError:
        raise UserError(f"{display(path)}: no such file. Check the path.", "找不到文件：请检查路径") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{display(path)}: can't be read ({reason}). Check the file's permissions.", "无法读取：请检查文件权限"
        ) from error


def read_items(path: Path, on_bytes: Callable[[memoryview], object] | None = None) -> Iterator[tuple[int, Item]]:
    """The records of a file with their line numbers, from 1: lines of JSON, the values of a JSON array, or rows of CSV;
    in UTF-8, UTF-16, UTF-32 or GB18030. Blank lines are left out.

    Raises: UserError for a file that is something else, with what it is.
    """
    with open_source(path, on_bytes) as packed:
        file, _ = unicode_file(packed, display(path))
        head = head_of(file)
        if _is_table(path, head):
            yield from _read_rows(_read_lines(file))
        elif is_multi_line(head):
            yield from read_values(file, display(path), MAX_LINE_BYTES)
        else:
            refuse_table(head, display(path))
            yield from _read_lines(file)


def _is_table(path: Path, head: bytes) -> bool:
    """Whether a file is CSV by its name, and no JSON by its first character."""
    return bare_name(path).lower().endswith(".csv") and not head.removeprefix(BOM).lstrip().startswith((b"{", b"["))


def format_of(path: Path) -> str:
    """What a file is where that is not plain lines in UTF-8, such as `GB18030 (GBK), a JSON array`; else empty."""
    with open_source(path) as packed:
        file, codec = unicode_file(packed, display(path))
        head = head_of(file)
        words = [ENCODING_NAMES[codec]] if codec != "utf-8" else []
        if not _is_table(path, head) and is_multi_line(head):
            words.append(
                "a JSON array" if head.removeprefix(BOM).lstrip().startswith(b"[") else "JSON over several lines"
            )
    return ", ".join(words)


def _read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | BadItem]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        if number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
        if len(line) > MAX_LINE_BYTES and len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
            head, ended = line[:HEAD_BYTES], line.endswith(b"\n")
            del line
            while not ended and (rest := file.readline(READ_BLOCK_BYTES)):
                ended = rest.endswith(b"\n")
            yield number, BadItem(f"line above {MAX_LINE_BYTES >> 20} MB", head)
        elif not line.isspace():
            yield number, line


def _read_rows(lines: Iterator[tuple[int, bytes | BadItem]]) -> Iterator[tuple[int, Item]]:
    """Rows of a CSV file as dicts by its header; a cell may hold line ends."""
    bad: list[tuple[int, BadItem]] = []
    numbers = [0]

    def decoded() -> Iterator[str]:
        for number, line in lines:
            numbers[0] = number
            if isinstance(line, BadItem):
                bad.append((number, line))
                continue
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                bad.append((number, BadItem("invalid UTF-8", line[:HEAD_BYTES])))

    csv.field_size_limit(MAX_LINE_BYTES)
    rows = csv.reader(decoded())
    header: list[str] | None = None
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            bad.append((numbers[0], BadItem("malformed CSV", b"")))
            row = []
        yield from bad
        bad.clear()
        if row is None:
            return
        if header is None:
            header = row or None
        elif row:
            if len(row) == len(header):
                yield numbers[0], {name: cell for name, cell in zip(header, row, strict=True) if name}
            else:
                yield (
                    numbers[0],
                    BadItem("row with another number of cells than the header", ",".join(row).encode()[:HEAD_BYTES]),
                )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key stands twice: the first value would be lost. Raises: BadRecord."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadRecord("a key twice in one JSON object")
    return fields


_DECODER = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_object)
"""NaN and Infinity, which are no JSON, become null: a column of somebody's scores is no reason to lose a record."""
_LENIENT = json.JSONDecoder(
    parse_constant=lambda _: None, parse_int=lambda digits: _whole_number(digits), object_pairs_hook=_object
)


def _whole_number(digits: str) -> int | str:
    """The number; as text where Python refuses to read so many digits."""
    try:
        return int(digits)
    except ValueError:
        return digits


def decode_item(item: Item, fill: Mapping[str, str]) -> dict[str, Any]:
    """The record in a line or row. `fill` maps placeholders such as `{{name}}` to what replaces them.

    Raises: BadRecord.
    """
    if isinstance(item, BadItem):
        raise BadRecord(item.reason)
    if isinstance(item, dict):
        row = dict(item)
        for mark, value in fill.items():
            row = {name: cell.replace(mark, value) for name, cell in row.items()}
        return row
    try:
        text = item.decode("utf-8")
    except UnicodeDecodeError:
        gbk = is_chinese_gb18030(item)
        raise BadRecord("GB18030 (GBK) in a file that is UTF-8 elsewhere" if gbk else "invalid UTF-8") from None
    for mark, value in fill.items() if "{{" in text else ():
        text = text.replace(mark, json.dumps(value, ensure_ascii=False)[1:-1])
    fields = _decoded(text)
    if isinstance(fields, list) and fields and all(isinstance(turn, dict) for turn in fields):
        fields = {"conversations": fields}
    if not isinstance(fields, dict):
        raise BadRecord(f"not a JSON object but {_JSON_KINDS.get(type(fields), 'a number')}")
    if "\\u" in text:
        _refuse_half_characters(fields)
    return fields


_JSON_KINDS = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}


def _decoded(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        pass
    try:
        return _LENIENT.decode(text)
    except (ValueError, RecursionError):
        raise BadRecord(why_no_json(text)) from None


def _refuse_half_characters(fields: dict[str, Any]) -> None:
    """An escape such as \\ud800 alone is no character and could never be written again."""
    try:
        json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord("broken Unicode escape") from None


def shown_text(item: Item) -> str:
    """The first 200 characters of a line or row, for a person who looks for what is wrong."""
    if isinstance(item, dict):
        return ",".join(item.values())[:200]
    head = item.head if isinstance(item, BadItem) else item[:HEAD_BYTES]
    return head.decode("utf-8", errors="replace").rstrip("\r\n")[:200]


def numbered_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file with their line numbers, brought into shape. Raises: UserError with file and line at the
    first bad one."""
    for number, item in read_items(path):
        try:
            record = parse_record(decode_item(item, {}))
        except BadRecord as error:
            raise bad_line(f"{display(path)}:{number}", error) from None
        yield number, record.fields


def bad_line(where: str, problem: Exception) -> UserError:
    """The message for a record that can't be used, with the Chinese half that the problem may have."""
    chinese = problem.chinese if isinstance(problem, UserError) else "这条记录不可用"
    return UserError(f"{where}: {str(problem).rstrip('.')}. Fix or remove that line.", f"{chinese}，请修改或删除该行")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file. Raises: as `numbered_records`."""
    return (record for _, record in numbered_records(path))


def text_hash(text: str) -> bytes:
    """8 bytes that stand for a text; 10 million texts share one by chance less than once in 100,000 data sets."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
