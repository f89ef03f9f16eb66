"""The first pass over the sources: every record is validated, and a few hashes of it are kept."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from configs.progress import Progress
from configs.schema import MixConfig, UserError
from dataset.mix.drop_reasons import MAX_REASONS, problem_of
from dataset.mix.sources import (
    Source,
    file_state,
    placeholders,
    record_of,
)
from dataset.records.files import format_of, read_items
from dataset.records.keys import (
    content_of,
    group_key,
    has_group,
    normalised_question,
    question_key,
    split_of,
    text_hash,
)
from dataset.records.lines import json_line, shown_text
from dataset.records.record import BadRecord, LeftOut, Record, TextRecord

LONGEST_QUESTION = 200
"""Characters; a longer raw text is not taken for a question."""
SHORT_TURN = 8
"""Letters and digits; 继续, 好的 and 谢谢 are short turns."""
_SPLITS = {None: 0, "train": 1, "heldout": 2, "validation": 3, "valid": 3, "val": 3, "dev": 3, "test": 4}
UNSPLIT, TRAIN, HELDOUT, VALIDATION, TEST, REJECTED = 0, 1, 2, 3, 4, 5


@dataclass(slots=True)
class Scan:
    """What the first pass remembers; one entry of each column a record, over all sources in order."""

    contents: bytearray = field(default_factory=bytearray)
    """8 bytes a record: hash of what is learnt from it."""
    keys: bytearray = field(default_factory=bytearray)
    """8 bytes a record: hash of its first user turn or its text."""
    splits: bytearray = field(default_factory=bytearray)
    """1 byte a record: its own split, or that it was rejected."""
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
    counts: list[int] = field(default_factory=list)
    """Records of each source, rejected ones included."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each source's records."""
    states: list[tuple[int, int]] = field(default_factory=list)
    """Size and time of change of each source file, to notice when it changes between the passes."""
    digests: list[str] = field(default_factory=list)
    """SHA-256 of each source file."""
    rejected: list[Counter[str]] = field(default_factory=list)
    """Reasons of each source's rejected records."""
    marked: list[Counter[str]] = field(default_factory=list)
    """Of each source: `records` with marks of other chat formats, and the `marks`."""
    formats: list[str] = field(default_factory=list)
    """What each source is where that is not plain lines in UTF-8."""
    odd_groups: list[int] = field(default_factory=list)
    """Records of each source whose `group` is no text."""
    odd_splits: list[int] = field(default_factory=list)
    """Records of each source whose `split` is none of ours."""


def scan_sources(sources: Sequence[Source], config: MixConfig, rejects: IO[str], bar: Progress) -> Scan:
    """Validate every record. Bad ones go to `rejects` with file, line, reason and text.

    Raises: UserError, once all sources are read, for one that holds too many bad records or not a single good one.
    """
    scan = Scan()
    problems = []
    for source in sources:
        bar.set_description(source.path.name)
        scan.formats.append(format_of(source.path))
        problem = _scan_source(scan, source, config, rejects, bar)
        if problem:
            problems.append(problem)
    if problems:
        more = f" ({len(problems) - 1} more files have the like.)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}", problems[0].chinese)
    return scan


def _scan_source(scan: Scan, source: Source, config: MixConfig, rejects: IO[str], bar: Progress) -> UserError | None:
    """Add one source's records; returns what is wrong with it as a whole."""
    scan.states.append(file_state(source.path))
    digest = hashlib.sha256()
    fill = placeholders(source, config)
    reasons: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    start, size, first_bad = len(scan.splits), 0, 0
    odd_groups = odd_splits = 0

    def on_bytes(block: memoryview) -> None:
        digest.update(block)
        bar.update(len(block))

    for number, item in read_items(source.path, on_bytes):
        try:
            record = record_of(item, source, fill)
        except BadRecord as error:
            reason = str(error)
            if isinstance(error, LeftOut):
                left_out[reason] += 1
            else:
                reasons[reason if reason in reasons or len(reasons) < MAX_REASONS else reason.split(":")[0]] += 1
                first_bad = first_bad or number
            line = {"file": source.path.name, "line": number, "reason": reason, "text": shown_text(item)}
            rejects.write(json.dumps(line, ensure_ascii=False) + "\n")
            scan.splits.append(REJECTED)
            scan.contents += bytes(8)
            scan.keys += bytes(8)
            continue
        if record.marks:
            marked.update(records=1, marks=record.marks)
        number_of_record = len(scan.splits)
        for question in map(normalised_question, _questions_of(record)):
            scan.questions += text_hash(question)
            scan.short.append(len(question) <= SHORT_TURN)
            scan.askers.append(number_of_record)
        if has_group(record):
            scan.groups += text_hash(group_key(record))
            scan.groupers.append(number_of_record)
        odd_groups += not has_group(record) and record.fields.get("group") not in (None, "")
        split = split_of(record.fields)
        odd_splits += split is None and record.fields.get("split") not in (None, "")
        scan.splits.append(_SPLITS[split])
        scan.contents += text_hash(content_of(record))
        scan.keys += text_hash(question_key(record))
        size += len(item) if isinstance(item, bytes) else len(json_line(record.fields))
    count = len(scan.splits) - start
    scan.counts.append(count)
    scan.sizes.append(size)
    scan.digests.append(digest.hexdigest())
    scan.rejected.append(reasons + left_out)
    scan.marked.append(marked)
    scan.odd_groups.append(odd_groups)
    scan.odd_splits.append(odd_splits)
    return problem_of(source, count, reasons, left_out, first_bad)


def _questions_of(record: Record) -> list[str]:
    if isinstance(record, TextRecord):
        return [record.text] if len(record.text) <= LONGEST_QUESTION else []
    return record.questions()
