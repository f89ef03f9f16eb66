"""What a file is, even if its name says otherwise: it is read, or the error says what it is."""

import gzip
import io
import json
import lzma
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from configs.schema import UserError
from dataset.records import file_kinds
from dataset.records.files import format_of, read_items
from dataset.records.lines import decode_item
from dataset.records.record import BadRecord

RECORDS: list[dict[str, Any]] = [
    {"instruction": f"请介绍第{n}号公园", "output": f"第{n}号公园的门在第{n}街，很好找。"} for n in range(20)
]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
ARRAY = json.dumps(RECORDS, ensure_ascii=False)
PRETTY = json.dumps(RECORDS, ensure_ascii=False, indent=2)


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [decode_item(item, {}) for _, item in read_items(path)]


@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("text", "layout"),
    [
        (LINES, ""),
        (LINES.replace("\n", "\r\n"), ""),
        (ARRAY, "a JSON array"),
        (PRETTY, "a JSON array"),
        ("[\n" + LINES.strip().replace("\n", ",\n") + "\n]\n", "a JSON array"),
        ("\n".join(json.dumps(record, ensure_ascii=False, indent=1) for record in RECORDS), "JSON over several lines"),
    ],
)
@pytest.mark.parametrize(
    ("codec", "encoding"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("gbk", "GB18030 (GBK)"),
        ("utf-16", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
def test_every_encoding_and_layout_gives_the_same_records(
    tmp_path: Path, packed: str, text: str, layout: str, codec: str, encoding: str
) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[packed]
    path = written(tmp_path, f"a.jsonl{packed}", pack(text.encode(codec)))
    assert records(path) == RECORDS
    assert format_of(path) == ", ".join(word for word in (encoding, layout) if word)


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("codec", ["utf-8", "gb18030", "utf-16"])
def test_a_line_longer_than_the_head_is_told_wherever_that_cuts_it(tmp_path: Path, codec: str, shift: int) -> None:
    many = [{"pad": "x" * shift}, *RECORDS * 200]
    one_line = json.dumps(many, ensure_ascii=False)
    assert len(one_line.encode(codec)) > 2 * file_kinds.HEAD_BYTES
    assert records(written(tmp_path, "a.json", one_line.encode(codec))) == many
    long = {"text": "长" * 60_000, "pad": "x" * shift}
    assert records(written(tmp_path, "b.jsonl", json.dumps(long, ensure_ascii=False).encode(codec))) == [long]


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_records_of_an_array_keep_their_lines_however_small_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(file_kinds, "BLOCK_BYTES", block)
    items = list(read_items(written(tmp_path, "a.json", PRETTY.encode())))
    assert [number for number, _ in items] == [2 + 4 * n for n in range(len(RECORDS))]
    assert [decode_item(item, {}) for _, item in items] == RECORDS


def test_a_csv_in_gbk_is_read_and_json_named_csv_too(tmp_path: Path) -> None:
    table = 'question,answer\n问题是什么,"答案，在这里"\n'.encode("gbk")
    assert records(written(tmp_path, "a.csv", table)) == [{"question": "问题是什么", "answer": "答案，在这里"}]
    assert records(written(tmp_path, "b.csv", LINES.encode())) == RECORDS


def test_a_line_that_is_a_list_of_turns_is_a_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    path = written(tmp_path, "a.jsonl", (json.dumps(turns) + "\n").encode() * 2)
    assert records(path) == [{"conversations": turns}] * 2


def test_nan_and_endless_numbers_in_columns_that_nobody_reads_cost_no_record(tmp_path: Path) -> None:
    line = b'{"text": "a", "score": NaN, "low": -Infinity, "id": ' + b"9" * 6000 + b"}\n"
    assert records(written(tmp_path, "a.jsonl", line)) == [{"text": "a", "score": None, "low": None, "id": "9" * 6000}]


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    return file.getvalue()


TAIWAN = "".join(
    json.dumps({"question": f"請問第{n}號公園的門在哪裡", "answer": "門在街上，很好找。"}, ensure_ascii=False) + "\n"
    for n in range(20)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1" + bytes(50), "a Parquet file.*read_parquet"),
        (a_zip(), "a ZIP archive"),
        (gzip.compress(LINES.encode()), r"packed with gzip.*end its name in \.gz"),
        (lzma.compress(LINES.encode()), r"packed with xz.*end its name in \.xz"),
        (b"BZh91AY", "bzip2"),
        (b"ARROW1\0\0", "an Arrow file"),
        (b"SQLite format 3\0", "a SQLite database"),
        (pickle.dumps(RECORDS), "a Python pickle, which is never opened"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html></html>", "HTML or XML"),
        (bytes(300), "nothing but zero bytes"),
        (b"question,answer\na,b\n", r"is CSV.*end its name in \.csv"),
        ("问题\t答案\na\tb\n".encode(), "is TSV"),
        (TAIWAN.encode("big5"), "Big5.*iconv -f big5"),
        ("".join(f'{{"text": "こんにちは、{n}"}}\n' for n in range(9)).encode("shift_jis"), "Shift JIS"),
        ('{"text": "déjà vu, café"}\n'.encode("latin-1"), "Latin-1"),
        (LINES.encode("utf-16")[:-1], "no sound utf-16"),
        (PRETTY.encode()[:700], r"a\.jsonl:\d+: the file is cut short in the middle of this record"),
        (PRETTY.encode()[:-2], "the JSON array has no end"),
        (
            PRETTY.replace('"output"', "output", 3).encode(),
            r"a\.jsonl:2: malformed JSON from here on \(.*2 lines further down",
        ),
    ],
)
def test_what_holds_no_lines_of_records_is_refused_with_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    path = written(tmp_path, "a.jsonl", content)
    with pytest.raises(UserError, match=f"(?i){said}") as raised:
        list(read_items(path))
    assert "\n" not in str(raised.value)


def test_one_line_in_another_encoding_costs_that_line_alone(tmp_path: Path) -> None:
    content = LINES.encode() + LINES.encode("gbk").splitlines(keepends=True)[0]
    items = [item for _, item in read_items(written(tmp_path, "a.jsonl", content))]
    assert [decode_item(item, {}) for item in items[:-1]] == RECORDS
    with pytest.raises(BadRecord, match="GB18030"):
        decode_item(items[-1], {})


def test_a_byte_that_is_no_gb18030_costs_its_line_alone(tmp_path: Path) -> None:
    lines = (LINES * 200).encode("gbk").splitlines(keepends=True)  # longer than the head that decides what a file is
    lines[-2] = lines[-2].replace("公园".encode("gbk"), b"\xff\xff")
    items = [item for _, item in read_items(written(tmp_path, "a.jsonl", b"".join(lines)))]
    assert len(items) == len(lines)
    assert decode_item(items[-1], {}) == RECORDS[-1]
    with pytest.raises(BadRecord, match="invalid UTF-8"):
        decode_item(items[-2], {})
