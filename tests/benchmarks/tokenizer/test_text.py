"""What the tokenizer benchmark reads, and what it writes for its measurements."""

import json
import lzma
import math
from itertools import count
from pathlib import Path

import pytest

from benchmarks.tokenizer.text import first_texts, parse_size, prepare, read_texts
from configs.schema import UserError


def test_a_size_is_a_number_of_megabytes_or_all() -> None:
    assert [parse_size(word) for word in ("30", "0.5", "all")] == [30e6, 0.5e6, math.inf]
    for word in ("0", "-1", "nan", "many"):
        with pytest.raises(UserError, match="--sizes"):
            parse_size(word)


def test_texts_are_taken_whole_until_their_bytes_suffice() -> None:
    texts = ["你", "好", "世界"]  # 3, 3 and 6 bytes
    assert list(first_texts(iter(texts), 4)) == ["你", "好"]
    assert list(first_texts(iter(texts), 3)) == ["你"]
    assert list(first_texts(iter(texts), math.inf)) == texts


def test_no_more_is_read_than_asked_for() -> None:
    endless = (str(number) for number in count())
    assert list(first_texts(endless, 2)) == ["0", "1"]
    assert next(endless) == "2"


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.xz"])
def test_records_are_read_plain_or_packed(tmp_path: Path, name: str) -> None:
    content = '{"text": "今天"}\n\n{"text": ""}\n{"text": "a\\ud800b"}\n'.encode()
    path = tmp_path / name
    path.write_bytes(lzma.compress(content) if name.endswith(".xz") else content)
    assert list(read_texts(path)) == ["今天", "a?b"]


@pytest.mark.parametrize("line", ['{"content": "今天"}', '{"text": 3}', "[1]", "今天"])
def test_a_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "好"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.jsonl:2: no record with a `text`"):
        list(read_texts(path))


def test_a_torn_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "good"}\n' * 1000)[:-20])
    with pytest.raises(UserError, match="damaged"):
        list(read_texts(path))


def test_prepared_files_hold_the_texts_and_their_paragraphs(tmp_path: Path) -> None:
    texts = ["一\n\n二\u2028三", "四"]
    prepared = prepare(texts, tmp_path / "small")
    assert [json.loads(line) for line in prepared.texts.read_bytes().split(b"\n")[:-1]] == texts
    assert prepared.paragraphs.read_bytes().decode() == "一\n二\u2028三\n四\n"
    assert (prepared.num_bytes, prepared.num_texts) == (3 + 2 + 9 + 3, 2)
