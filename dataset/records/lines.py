"""A line of JSON or a row of CSV -> the fields of a record, or the reason why it can't be read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataset.records.file_kinds import is_chinese_gb18030, why_no_json
from dataset.records.record import BadRecord

HEAD_BYTES = 800
"""Bytes of a rejected line that are kept to show it."""


@dataclass(frozen=True, slots=True)
class BadItem:
    """A line that can't even be read as JSON or as a row."""

    reason: str
    head: bytes


Item = bytes | dict[str, str] | BadItem
"""A line of JSON, a row of CSV, or neither."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key stands twice: the first value would be lost. Raises:
    BadRecord."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadRecord("a key twice in one JSON object")
    return fields


_DECODER = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_object)
"""NaN and Infinity, which are not JSON, become null: a column of somebody's scores is no reason to
lose a record."""
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
    """The record in a line or row. `fill` maps placeholders such as `{{name}}` to what replaces
    them.

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


_ENCODER = json.JSONEncoder(ensure_ascii=False)


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as it is written: a line of JSON in UTF-8, with its line end."""
    return _ENCODER.encode(record).encode("utf-8") + b"\n"
