"""Why records are dropped: reasons, advice, and when they stop the mix."""

import json
from pathlib import Path

import pytest

from configs.schema import MixConfig, UserError
from dataset.mix.build import build_mix
from dataset.mix.drop_reasons import MAX_REASONS
from dataset.mix.sources import Source, Sources
from tests.dataset.mix.small_mix import (
    SMALL,
    Record,
    chat,
    mixed,
    out,
    pair,
    read,
    write,
)


def test_bad_lines_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(f"问{n}") for n in range(100)])
    with path.open("ab") as file:
        file.write(b'{"conversations": [\n{"conversations": []}\n{"text": "\xff' + b"x" * 500 + b'"}\n')
    manifest = build_mix(Sources([Source(path, "general")], {}), SMALL, tmp_path / "out")
    rejects = read(tmp_path / "out" / "rejects.jsonl")
    assert [(r["file"], r["line"], r["reason"]) for r in rejects] == [
        ("a.jsonl", 101, "malformed JSON"),
        ("a.jsonl", 102, "empty conversation"),
        ("a.jsonl", 103, "invalid UTF-8"),
    ]
    assert rejects[1]["text"] == '{"conversations": []}'
    assert max(len(r["text"]) for r in rejects) == 200
    source = manifest["sources"][0]
    assert source["read"] == 103 == source["kept"] + source["heldout"] + sum(source["dropped"].values())


@pytest.mark.parametrize(
    ("good", "bad", "stops"), [(100, 3, False), (10, 3, False), (100, 5, False), (50, 4, True), (0, 1, True)]
)
def test_more_than_5_percent_and_3_bad_lines_stop_the_mix(tmp_path: Path, good: int, bad: int, stops: bool) -> None:
    records = [chat(f"问{n}") for n in range(good)] + [{"conversations": []}] * bad
    if not stops:
        mixed(tmp_path, {"a.jsonl": ("general", records)})
        return
    mixed(tmp_path, {"b.jsonl": ("general", [chat("问")])})
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "rejects.jsonl"}
    with pytest.raises(UserError, match=r"a\.jsonl: .*empty conversation"):
        mixed(tmp_path, {"a.jsonl": ("general", records)})
    assert len(read(tmp_path / "out" / "rejects.jsonl")) == bad
    assert before == {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "rejects.jsonl"
    }


def test_answers_marked_as_bad_are_left_out_by_name_and_stop_nothing(tmp_path: Path) -> None:
    records = [chat(f"问{n}", "好" if n % 2 else "滚开", label=bool(n % 2)) for n in range(40)]
    manifest = mixed(tmp_path, {"sft_kto.jsonl": ("general", records)})
    assert manifest["sources"][0]["dropped"]["label is false: an answer marked as bad"] == 20
    assert len(read(tmp_path / "out" / "rejects.jsonl")) == 20
    for stage in ("sft", "pretrain"):
        for heldout in (False, True):
            assert "滚开" not in json.dumps(out(tmp_path, stage, heldout), ensure_ascii=False)


def test_a_file_of_bad_answers_alone_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"every record says that it is not to be learnt \(label is false"):
        mixed(tmp_path, {"a.jsonl": ("general", [chat(f"问{n}", label=False) for n in range(9)])})


@pytest.mark.parametrize(
    ("category", "records", "right"),
    [
        ("preference", [chat(f"问{n}") for n in range(9)], "general"),
        ("preference", [{"text": f"文{n}"} for n in range(9)], "corpus"),
        ("general", [{"text": f"文{n}"} for n in range(9)], "corpus"),
        ("math", [pair(f"问{n}") for n in range(9)], "preference"),
    ],
)
def test_a_file_in_the_wrong_category_is_named_with_the_line_to_write(
    tmp_path: Path, category: str, records: list[Record], right: str
) -> None:
    with pytest.raises(UserError, match=rf"first: line 1\).*Put the line `  x\.jsonl: {right}` first under `files:`"):
        mixed(tmp_path, {"x.jsonl": (category, records)})


@pytest.mark.parametrize(
    ("record", "advice"),
    [
        (
            {"messages": [{"role": "旁白", "content": "x"}]},
            "unknown role: 旁白: 9; first: line 1.*Name the speakers system, user",
        ),
        ({"foo": "x", "bar": 1}, "unknown shape: fields foo, bar: 9.*docs/formats.md lists the fields"),
        ({"title": "x", "paragraphs": []}, "SQuAD's nested paragraphs.*its own line"),
        ({"question": "问", "options": ["一", "二"], "answer": "E"}, "It needs a question, options"),
        ({"conversations": [{"role": "user", "content": "问"}]}, "must end with what the assistant says"),
        ({"instruction": "问", "output": "答", "images": ["a.png"]}, "images: the record needs more than its text"),
    ],
)
def test_advice_fits_the_reason(tmp_path: Path, record: Record, advice: str) -> None:
    with pytest.raises(UserError, match=f"no readable record.*{advice}") as raised:
        mixed(tmp_path, {"a.jsonl": ("general", [record] * 9)})
    assert "one JSON record a line" not in str(raised.value)
    assert raised.value.chinese.startswith("9 条记录不可用：")


def test_reasons_that_name_something_do_not_fill_the_manifest(tmp_path: Path) -> None:
    odd = [{"messages": [{"role": f"角色{n}", "content": "x"}]} for n in range(100)]
    records = [chat(f"问{n}") for n in range(3000)]
    manifest = mixed(tmp_path, {"a.jsonl": ("general", records + odd)}, MixConfig(general=5000, heldout_share=0.0))
    dropped = manifest["sources"][0]["dropped"]
    assert len(dropped) == MAX_REASONS + 1
    assert dropped["unknown role"] == 50


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl: is empty"):
        mixed(tmp_path, {"a.jsonl": ("general", [])})
