"""A conversation as a file: one JSON line in the shape of training records, to go on with later.

    {"conversations": [{"role": "user", ...}, ...], "source": "eval_model.py", "model": "rlhf.pth"}

Put into `data/chinese/` under a name such as `sft_mine.jsonl`, it is data for SFT.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

from configs.artifacts import atomic_write
from configs.paths import display
from configs.schema import UserError
from dataset.chat import message_fault, place_fault
from dataset.tokenizer import without_surrogates
from inference.conversation import Message

SOURCE = "eval_model.py"
"""The `source` of a saved conversation."""
MOST_BYTES = 1 << 24
"""A larger file is no conversation."""


def save_talk(path: Path, messages: list[Message], model: str) -> None:
    """Write a conversation, completely or not at all.

    Args: model: the name of the weights that answered.
    Raises: UserError when the file can't be written, or holds anything but one saved conversation.
    """
    path = path.expanduser().resolve()
    if path.exists() and not (path.is_file() and _may_be_replaced(path)):
        raise UserError(
            f"{display(path)}: is there already, and is no saved conversation. Name another file.",
            "已有同名的其他文件：请换个文件名",
        )
    with atomic_write(path) as file:
        json.dump({"conversations": messages, "source": SOURCE, "model": model}, file, ensure_ascii=False)
        file.write("\n")


def load_talk(path: Path) -> list[Message]:
    """The messages of a saved conversation, or of a file with one training record.

    Raises: UserError when there is no such file, or it holds something else.
    """
    path = path.expanduser()
    messages = _read(path).get("conversations")
    if not isinstance(messages, list) or not messages:
        _refuse(path, "holds no conversations", "没有 conversations 字段")
    before = ""
    for number, message in enumerate(messages, start=1):
        if fault := message_fault(message) or place_fault(message, before, to_learn=False):
            _refuse(path, f"message {number}: {fault.english.rstrip('.')}", f"第 {number} 条消息：{fault.chinese}")
        before = message["role"]
    if not any(message["role"] == "user" for message in messages):
        _refuse(path, "holds no question", "没有提问")
    if before != "assistant":
        _refuse(path, "must end with an answer", "最后一条应是助手的话")
    return [_without_half_characters(message) for message in messages]


def _may_be_replaced(path: Path) -> bool:
    """Whether a file is empty or holds one saved conversation."""
    try:
        return path.stat().st_size == 0 or _read(path).get("source") == SOURCE
    except UserError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """The object of a file with one JSON line. Raises: UserError."""
    try:
        if not path.is_file():
            _refuse(path, "no such file", "没有这个文件")
        if path.stat().st_size > MOST_BYTES:
            _refuse(path, "is too large for one conversation", "文件太大，不是一段对话")
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        if len(lines) != 1:
            _refuse(path, f"has {len(lines)} lines, not one conversation", "应只有一行，即一段对话")
        value = json.loads(lines[0], parse_constant=_no_number)
    except OSError as error:
        _refuse(path, f"can't be read ({error.strerror or error})", "无法读取")
    except (ValueError, RecursionError):
        _refuse(path, "is not JSON", "不是 JSON")
    if not isinstance(value, dict):
        _refuse(path, "is not a JSON object", "不是 JSON 对象")
    return value


def _refuse(path: Path, what: str, chinese: str) -> NoReturn:
    """Raises: UserError about a file that is no conversation."""
    raise UserError(f"{display(path)}: {what}. Name a file that /save wrote.", f"{chinese}：请用 /save 存下的文件")


def _no_number(name: str) -> NoReturn:
    """Raises: ValueError for NaN and Infinity, which JSON does not know."""
    raise ValueError(name)


def _without_half_characters(message: Message) -> Message:
    """The message; halves of characters, which JSON can hold, become U+FFFD."""
    return {key: without_surrogates(value) if isinstance(value, str) else value for key, value in message.items()}
