"""What makes two records the same: normalised texts, groups, the record's own split, hashes."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from dataset.records.record import PreferenceRecord, Record, TextRecord

_COMMON_MARKS = re.compile(r"[\s，。！？、：；“”‘’（）《》【】…—,.!?;:'\"()\[\]-]+")
"""Marks that NFKC turns into marks alone: taken out first, because NFKC is slow wherever it has
anything to change."""
_MARKS = re.compile(r"[\W_]+")
_MARKS_BUT_IN_NUMBERS = re.compile(r"(?<!\d)[\W_]+|[\W_]+(?!\d)")


def normalised(text: str) -> str:
    """The letters and digits of a text, widths and cases made equal: two texts that differ only in
    case, spacing or punctuation become one. A text of marks alone stays as it is, without its
    spaces."""
    bare = _COMMON_MARKS.sub("", text)
    return _MARKS.sub("", unicodedata.normalize("NFKC", bare).casefold()) or "".join(text.split())


def normalised_question(text: str) -> str:
    """As `normalised`, but marks between two digits stay, so that 12+3 and 1+23 remain two
    questions."""
    spaceless = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _MARKS_BUT_IN_NUMBERS.sub("", spaceless) or spaceless


SPLITS = ("train", "heldout", "validation", "valid", "val", "dev", "test")
"""Values of `split` that decide a record's side. Any other one is a column of somebody's own."""


def split_of(fields: Mapping[str, Any]) -> str | None:
    """The side that a record itself names; None where its `split` is missing or not one of
    `SPLITS`."""
    split = fields.get("split")
    return split if isinstance(split, str) and split in SPLITS else None


def has_group(record: Record) -> bool:
    """Whether a record has a `group` that can decide its side: a text."""
    group = record.fields.get("group")
    return isinstance(group, str) and group != ""


def group_key(record: Record) -> str:
    """A record's `group`, normalised. Marks become spaces instead of vanishing: `sum:1,23` and
    `sum:12,3` are two."""
    group = unicodedata.normalize("NFKC", record.fields["group"]).casefold()
    return "group " + " ".join(_MARKS.split(group)).strip()


def question_key(record: Record) -> str:
    """What decides the side of a record without a group: the first user turn, else the text;
    normalised."""
    return normalised(record.text if isinstance(record, TextRecord) else record.questions()[0])


def heldout_key(record: Record) -> str:
    """What decides a record's side: its `group`, else its question or text."""
    return group_key(record) if has_group(record) else question_key(record)


def text_hash(text: str) -> bytes:
    """8 bytes that stand for a text; 10 million texts share one by chance less than once in 100,000
    data sets."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()


def content_of(record: Record) -> str:
    """What is learnt from a record, so that two records with equal content are one."""
    if isinstance(record, TextRecord):
        return record.text
    if isinstance(record, PreferenceRecord):
        return _joined(record.chosen) + "\x1d" + _joined(record.rejected)
    return _joined(record.messages)


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for message in messages:
        parts += [message["role"], message["content"]]
        if len(message) > 2:
            extra = {key: value for key, value in message.items() if key not in {"role", "content"}}
            parts.append(json.dumps(extra, ensure_ascii=False, sort_keys=True))
    return "\x1f".join(parts)
