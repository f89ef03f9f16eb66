"""What a record file really is, even if its name says otherwise: its encoding and its layout.

Encodings: UTF-8, UTF-16, UTF-32, GB18030. Layouts: one record a line, a JSON array, records over
several lines. We find both from the first bytes. A file that holds something else is refused, and
the error says what it is.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from configs.schema import UserError

HEAD_BYTES = 1 << 16
"""Bytes at the beginning of a file that decide what it is."""
BLOCK_BYTES = 1 << 20
"""Bytes that are read at once."""
BOM = b"\xef\xbb\xbf"

_BINARY = (
    (b"PAR1", "a Parquet file", 'pandas.read_parquet(FILE).to_json(OUT, orient="records", lines=True, force_ascii=False)'),
    (b"PK\x03\x04", "a ZIP archive (or .xlsx, .docx, .npz, .pth)", "unpack it (unzip FILE); save a table as CSV in UTF-8"),
    (b"\x1f\x8b", "packed with gzip", "end its name in .gz"),
    (b"\xfd7zXZ\x00", "packed with xz", "end its name in .xz"),
    (b"BZh", "packed with bzip2", "bunzip2 FILE"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "zstd -d FILE"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it (7z x FILE)"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"%PDF", "a PDF", "save its text as JSON lines"),
    (b"ARROW1", "an Arrow file", 'datasets.Dataset.from_file(FILE).to_json(OUT, force_ascii=False)'),
    (b"\xff\xff\xff\xff", "an Arrow stream", 'datasets.Dataset.from_file(FILE).to_json(OUT, force_ascii=False)'),
    (b"SQLite format 3", "a SQLite database", "export its table as CSV"),
    (b"\x93NUMPY", "a NumPy array", "save its texts as JSON lines"),
    (b"\xd0\xcf\x11\xe0", "an old Office file (.xls, .doc)", "save it as CSV in UTF-8"),
    (b"\x89PNG", "a PNG picture", "remove it"),
    (b"\xff\xd8\xff", "a JPEG picture", "remove it"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "git lfs pull, or download the file itself"),
)  # fmt: skip
"""First bytes of a file, what it is, and how to make lines of JSON of it."""
_PICKLES = re.compile(rb"\x80[\x02-\x05][\x95}\]()c]")
_MARKUP = re.compile(rb"\s*<(?:!DOCTYPE|html|head|\?xml)", re.IGNORECASE)
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS = (("big5", "Big5"), ("shift_jis", "Shift JIS"), ("cp1252", "Windows-1252 or Latin-1"))
ENCODING_NAMES = {"utf-8": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16",
                  "utf-32": "UTF-32", "gb18030": "GB18030 (GBK)"}  # fmt: skip
FEW_LINES = 0.05
"""If at most this share of a file's lines is in another encoding, only those lines are rejected."""
LEAST_COMMON = 0.9
"""A text may be GB18030 if at least this share of its double bytes are characters of GB2312."""


def refuse_foreign(head: bytes, where: str) -> None:
    """Raises: UserError for a file that is not text. It says what the file is and what to do."""
    kind, remedy = "", ""
    for magic, name, advice in _BINARY:
        if head.startswith(magic):
            kind, remedy = name, advice
    if _PICKLES.match(head):
        kind, remedy = "a Python pickle, which is never opened", "save its records as JSON lines"
    elif head[257:262] == b"ustar":
        kind, remedy = "a tar archive", "unpack it (tar xf FILE)"
    elif _MARKUP.match(head.removeprefix(BOM)):
        kind, remedy = "HTML or XML, perhaps a page that says why the download failed", "download the file itself"
    elif head and not head.strip(b"\0"):
        kind, remedy = "nothing but zero bytes", "fetch it again"
    if kind:
        raise UserError(
            f"{where}: is {kind}, not lines of JSON. Do this: {remedy}", "不是一行一条的 JSON：请按说明转换"
        )


def encoding_of(head: bytes, where: str) -> str:
    """The codec of a file. Raises: UserError for text that is neither Unicode nor GB18030."""
    for mark, codec in _BOMS:
        if head.startswith(mark):
            return codec
    if b"\0" in head:
        # UTF-16 without a mark: one byte of each ASCII character is zero, always at the same side.
        even, odd = head[0::2].count(0), head[1::2].count(0)
        if max(even, odd) > 0.2 * len(head) / 2 and min(even, odd) * 10 < max(even, odd):
            return "utf-16-be" if even > odd else "utf-16-le"
    whole = _whole_lines(head)
    lines = [line for line in whole if not line.isascii()]
    if not lines or any(_decodes(line, "utf-8") for line in lines):
        return "utf-8"  # lines in another encoding are rejected one by one
    if all(_decodes(line, "gb18030") for line in lines) and _looks_chinese(b"".join(lines)):
        return "gb18030"
    likely = [(codec, name) for codec, name in _OTHERS if all(_decodes(line, codec) for line in lines)]
    if not likely or len(lines) <= FEW_LINES * len(whole):
        return "utf-8"
    codec, name = likely[0]
    raise UserError(
        f"{where}: is neither UTF-8 nor GB18030, but {name}, it seems. Convert it: iconv -f {codec} -t UTF-8 FILE > OUT",
        f"编码不是 UTF-8 或 GB18030，而像 {name}：请先转换",
    )


