"""Record files, read with line numbers: JSON lines, a JSON array or CSV, packed or not."""

import csv
import gzip
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
"""A longer line is rejected without being held in memory."""
READ_BLOCK_BYTES = 1 << 20
PLAIN_SUFFIXES = (".jsonl", ".json", ".csv")
PACKED_SUFFIXES = (".gz", ".xz")


def is_source(path: Path) -> bool:
    """Whether a file's name says that it holds records."""
    return bare_name(path).lower().endswith(PLAIN_SUFFIXES)


def bare_name(path: Path) -> str:
    """The file name without `.gz` or `.xz`."""
    return path.stem if path.suffix.lower() in PACKED_SUFFIXES else path.name


class _Watched(io.RawIOBase):
    """A file as it lies on the disk; tells a hash and a progress bar which bytes are read."""

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
    """A packed file, read in whole blocks: its first bytes tell what it is."""

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
    """Open a record file for reading, unpacked where its name ends in `.gz` or `.xz`.

    Raises: UserError when it can't be read or its packing is damaged, also while it is being read.
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
    """The records of a file with their line numbers, from 1: lines of JSON, the values of a JSON
    array, or rows of CSV; in UTF-8, UTF-16, UTF-32 or GB18030. Blank lines are left out.

    Raises: UserError for a file that is something else, with what it is.
    """
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
    """Whether a file is CSV by its name, and no JSON by its first character."""
    return bare_name(path).lower().endswith(".csv") and not head.removeprefix(BOM).lstrip().startswith((b"{", b"["))


def format_of(path: Path) -> str:
    """What a file is where that is not plain lines in UTF-8, such as `GB18030 (GBK), a JSON array`;
    else empty."""
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


def numbered_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file with their line numbers, brought into shape. Raises: UserError with
    file and line at the first bad one."""
    for number, item in read_items(path):
        try:
            record = parse_record(decode_item(item, {}))
        except BadRecord as error:
            raise bad_line(f"{display(path)}:{number}", error) from None
        yield number, record.fields


def bad_line(where: str, problem: Exception) -> UserError:
    """The message for a record that can't be used, in both languages."""
    chinese = problem.chinese if isinstance(problem, UserError) else "这条记录不可用"
    return UserError(f"{where}: {str(problem).rstrip('.')}. Fix or remove that line.", f"{chinese}，请修改或删除该行")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file. Raises: as `numbered_records`."""
    return (record for _, record in numbered_records(path))
