"""Record files: line ends, packing, long lines, CSV, line numbers in errors."""

import gzip
import lzma
from pathlib import Path
from typing import Any

import pytest

from configs.schema import UserError
from dataset.records import files
from dataset.records.files import read_distinct, read_items, read_records
from dataset.records.lines import BadItem, decode_item
from dataset.records.shapes import parse_record
from tests.dataset.records.conversations import turns


def items(path: Path) -> list[tuple[int, Any]]:
    return list(read_items(path))


def test_bom_windows_line_ends_and_blank_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "一"}\r\n\r\n  \n{"text": "二"}'.encode())
    assert [(record["text"]) for record in read_records(path)] == ["一", "二"]
    assert [number for number, _ in items(path)] == [1, 4]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files_are_read_and_damaged_ones_named(tmp_path: Path, suffix: str, pack: Any) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    whole = pack("".join(f'{{"text": "{n * 7919}"}}\n' for n in range(2000)).encode())
    path.write_bytes(whole)
    assert len(items(path)) == 2000
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"a.jsonl{suffix}: damaged or cut short"):
        items(path)


def test_a_line_above_the_limit_is_skipped_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(files, "READ_BLOCK_BYTES", 16)
    path = tmp_path / "a.jsonl"
    longest = b'{"text": "' + b"x" * 88 + b'"}'
    path.write_bytes(longest + b"\r\n" + longest[:-2] + b'y"}\n' + b"z" * 5000 + b'\n{"text": "ok"}\n' + b"z" * 500)
    assert len(longest) == 100
    kinds = [(number, "bad" if isinstance(item, BadItem) else len(item)) for number, item in items(path)]
    assert kinds == [(1, 102), (2, "bad"), (3, "bad"), (4, 15), (5, "bad")]


def test_a_csv_of_multiple_choice_is_read_with_line_ends_inside_cells(tmp_path: Path) -> None:
    path = tmp_path / "anatomy.csv"
    text = ',Question,A,B,C,D,Answer\r\n0,"第一行\n第二行",甲,乙,丙,丁,B\r\n1,少了,甲\r\n'.encode()
    path.write_bytes(b"\xef\xbb\xbf" + text + b"2,\xff,1,2,3,4,A\n3,3?,1,2,3,4,A\n")
    found = items(path)
    assert [number for number, _ in found] == [3, 4, 5, 6]
    assert turns(parse_record(decode_item(found[0][1], {}))) == [
        ("user", "第一行\n第二行\nA. 甲\nB. 乙\nC. 丙\nD. 丁"),
        ("assistant", "答案：B。乙"),
    ]
    assert [item.reason for _, item in found[1:3]] == [
        "row with another number of cells than the header",
        "invalid UTF-8",
    ]


def test_reading_records_names_file_and_line_of_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "一"}\n{"text": 2}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:2: text is not a string"):
        list(read_records(path))
    with pytest.raises(UserError, match="no such file"):
        list(read_records(tmp_path / "b.jsonl"))


def test_a_line_that_comes_again_has_the_same_hash_and_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "一"}\n{"text": "二"}\n{"text": "一"}\n{"text": 2}\n', encoding="utf-8")
    lines = read_distinct(path)
    (first, one), (second, two), (again, none) = next(lines), next(lines), next(lines)
    assert (one, two, none) == ({"text": "一"}, {"text": "二"}, None)
    assert first == again != second
    with pytest.raises(UserError, match=r"a\.jsonl:4: text is not a string"):
        next(lines)