def _whole_lines(head: bytes) -> list[bytes]:
    """The lines of a file's head, without the last one if it may be cut. A single line stays."""
    lines = head.removeprefix(BOM).split(b"\n")
    return lines[:-1] or lines if len(head) >= HEAD_BYTES else lines


def _decodes(line: bytes, codec: str) -> bool:
    """Whether a line is valid in an encoding."""
    try:
        codecs.getincrementaldecoder(codec)().decode(line)  # accepts a last character that is cut
    except UnicodeDecodeError:
        return False
    return True


_DOUBLE = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")
"""A character of two bytes in GB18030."""
_COMMON = re.compile(rb"[\xa1-\xa3\xb0-\xf7][\xa1-\xfe]")
"""A character of GB2312, which has the common ones."""


def is_chinese_gb18030(line: bytes) -> bool:
    """Whether a line that is not UTF-8 is Chinese in GB18030."""
    return _decodes(line, "gb18030") and _looks_chinese(line)


def _looks_chinese(text: bytes) -> bool:
    """Whether most characters of two bytes are common ones, as in Chinese text."""
    doubles = _DOUBLE.findall(text)
    return sum(bool(_COMMON.match(pair)) for pair in doubles) >= LEAST_COMMON * len(doubles) > 0


class Transcoded(io.RawIOBase):
    """A file of another encoding, read as UTF-8.

    Bytes that can't be decoded stay as they are, so that their line is rejected later.
    Raises: UserError, while it is read, when the file ends within a character.
    """

    def __init__(self, file: IO[bytes], codec: str, where: str) -> None:
        self.file, self.rest, self.where = file, b"", where
        self.errors = "surrogatepass" if codec.startswith("utf") else "surrogateescape"
        self.decoder = codecs.getincrementaldecoder(codec)(self.errors)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            block = self.file.read(BLOCK_BYTES)
            try:
                self.rest = self.decoder.decode(block, final=not block).encode("utf-8", self.errors)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.where}: is no sound {error.encoding} ({error.reason}). Fetch it again.",
                    "编码有误或文件不完整：请重新下载",
                ) from None
            if not block:
                break
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def head_of(file: IO[bytes]) -> bytes:
    """The first bytes of a file. The next read gives them again."""
    head: bytes = file.peek(HEAD_BYTES)[:HEAD_BYTES]  # type: ignore[attr-defined]  # a BufferedReader
    return head


def unicode_file(file: IO[bytes], where: str) -> tuple[IO[bytes], str]:
    """The file as UTF-8, and the name of its own encoding.

    Raises: UserError for a file that is not text, or in an encoding that we can't read.
    """
    head = head_of(file)
    refuse_foreign(head, where)
    codec = encoding_of(head, where)
    if codec == "utf-8":
        return file, codec
    return io.BufferedReader(Transcoded(file, codec, where), BLOCK_BYTES), codec


# --- layout ---------------------------------------------------------------------------------------

_SCANNER = json.JSONDecoder(parse_int=float)
"""Finds where a value ends. `parse_int=float`, because Python refuses whole numbers with too many
digits."""
_BETWEEN = re.compile(r"[\s,]*")
"""What may be between two values of an array."""


def is_multi_line(head: bytes) -> bool:
    """Whether a file holds a JSON array, or JSON values over several lines, not one value a line.

    Args: head: its first bytes, in UTF-8.
    """
    # Lines that each hold a whole array are still one value a line.
    text = head.removeprefix(BOM).decode("utf-8", "replace").lstrip()
    first_line = text.split("\n", 1)[0]
    if text[:1] == "[":
        end = _end_of_value(first_line, 0)
        return end is None or not text[len(first_line) :].strip()
    if text[:1] != "{" or _end_of_value(first_line, 0) is not None:
        return False
    end = _end_of_value(text, 0)
    if end is not None:
        return True
    return len(head) >= HEAD_BYTES and first_line.rstrip()[-1:] in "{[,"


