"""The first pass over the sources: checks every record and keeps a few hashes of it."""

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
"""Characters. A raw text up to this length may be a question; a longer one is not."""
SHORT_TURN = 8
"""How many letters and digits a short turn has at most. 继续, 好的 and 谢谢 are short turns."""
HASH_BYTES = 8

Hashes = npt.NDArray[np.uint64]
"""An array of hashes, one hash for each text."""


class OwnSplit(IntEnum):
    """What the field `split` of a record says."""

    NONE = 0
    """There is no `split`, or its value is not one of ours."""
    TRAIN = 1
    HELDOUT = 2
    """The record is held out. The mix chooses validation or test."""
    VALIDATION = 3
    TEST = 4
    REJECTED = 5
    """The record can't be used."""


# Values of OwnSplit that mean held out.
HELDOUT_MARKS = (OwnSplit.HELDOUT, OwnSplit.VALIDATION, OwnSplit.TEST)
_OWN_SPLITS: dict[str | None, int] = {
    None: int(OwnSplit.NONE),
    "train": int(OwnSplit.TRAIN),
    "heldout": int(OwnSplit.HELDOUT),
    **dict.fromkeys(("validation", "valid", "val", "dev"), int(OwnSplit.VALIDATION)),
    "test": int(OwnSplit.TEST),
}
"""The `split` of a record -> the byte that the scan keeps."""


@dataclass(slots=True)
class SourceScan:
    """What the first pass remembers of one source file."""

    format: str
    """The format of the file, such as a JSON array; empty for plain lines in UTF-8."""
    state: tuple[int, int]
    """`file_state`. If it is different in the second pass, the file has changed."""
    count: int = 0
    """Number of records. Rejected records count too."""
    size: int = 0
    """Bytes of the records that can be used."""
    digest: str = ""
    """SHA-256 of the file."""
    rejections: Rejections = field(default_factory=Rejections)
    marked: Counter[str] = field(default_factory=Counter)
    """`records`: how many hold marks of other chat formats; `marks`: how many marks."""
    odd_groups: int = 0
    """Records whose `group` is not text."""
    odd_splits: int = 0
    """Records whose `split` is not a value of `SPLITS`."""


@dataclass(slots=True)
class Scan:
    """What the first pass remembers of all records, in the order of the sources.

    Each column is an array of bytes that grows, because millions of Python numbers would need much
    more memory.
    """

    contents: bytearray = field(default_factory=bytearray)
    """8 bytes a record: hash of all its text (`content_of`)."""
    keys: bytearray = field(default_factory=bytearray)
    """8 bytes a record: hash of its first user turn, or of its text (`question_key`)."""
    splits: bytearray = field(default_factory=bytearray)
    """1 byte a record: an `OwnSplit`."""
    groups: bytearray = field(default_factory=bytearray)
    """8 bytes for each record that has a `group`: hash of the group."""
    groupers: "array[int]" = field(default_factory=lambda: array("I"))
    """The numbers of the records that have a `group`."""
    questions: bytearray = field(default_factory=bytearray)
    """8 bytes a user turn: hash of its text."""
    short: bytearray = field(default_factory=bytearray)
    """1 byte a user turn: whether it is short (SHORT_TURN)."""
    askers: "array[int]" = field(default_factory=lambda: array("I"))
    """The number of the record that each user turn belongs to."""
    of_source: list[SourceScan] = field(default_factory=list)

    def add_rejected(self) -> None:
        """Add an empty entry for a bad record, so that both passes number the records alike."""
        self.splits.append(OwnSplit.REJECTED)
        self.contents += bytes(HASH_BYTES)
        self.keys += bytes(HASH_BYTES)

    def add(self, record: Record, split: str | None) -> None:
        """Add the hashes of a record. `split`: as `split_of` gives it."""
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
        """Number of records of each source. Rejected records count too."""
        return [source.count for source in self.of_source]

    def spans(self) -> list[slice]:
        """For each source, where its records are in the columns."""
        ends = np.cumsum([0, *self.counts]).tolist()
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def turns(self) -> tuple[Hashes, npt.NDArray[np.uint32]]:
        """Two arrays with one entry for each user turn, (Q,) both.

        Returns: the hash of each turn's text, and the number of the record that the turn is in.
        """
        return np.frombuffer(self.questions, dtype="<u8"), np.frombuffer(self.askers, dtype=np.uint32)


def scan_sources(sources: Sequence[Source], config: MixConfig, rejects: IO[str], bar: Progress) -> Scan:
    """Check every record. Bad ones are written to `rejects` with file, line, reason and text.

    Raises: UserError if a source has too many bad records, or no good record. It is raised after
    all sources are read.
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
    """Add the records of one source to the scan. Returns: the facts of the file."""
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
        # The second pass needs this size to compute the number of buckets.
        found.size += len(item) if isinstance(item, bytes) else len(json_line(record.fields))
        scan.add(record, split)
    found.count = len(scan.splits) - start
    found.digest = digest.hexdigest()
    return found


def _questions_of(record: Record) -> list[str]:
    """Texts that may be questions in another record too: the user turns, or a short raw text."""
    if isinstance(record, TextRecord):
        return [record.text] if len(record.text) <= LONGEST_QUESTION else []
    return record.questions()
