"""The record shapes that MiniLLM reads, brought to three: raw text, a conversation, a preference pair.

Accepted: `{"text"}`; `{"conversations": [{"role", "content"}]}` with system, tool and reasoning fields; ShareGPT
(`from`/`value`); Alpaca (`instruction`/`input`/`output`) and its relatives; preference pairs (`chosen`/`rejected`,
lists or strings with a `prompt`); multiple choice (question, A to D, answer), in JSON lines or in CSV. A record keeps
its own fields; what is brought into shape goes to `text`, `conversations`, or `chosen` and `rejected`.
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

MAX_LINE_BYTES = 64 << 20
"""A longer line is rejected without being held in memory."""
READ_BLOCK_BYTES = 1 << 20
HEAD_BYTES = 800
"""Bytes of a rejected line that are kept to show it."""
BOM = b"\xef\xbb\xbf"
PLAIN_SUFFIXES = (".jsonl", ".json", ".csv")
PACKED_SUFFIXES = (".gz", ".xz")

Message = dict[str, Any]


class BadRecord(Exception):
    """A record that can't be used. The message is a fixed phrase, by which such records are counted."""


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

    def plain_text(self) -> str:
        return self.text

    def questions(self) -> list[str]:
        return []


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation that ends with the assistant."""

    messages: list[Message]
    fields: dict[str, Any]

    def plain_text(self) -> str:
        """What user and assistant say, a turn a line."""
        return "\n".join(m["content"] for m in self.messages if m["role"] in {"user", "assistant"} and m["content"])

    def questions(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message["content"] for message in self.messages if message["role"] == "user"]


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two conversations that differ in the last answer alone."""

    chosen: list[Message]
    rejected: list[Message]
    fields: dict[str, Any]

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
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_ONLY_ON = {"tools": "system", "tool_calls": "assistant", "reasoning_content": "assistant"}
_PLAIN_TURN = {"role", "content"}
_CHAT_ROLES = ("system", "user", "assistant")
_QUESTIONS = ("instruction", "question", "Question", "prompt", "query", "input")
_ANSWERS = ("output", "response", "completion", "answer", "golden")
_PASSAGES = ("passage", "context", "content")
_CHOICES = ("options", "choices", "choice")
_LETTERS = "ABCDEFGH"
_OWN_LETTER = re.compile(r"^\s*[(（]?[A-H]\s*[)）.．、:：]\s*")


def parse_record(fields: Mapping[str, Any]) -> Record:
    """Bring one record into shape. Raises: BadRecord with the reason."""
    if fields.get("chosen") is not None or fields.get("rejected") is not None:
        return _preference(fields)
    for name in ("conversations", "messages", "conversation"):
        if fields.get(name) is not None:
            return _chat(fields, _with_system(fields, _messages(fields[name])))
    if _is_multiple_choice(fields):
        question, answer = _multiple_choice(fields)
        return _chat(fields, [_user(question), _assistant(answer)])
    answered = any(fields.get(name) is not None for name in _ANSWERS)
    if answered and ("text" not in fields or any(fields.get(name) for name in _QUESTIONS)):
        return _alpaca(fields)
    if "text" in fields:
        text = fields["text"]
        if not isinstance(text, str):
            raise BadRecord("text is not a string")
        if not text.strip():
            raise BadRecord("empty text")
        return TextRecord(text, dict(fields))
    raise BadRecord("unknown shape")


def _user(content: Any) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: Any) -> Message:
    return {"role": "assistant", "content": content}


def _chat(fields: Mapping[str, Any], messages: list[Message]) -> ChatRecord:
    messages = _checked(messages)
    return ChatRecord(messages, {**fields, "conversations": messages})


def _messages(turns: Any) -> list[Message]:
    if not isinstance(turns, list):
        raise BadRecord("conversation is not a list")
    return [_message(turn) for turn in turns]