def _end_of_value(text: str, start: int) -> int | None:
    """The place after the JSON value that begins at `start`; None if none ends in the text."""
    try:
        return _SCANNER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def read_values(file: IO[bytes], where: str, limit: int) -> Iterator[tuple[int, bytes]]:
    """JSON values, in an array or one after the other, each with the line on which it begins.

    Args: limit: characters of the largest value.
    Raises: UserError when something is not JSON, because nothing after it can be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, position, line, depth, ended = "", 0, 1, 0, False

    # `text` is the part of the file that has been read but not given yet, from `position` on.
    def more() -> None:
        nonlocal text, position, ended
        block = file.read(max(BLOCK_BYTES, len(text) - position))
        ended = not block
        text, position = text[position:] + decoder.decode(block, final=ended), 0

    more()
    text = text.removeprefix("\ufeff")
    while True:
        gap = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]  # matches anything
        line += text.count("\n", position, gap)
        position = gap
        if position >= len(text):
            if ended:
                break
            more()
        elif text[position] == "[" and not depth:
            depth, position = 1, position + 1
        elif text[position] == "]" and depth:
            depth, position = 0, position + 1
        else:
            # No end yet, or an end at the end of the text, after which a number may continue: read
            # more, up to the limit.
            end = _end_of_value(text, position)
            if (end is None or end == len(text)) and not ended and len(text) - position <= limit:
                more()
                continue
            if end is None:
                raise _no_value(f"{where}:{line}", text[position:], ended, limit)
            yield line, text[position:end].encode("utf-8", "surrogateescape")
            line += text.count("\n", position, end)
            position = end
    if depth:
        raise UserError(
            f"{where}:{line}: the JSON array has no end: the file is cut short. Fetch it again.",
            "JSON 数组没有结尾，文件不完整：请重新下载",
        )


def _no_value(where: str, text: str, ended: bool, limit: int) -> UserError:
    """The error when no JSON value can be read here."""
    try:
        _SCANNER.raw_decode(text)
    except json.JSONDecodeError as error:
        if ended and error.pos >= len(text.rstrip()) - 1:
            return UserError(
                f"{where}: the file is cut short in the middle of this record. Fetch it again.",
                "文件不完整：请重新下载",
            )
        if ended:
            return UserError(
                f"{where}: malformed JSON from here on ({error.msg}, {error.lineno - 1} lines further down). Fix it: "
                "nothing after it could be read.",
                "此处起的 JSON 有错：请修正",
            )
    except (ValueError, RecursionError):
        pass
    return UserError(
        f"{where}: a single JSON value above {limit >> 20} MB. Write its records one a line "
        "(jq -c '.[]' FILE, or jq -c '.data[]' FILE).",
        "单个 JSON 值过大：请改为每行一条",
    )


_TABLE_WORDS = {
    "text",
    "question",
    "answer",
    "instruction",
    "input",
    "output",
    "prompt",
    "chosen",
    "rejected",
    "response",
}
_TABLE_WORDS |= {
    "query",
    "context",
    "label",
    "title",
    "content",
    "问题",
    "答案",
    "回答",
    "文本",
    "内容",
    "指令",
    "输入",
    "输出",
}


def refuse_table(head: bytes, where: str) -> None:
    """Raises: UserError for a table (CSV or TSV) whose name ends as if it held lines of JSON."""
    lines = head.removeprefix(BOM).decode("utf-8", "replace").strip().splitlines()[:20]
    if not lines or any(line.lstrip()[:1] in ("{", "[") for line in lines):
        return
    for mark, name in ((",", "CSV"), ("\t", "TSV (cells with tabs between them)")):
        header = {cell.strip().strip('"').lower() for cell in lines[0].split(mark)}
        if len(header) > 1 and header & _TABLE_WORDS:
            remedy = "End its name in .csv" if name == "CSV" else "Save it as CSV, and end its name in .csv"
            raise UserError(f"{where}: is {name}, not lines of JSON. {remedy}.", "这是表格，不是 JSON：请存为 .csv")


def why_no_json(text: str) -> str:
    """What a line that is not JSON seems to be: the reason why the record is rejected."""
    start = text.lstrip()[:1]
    if re.match(r"\s*[{\[]\s*'", text):
        return "a Python dict (single quotes), not JSON: write it with json.dumps"
    if start not in ("{", "[", '"'):
        if "\t" in text:
            return "a line of TSV, not JSON: save it as CSV and end the file's name in .csv"
        if re.match(r"[^{}\[\]]*,", text):
            return "a line of CSV or of plain text, not JSON"
        return 'plain text, not JSON: write it as {"text": ...}'
    if re.search(r",\s*[}\]]\s*,?\s*$", text):
        return "malformed JSON (a comma before the end)"
    return "malformed JSON"
