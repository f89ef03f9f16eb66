"""A line of JSON or a row of CSV -> the fields of a record, or the reason why it can't be read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataset.records.file_kinds import is_chinese_gb18030, why_no_json
from dataset.records.record import BadRecord

HEAD_BYTES = 800
"""Bytes of a rejected line that are kept, so that we can show its beginning."""


@dataclass(frozen=True, slots=True)
class BadItem:
    """A line or row that can't be read, with the reason and its first bytes."""

    reason: str
    head: bytes


Item = bytes | dict[str, str] | BadItem
"""A line of JSON (bytes), a row of CSV (dict), or what can't be read."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises: BadRecord for a key that is there twice, because Python would lose the
    first value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadRecord("a key twice in one JSON object")
    return fields


_DECODER = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_object)
"""NaN and Infinity are not JSON, but data sets have them in columns of scores. They become null."""
_LENIENT = json.JSONDecoder(
    parse_constant=lambda _: None, parse_int=lambda digits: _whole_number(digits), object_pairs_hook=_object
)


"""The same, also for whole numbers with more digits than Python reads (4,300). It is slower."""


def _whole_number(digits: str) -> int | str:
    """The number, or its digits as text if Python refuses to read so many."""
    try:
        return int(digits)
    except ValueError:
        return digits


def decode_item(item: Item, fill: Mapping[str, str]) -> dict[str, Any]:
    """The record in a line or row.

    Args: fill: placeholder, such as `{{name}}` -> what replaces it.
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
    # The value goes into a text of JSON, so it is written as JSON, without the quotes around it.
    for mark, value in fill.items() if "{{" in text else ():
        text = text.replace(mark, json.dumps(value, ensure_ascii=False)[1:-1])
    fields = _decoded(text)
    if isinstance(fields, list) and fields and all(isinstance(turn, dict) for turn in fields):
        fields = {"conversations": fields}
    if not isinstance(fields, dict):
        raise BadRecord(f"not a JSON object but {_JSON_KINDS.get(type(fields), 'a number')}")
    if "\\u" in text:  # only an escape can make half a character
        _refuse_half_characters(fields)
    return fields


_JSON_KINDS = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}


def _decoded(text: str) -> Any:
    """The value of a line of JSON. Raises: BadRecord with what the line seems to be instead."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        pass
    try:
        return _LENIENT.decode(text)
    except (ValueError, RecursionError):
        raise BadRecord(why_no_json(text)) from None


def _refuse_half_characters(fields: dict[str, Any]) -> None:
    """Raises: BadRecord for half of a surrogate pair, such as \\ud800: UTF-8 can't hold it."""
    try:
        json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord("broken Unicode escape") from None


def shown_text(item: Item) -> str:
    """The first 200 characters of a line or row, so that a person can see what is wrong."""
    if isinstance(item, dict):
        return ",".join(item.values())[:200]
    head = item.head if isinstance(item, BadItem) else item[:HEAD_BYTES]
    return head.decode("utf-8", errors="replace").rstrip("\r\n")[:200]


_ENCODER = json.JSONEncoder(ensure_ascii=False)


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON in UTF-8, with its line end."""
    return _ENCODER.encode(record).encode("utf-8") + b"\n"
