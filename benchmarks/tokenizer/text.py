"""The text of a tokenizer benchmark: read from JSONL, cut to a size, written for each arm."""

import json
import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.paths import display
from configs.schema import UserError


def parse_size(word: str) -> float:
    """Bytes meant by a number of MB or `all`. Raises: UserError."""
    try:
        size = math.inf if word == "all" else float(word) * 1e6
    except ValueError:
        size = 0.0
    if not size > 0:
        raise UserError(f"--sizes {word}: must be a number of MB above 0, or all.")
    return size


def read_texts(path: Path) -> Iterator[str]:
    """The `text` of each record of a .jsonl or .jsonl.xz; empty ones are left out.

    Half of a surrogate pair becomes `?`. Raises: UserError naming the line that has no text, or
    where the archive is damaged.
    """
    with lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                text = record.get("text") if isinstance(record, dict) else None
                if not isinstance(text, str):
                    raise UserError(f"{display(path)}:{number}: no record with a `text`. Give JSONL of raw text.")
                if text:
                    yield text.encode("utf-8", "replace").decode("utf-8")
        except (EOFError, lzma.LZMAError) as error:
            raise UserError(f"{display(path)}: damaged or cut short ({error}). Fetch it again.") from error


def first_texts(texts: Iterator[str], num_bytes: float) -> Iterator[str]:
    """Whole texts from the start until they have so many bytes of UTF-8."""
    size = 0
    for text in texts:
        yield text
        size += len(text.encode("utf-8"))
        if size >= num_bytes:
            return


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text on the disk, as a measurement reads it."""

    texts: Path
    """A JSON string a line."""
    paragraphs: Path
    """A paragraph a line, empty ones left out: what SentencePiece reads."""
    num_bytes: int
    num_texts: int


def prepare(texts: Sequence[str], folder: Path) -> Prepared:
    """Write both files of a text."""
    folder.mkdir()
    prepared = Prepared(
        folder / "texts.jsonl", folder / "paragraphs.txt", sum(len(text.encode("utf-8")) for text in texts), len(texts)
    )
    with (
        prepared.texts.open("w", encoding="utf-8", newline="\n") as strings,
        prepared.paragraphs.open("w", encoding="utf-8", newline="\n") as lines,
    ):
        for text in texts:
            strings.write(json.dumps(text, ensure_ascii=False) + "\n")
            lines.writelines(paragraph + "\n" for paragraph in text.split("\n") if paragraph.strip())
    return prepared
