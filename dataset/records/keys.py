"""What makes two records the same: normalised texts, groups, contents; the record's own split."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from dataset.records.record import PreferenceRecord, Record, TextRecord

_COMMON_MARKS = re.compile(r"[\s，。！？、：；“”‘’（）《》【】…—,.!?;:'\"()\[\]-]+")
"""Common marks that NFKC never turns into letters. They are removed before NFKC, because NFKC is
slow for a text in which it has to change anything."""
_MARKS = re.compile(r"[\W_]+")
_MARKS_BUT_IN_NUMBERS = re.compile(r"(?<!\d)[\W_]+|[\W_]+(?!\d)")


def normalised(text: str) -> str:
    """The letters and digits of a text, in lower case and normal width.

    So texts that differ only in case, spacing or punctuation become equal. A text that has nothing
    but marks keeps them and loses only its spaces.
    """
    bare = _COMMON_MARKS.sub("", text)
    return _MARKS.sub("", unicodedata.normalize("NFKC", bare).casefold()) or "".join(text.split())


def normalised_question(text: str) -> str:
    """As `normalised`, but marks between two digits stay, so that 12+3 and 1+23 are different."""
    spaceless = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _MARKS_BUT_IN_NUMBERS.sub("", spaceless) or spaceless


SPLITS = ("train", "heldout", "validation", "valid", "val", "dev", "test")
"""Values of `split` that decide a record's side. Other values mean something else: no split."""


def split_of(fields: Mapping[str, Any]) -> str | None:
    """The record's own `split`; None if it is missing or not one of SPLITS."""
    split = fields.get("split")
    return split if isinstance(split, str) and split in SPLITS else None


def has_group(record: Record) -> bool:
    """Whether a record has a `group` that is a text, so that it can be the key."""
    group = record.fields.get("group")
    return isinstance(group, str) and group != ""


def group_key(record: Record) -> str:
    """A record's `group`, normalised.

    Punctuation marks are replaced by spaces. If they were removed, `sum:1,23` and `sum:12,3` would
    become the same key.
    """
    group = unicodedata.normalize("NFKC", record.fields["group"]).casefold()
    return "group " + " ".join(_MARKS.split(group)).strip()


def question_key(record: Record) -> str:
    """The key of a record without a group: the first user turn or the text, normalised."""
    return normalised(record.text if isinstance(record, TextRecord) else record.questions()[0])


def heldout_key(record: Record) -> str:
    """The key, which decides a record's side: its `group`, else `question_key`."""
    return group_key(record) if has_group(record) else question_key(record)


def text_hash(text: str) -> bytes:
    """A hash of 8 bytes.

    The chance that any two of 10 million texts have the same hash is below 1 in 100,000.
    """
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()


def content_of(record: Record) -> str:
    """All that a record teaches, as one text. Records with equal contents are duplicates."""
    if isinstance(record, TextRecord):
        return record.text
    if isinstance(record, PreferenceRecord):
        return _joined(record.chosen) + "\x1d" + _joined(record.rejected)
    return _joined(record.messages)


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as one text, with the control character U+001F between the parts."""
    parts = []
    for message in messages:
        parts += [message["role"], message["content"]]
        if len(message) > 2:  # more than role and content, such as tool calls
            extra = {key: value for key, value in message.items() if key not in {"role", "content"}}
            parts.append(json.dumps(extra, ensure_ascii=False, sort_keys=True))
    return "\x1f".join(parts)
