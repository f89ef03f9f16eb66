"""Reading record files, with line numbers: JSON lines, a JSON array or CSV, also .gz and .xz."""

import csv
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from configs.paths import display
from configs.schema import UserError
from dataset.records.file_kinds import (
    BOM,
    ENCODING_NAMES,
    head_of,
    is_multi_line,
    read_values,
    refuse_table,
    unicode_file,
)
from dataset.records.lines import HEAD_BYTES, BadItem, Item, decode_item
from dataset.records.record import BadRecord
from dataset.records.shapes import parse_record

MAX_LINE_BYTES = 64 << 20
"""Bytes. A longer line is rejected and never held in memory as a whole."""
READ_BLOCK_BYTES = 1 << 20
PLAIN_SUFFIXES = (".jsonl", ".json", ".csv")
PACKED_SUFFIXES = (".gz", ".xz")


def is_source(path: Path) -> bool:
    """Whether a file's name ends in .jsonl, .json or .csv (also with .gz or .xz)."""
    return bare_name(path).lower().endswith(PLAIN_SUFFIXES)


def bare_name(path: Path) -> str:
    """The file name without `.gz` or `.xz`."""
    return path.stem if path.suffix.lower() in PACKED_SUFFIXES else path.name


class _Watched(io.RawIOBase):
    """The bytes of a file on the disk. A function, such as a hash, sees each block that is read."""

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
    """A packed file whose reads are always full, so that one read gives enough of its beginning."""

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
    """Open a record file for reading. It is unpacked if its name ends in `.gz` or `.xz`.

    Args: on_bytes: is called with each block as it is on the disk.
    Raises: UserError when the file can't be read or is damaged, also later, while it is being read.
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
    """The records of a file with their line numbers, from 1. Blank lines are left out.

    They are lines of JSON, the values of a JSON array, or rows of CSV, in UTF-8, UTF-16, UTF-32 or
    GB18030.
    Raises: UserError for a file that is something else; it says what the file seems to be.
    """
    # A JSON array in a file called .csv is still a JSON array: the content decides, not the name.
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
    """Whether a file is CSV: its name says so, and its first character is not that of JSON."""
    return bare_name(path).lower().endswith(".csv") and not head.removeprefix(BOM).lstrip().startswith((b"{", b"["))


def format_of(path: Path) -> str:
    """What a file is, such as `GB18030 (GBK), a JSON array`; "" for plain lines in UTF-8."""
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
    """The lines of a file with their numbers, without blank ones."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        if number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
        if len(line) > MAX_LINE_BYTES and len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
            # Read the rest of the long line in blocks and forget them.
            head, ended = line[:HEAD_BYTES], line.endswith(b"\n")
            del line
            while not ended and (rest := file.readline(READ_BLOCK_BYTES)):
                ended = rest.endswith(b"\n")
            yield number, BadItem(f"line above {MAX_LINE_BYTES >> 20} MB", head)
        elif not line.isspace():
            yield number, line


def _read_rows(lines: Iterator[tuple[int, bytes | BadItem]]) -> Iterator[tuple[int, Item]]:
    """The rows of a CSV file as dicts by its header. A cell may hold line ends."""
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


def numbered_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file in our shapes, with their line numbers.

    Raises: UserError with file and line at the first bad one.
    """
    for number, item in read_items(path):
        yield number, _record_of(path, number, item)


def _record_of(path: Path, number: int, item: Item) -> dict[str, Any]:
    """The record in a line or row. Raises: UserError with file and line for a bad one."""
    try:
        return parse_record(decode_item(item, {})).fields
    except BadRecord as error:
        raise bad_line(f"{display(path)}:{number}", error) from None


def bad_line(where: str, problem: Exception) -> UserError:
    """The error for a record that can't be used. `where`: file and line."""
    chinese = problem.chinese if isinstance(problem, UserError) else "这条记录不可用"
    return UserError(f"{where}: {str(problem).rstrip('.')}. Fix or remove that line.", f"{chinese}，请修改或删除该行")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file in our shapes. Raises: UserError at the first bad one."""
    return (record for _, record in numbered_records(path))


def read_distinct(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The records of a file in our shapes, each with the hash of its line.

    A line that was there before comes without its record. A mix repeats records to meet its
    targets, and to parse a line costs far more than to hash it.
    Raises: UserError at the first bad one.
    """
    seen: set[bytes] = set()
    for number, item in read_items(path):
        line = item if isinstance(item, bytes) else repr(item).encode()
        key = hashlib.blake2b(line, digest_size=16).digest()
        if key in seen:
            yield key, None
        else:
            seen.add(key)
            yield key, _record_of(path, number, item)
