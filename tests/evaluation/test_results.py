"""Lines of the results file: which are read, and which are refused."""

import json
from pathlib import Path

import pytest

from configs.schema import UserError
from evaluation.results import read_results


def test_smoke_lines_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "eval_results.jsonl"
    lines = [{"profile": name, "stage": "sft"} for name in ("smoke", "cpu", "smoke", "mine")] + [{"stage": "dpo"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(read_results(path)) == [lines[1], lines[3], lines[4]]
    assert list(read_results(path, smoke=True)) == lines
    assert list(read_results(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("line", [b'{"run', b"[]", b"3", b"null", b"", b"\xff\xfe", "冒烟".encode("gbk")])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "eval_results.jsonl"
    path.write_bytes(b'{"profile": "cpu"}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"eval_results\.jsonl:2: not a JSON line\. Fix or remove that line"):
        list(read_results(path))