def _message(turn: Any) -> Message:
    """One turn, under `role` and `content`. Other fields stay where they hold something."""
    if not isinstance(turn, dict):
        raise BadRecord("turn is not an object")
    if turn.keys() == _PLAIN_TURN and turn["role"] in _CHAT_ROLES and isinstance(turn["content"], str):
        return turn  # nearly all turns are so
    role = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    if role == "function_call":  # ShareGPT's name for an assistant that calls a tool
        return {"role": "assistant", "content": "", "tool_calls": _entries(content)}
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRecord("unknown role")
    role = _ROLES[role]
    extra = {key: value for key, value in turn.items() if key not in {"role", "content", "from", "value"} and value}
    for key in ("tools", "tool_calls"):
        if key in extra:
            extra[key] = _entries(extra[key])
    if content is None and "tool_calls" in extra:
        content = ""
    if not isinstance(content, str):
        raise BadRecord("turn's content is not a string")
    if not isinstance(extra.get("reasoning_content", ""), str):
        raise BadRecord("reasoning_content is not a string")
    if any(key in extra and role != owner for key, owner in _ONLY_ON.items()):
        raise BadRecord("tools, tool_calls or reasoning_content in the wrong role")
    return {"role": role, "content": content, **extra}


def _entries(value: Any) -> list[dict[str, Any]]:
    """Tools or calls as a list of objects; data sets also store them as text that holds JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRecord("tools or tool_calls are not JSON") from None
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        function = (entry.get("function") or entry) if isinstance(entry, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRecord("a tool or tool call without a name")
    return entries


def _with_system(fields: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Add `system` and `tools` that stand beside the conversation instead of in it."""
    system, tools = fields.get("system"), fields.get("tools")
    if not system and not tools:
        return messages
    if system and not isinstance(system, str):
        raise BadRecord("system is not a string")
    if messages and messages[0]["role"] == "system":
        first, rest = dict(messages[0]), messages[1:]
    else:
        first, rest = {"role": "system", "content": system or ""}, messages
    if tools and "tools" not in first:
        first["tools"] = _entries(tools)
    return [first, *rest]


def _checked(messages: list[Message]) -> list[Message]:
    """The conversation up to the last answer: what a user says after it teaches nothing. Raises: BadRecord."""
    while messages and messages[-1]["role"] in {"user", "tool"} and any(m["role"] == "assistant" for m in messages):
        messages = messages[:-1]
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
    if before != "assistant":
        raise BadRecord("no assistant answer")
    return messages


def _alpaca(fields: Mapping[str, Any]) -> ChatRecord:
    """`instruction` and `input` to `output`, and the same under other names, with an optional `history`."""
    names = [name for name in _QUESTIONS if fields.get(name)]
    if not names:
        raise BadRecord("answer without a question")
    asked = [fields[names[0]]]
    if names[0] != "input" and fields.get("input"):
        asked.append(fields["input"])
    answer = next(fields[name] for name in _ANSWERS if fields.get(name) is not None)
    if not all(isinstance(part, str) for part in (*asked, answer)):
        raise BadRecord("question or answer is not a string")
    messages: list[Message] = []
    for pair in fields.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise BadRecord("history is not a list of [question, answer]")
        messages += [_user(pair[0]), _assistant(pair[1])]
    messages += [_user("\n".join(asked)), _assistant(answer)]
    return _chat(fields, _with_system(fields, messages))


def _preference(fields: Mapping[str, Any]) -> PreferenceRecord:
    before = _prompt(fields)
    chosen, rejected = (_side(fields.get(name), before) for name in ("chosen", "rejected"))
    for side in (chosen, rejected):
        if not side:
            raise BadRecord("empty conversation")
        if side[-1]["role"] != "assistant":
            raise BadRecord("no assistant answer")
        _checked(side)
    if [(m["role"], m["content"]) for m in chosen[:-1]] != [(m["role"], m["content"]) for m in rejected[:-1]]:
        raise BadRecord("chosen and rejected answer different questions")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise BadRecord("chosen and rejected are equal")
    return PreferenceRecord(chosen, rejected, {**fields, "chosen": chosen, "rejected": rejected})


