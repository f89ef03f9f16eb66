"""The first pass over the sources: every record is checked, and a few hashes of it are kept."""

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import IO

import numpy as np
import numpy.typing as npt

from configs.progress import Progress
from configs.schema import MixConfig, UserError
from dataset.mix.drop_reasons import Rejections, problem_of, rejected_line
from dataset.mix.sources import Source, file_state, read_source
from dataset.records.files import format_of
from dataset.records.keys import (
    content_of,
    group_key,
    has_group,
    normalised_question,
    question_key,
    split_of,
    text_hash,
)
from dataset.records.lines import json_line
from dataset.records.record import BadRecord, Record, TextRecord

LONGEST_QUESTION = 200
"""Characters; a longer raw text is not taken for a question."""
SHORT_TURN = 8
"""Letters and digits; 继续, 好的 and 谢谢 are short turns."""
HASH_BYTES = 8

Hashes = npt.NDArray[np.uint64]


class OwnSplit(IntEnum):
    """Where a record itself says that it belongs (its field `split`)."""

    NONE = 0
    TRAIN = 1
    HELDOUT = 2
    """Held out; the mix chooses the half."""
    VALIDATION = 3
    TEST = 4
    REJECTED = 5
    """The record can't be used."""


HELDOUT_MARKS = (OwnSplit.HELDOUT, OwnSplit.VALIDATION, OwnSplit.TEST)
_OWN_SPLITS: dict[str | None, int] = {
    None: int(OwnSplit.NONE),
    "train": int(OwnSplit.TRAIN),
    "heldout": int(OwnSplit.HELDOUT),
    **dict.fromkeys(("validation", "valid", "val", "dev"), int(OwnSplit.VALIDATION)),
    "test": int(OwnSplit.TEST),
}
"""A record's `split` -> the byte that is kept of it."""


@dataclass(slots=True)
class SourceScan:
    """What the first pass remembers of one source file."""

    format: str
    """What the file is, where that is not plain lines in UTF-8."""
    state: tuple[int, int]
    """Size and time of change, to notice when the file changes between the passes."""
    count: int = 0
    """Records, rejected ones included."""
    size: int = 0
    """Bytes of the records that can be used."""
    digest: str = ""
    """SHA-256 of the file."""
    rejections: Rejections = field(default_factory=Rejections)
    marked: Counter[str] = field(default_factory=Counter)
    """`records` with marks of other chat formats, and the `marks`."""
    odd_groups: int = 0
    """Records whose `group` is not text."""
    odd_splits: int = 0
    """Records whose `split` is none of ours."""


@dataclass(slots=True)
class Scan:
    """What the first pass remembers of all records, in the order of the sources."""

    contents: bytearray = field(default_factory=bytearray)
    """8 bytes a record: hash of what is learnt from it."""
    keys: bytearray = field(default_factory=bytearray)
    """8 bytes a record: hash of its first user turn or its text."""
    splits: bytearray = field(default_factory=bytearray)
    """1 byte a record: an `OwnSplit`."""
    groups: bytearray = field(default_factory=bytearray)
    """8 bytes a record with a `group`: hash of it."""
    groupers: "array[int]" = field(default_factory=lambda: array("I"))
    """The record of each group."""
    questions: bytearray = field(default_factory=bytearray)
    """8 bytes a user turn: hash of the question."""
    short: bytearray = field(default_factory=bytearray)
    """1 byte a user turn: whether it is a short one."""
    askers: "array[int]" = field(default_factory=lambda: array("I"))
    """The record of each user turn."""
    of_source: list[SourceScan] = field(default_factory=list)

    def add_rejected(self) -> None:
        """Keep the place of a bad record, so that both passes number the records alike."""
        self.splits.append(OwnSplit.REJECTED)
        self.contents += bytes(HASH_BYTES)
        self.keys += bytes(HASH_BYTES)

    def add(self, record: Record, split: str | None) -> None:
        """Keep the hashes of a record. `split`: as `split_of` gives it."""
        number = len(self.splits)
        for question in map(normalised_question, _questions_of(record)):
            self.questions += text_hash(question)
            self.short.append(len(question) <= SHORT_TURN)
            self.askers.append(number)
        if has_group(record):
            self.groups += text_hash(group_key(record))
            self.groupers.append(number)
        self.splits.append(_OWN_SPLITS[split])
        self.contents += text_hash(content_of(record))
        self.keys += text_hash(question_key(record))

    @property
    def counts(self) -> list[int]:
        """Records of each source, rejected ones included."""
        return [source.count for source in self.of_source]

    def spans(self) -> list[slice]:
        """Where the records of each source stand in the columns."""
        ends = np.cumsum([0, *self.counts]).tolist()
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def turns(self) -> tuple[Hashes, npt.NDArray[np.uint32]]:
        """Of each user turn the hash of the question, and the record that it stands in."""
        return np.frombuffer(self.questions, dtype="<u8"), np.frombuffer(self.askers, dtype=np.uint32)


def scan_sources(sources: Sequence[Source], config: MixConfig, rejects: IO[str], bar: Progress) -> Scan:
    """Check every record. Bad ones go to `rejects` with file, line, reason and text.

    Raises: UserError, once all sources are read, for one that holds too many bad records or not a
    single good one.
    """
    scan = Scan()
    problems = []
    for source in sources:
        bar.set_description(source.path.name)
        found = _scan_source(scan, source, config, rejects, bar)
        scan.of_source.append(found)
        problem = problem_of(source, found.count, found.rejections)
        if problem:
            problems.append(problem)
    if problems:
        more = f" ({len(problems) - 1} more files have the like.)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}", problems[0].chinese)
    return scan


def _scan_source(scan: Scan, source: Source, config: MixConfig, rejects: IO[str], bar: Progress) -> SourceScan:
    """Add the records of one source to the scan. Returns: what is to be known of the file."""
    found = SourceScan(format_of(source.path), file_state(source.path))
    start, digest = len(scan.splits), hashlib.sha256()

    def on_bytes(block: memoryview) -> None:
        digest.update(block)
        bar.update(len(block))

    for _, line, item, record in read_source(source, config, on_bytes):
        if isinstance(record, BadRecord):
            found.rejections.add(record, line)
            rejects.write(rejected_line(source, line, item, record))
            scan.add_rejected()
            continue
        if record.marks:
            found.marked.update(records=1, marks=record.marks)
        split = split_of(record.fields)
        found.odd_splits += split is None and record.fields.get("split") not in (None, "")
        found.odd_groups += not has_group(record) and record.fields.get("group") not in (None, "")
        # The second pass chooses the number of its buckets by this size.
        found.size += len(item) if isinstance(item, bytes) else len(json_line(record.fields))
        scan.add(record, split)
    found.count = len(scan.splits) - start
    found.digest = digest.hexdigest()
    return found


def _questions_of(record: Record) -> list[str]:
    """What may be asked again elsewhere: what the user says, or a short raw text."""
    if isinstance(record, TextRecord):
        return [record.text] if len(record.text) <= LONGEST_QUESTION else []
    return record.questions()