def _prompt(fields: Mapping[str, Any]) -> list[Message]:
    """The turns before the two answers, where they stand apart from them."""
    for name in ("prompt", "conversations", "messages", "instruction", "question"):
        value = fields.get(name)
        if isinstance(value, list):
            return _with_system(fields, _messages(value))
        if isinstance(value, str) and value:
            more = fields.get("input") if name == "instruction" else None
            return _with_system(fields, [_user(f"{value}\n{more}" if isinstance(more, str) and more else value)])
        if value:
            raise BadRecord("prompt is neither a string nor a list")
    return []


def _side(value: Any, before: list[Message]) -> list[Message]:
    if isinstance(value, str):
        if not before:
            raise BadRecord("preference strings without a prompt")
        return [*before, _assistant(value)]
    if isinstance(value, dict):
        return [*before, _message(value)]
    if not isinstance(value, list):
        raise BadRecord("chosen or rejected is neither a list nor a string")
    messages = _messages(value)
    return messages if any(message["role"] == "user" for message in messages) else [*before, *messages]


def _is_multiple_choice(fields: Mapping[str, Any]) -> bool:
    return ("A" in fields and "B" in fields) or any(isinstance(fields.get(name), list | dict) for name in _CHOICES)


def _multiple_choice(fields: Mapping[str, Any]) -> tuple[str, str]:
    """Question with lettered options, and the answer with its letter."""
    question = fields.get("question") or fields.get("Question")
    if not isinstance(question, str) or not question.strip():
        raise BadRecord("multiple choice without a question")
    options = _options(fields)
    letter = _answer_letter(fields, options)
    passage = next(
        (fields[name] for name in _PASSAGES if isinstance(fields.get(name), str) and fields[name].strip()), ""
    )
    lines = [passage.strip()] if passage else []
    lines += [question.strip(), *(f"{name}. {text}" for name, text in options.items())]
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
                file = io.BufferedReader(stack.enter_context(gzip.GzipFile(fileobj=file)), READ_BLOCK_BYTES)
            elif path.suffix.lower() == ".xz":
                file = io.BufferedReader(stack.enter_context(lzma.LZMAFile(file)), READ_BLOCK_BYTES)
            yield file
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{display(path)}: damaged or cut short ({error}). Fetch it again.") from error
    except FileNotFoundError:
        raise UserError(f"{display(path)}: no such file. Check the path.") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{display(path)}: can't be read ({reason}). Check the file's permissions.") from error


def read_items(path: Path, on_bytes: Callable[[memoryview], object] | None = None) -> Iterator[tuple[int, Item]]:
    """The lines (JSON) or rows (CSV) of a record file with their line numbers, from 1; blank lines are left out."""
    with open_source(path, on_bytes) as file:
        lines = _read_lines(file)
        if bare_name(path).lower().endswith(".csv"):
            yield from _read_rows(lines)
        else:
            yield from lines


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


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


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
        raise BadRecord("invalid UTF-8") from None
    for mark, value in fill.items() if "{{" in text else ():
        text = text.replace(mark, json.dumps(value, ensure_ascii=False)[1:-1])
    try:
        fields = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise BadRecord("malformed JSON") from None
    if not isinstance(fields, dict):
        raise BadRecord("not a JSON object")
    if "\\u" in text:
        _refuse_half_characters(fields)
    return fields


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


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, brought into shape. Raises: UserError with file and line at the first bad one."""
    for number, item in read_items(path):
        try:
            record = parse_record(decode_item(item, {}))
        except BadRecord as error:
            raise UserError(f"{display(path)}:{number}: {error}. Mend or remove that line.") from None
        yield record.fields


def text_hash(text: str) -> bytes:
    """8 bytes that stand for a text; 10 million texts share one by chance less than once in 100,000 data sets."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
