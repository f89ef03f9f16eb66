"""evaluation/benchmarks/files.py: original files are read as they are; what cannot be asked is
counted."""

import json
import os
from pathlib import Path

import pytest

from configs.paths import ROOT
from configs.schema import UserError
from evaluation.benchmarks.files import NO_OPTIONS, SEVERAL_RIGHT, UNREADABLE, read_cmmlu, read_files, with_options
from evaluation.benchmarks.tasks import TASKS
from tests.evaluation.benchmarks.original_files import PASSAGE, SINGLE

REAL = Path(os.environ.get("BENCHMARKS_DIR", ROOT / "data" / "benchmarks"))


def test_a_row_of_cmmlu_has_its_subject_from_the_file_name(benchmarks: Path) -> None:
    item = TASKS["cmmlu"].items(benchmarks, "test").items[0]
    assert (item.group, item.question, item.options) == (
        "arithmetic",
        "计算1加1的结果是",
        ("1", "2", "2点五", "大约22"),
    )
    assert item.answer == 1


def test_c_eval_is_read_with_and_without_explanations(benchmarks: Path) -> None:
    val, dev = (TASKS["ceval"].items(benchmarks, split).items for split in ("val", "dev"))
    assert {item.group for item in val} == {"arithmetic", "counting"}
    assert (len(val), len(dev)) == (80, 10)
    assert dev[0].options == val[0].options


def test_a_pair_of_xcopa_is_a_sentence_in_two_versions(benchmarks: Path) -> None:
    item = TASKS["xcopa_zh"].items(benchmarks, "test").items[1]
    assert (item.question, item.options, item.answer) == ("他跑了1公里", ("，所以他很累。", "，所以他是一名老师。"), 1)


def test_the_marks_of_options_in_agieval_are_not_part_of_them(benchmarks: Path) -> None:
    read = TASKS["agieval"].items(benchmarks, "test")
    assert read.items[-1].options == ("甲", "乙", "丙", "无法判断")
    assert read.items[-1].passage == "甲比乙高，乙比丙高。"
    assert read.left_out == {NO_OPTIONS: 1, SEVERAL_RIGHT: 1}


def test_a_passage_of_gaokao_bench_becomes_a_question_for_each_answer(benchmarks: Path) -> None:
    read = TASKS["gaokao"].items(benchmarks, "test")
    single, first, second = read.items
    assert single.options == ("河南、河北", "湖南、湖北", "山东、山西", "广东、广西")
    assert (single.answer, single.cluster) == (2, None)
    assert first.passage == second.passage == "阅读下文，完成 1～2 题。\n书法是一种艺术。"
    assert first.question == "1．（4 分）书法是（ ）"
    assert second.question == "2．（4 分）下列正确的是（ ）"
    assert second.options == ("甲", "乙丙", "丁", "戊己庚")
    assert first.cluster == second.cluster is not None
    assert read.left_out == {SEVERAL_RIGHT: 1, UNREADABLE: 1}


def test_letters_inside_a_question_are_no_options() -> None:
    assert [options for _, _, options in with_options("A、B 两点。" + SINGLE)] == [
        ("河南、河北", "湖南、湖北", "山东、山西", "广东、广西")
    ]
    assert len(with_options(PASSAGE)) == 2
    assert with_options("A．甲 B．乙 C．丙") == []


def test_a_broken_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",Question,A,B,C,D,Answer\n0,q,1,2,3,4,E\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv:2: no row with Question,A,B,C,D,Answer"):
        read_files([path], read_cmmlu)
    for name in ("xcopa_zh", "zhoblimp", "cmath", "agieval"):
        path = tmp_path / "x.jsonl"
        for text in ('{"a": 1}\n', "[1]\n", "{\n"):
            path.write_text(text, encoding="utf-8")
            with pytest.raises(UserError, match=r"x\.jsonl:1: "):
                read_files([path], TASKS[name].read)
    many = {"passage": "", "question": "q", "options": list("12345678"), "label": "A"}  # there is no letter H
    path.write_text(json.dumps(many), encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.jsonl:1: not a record of AGIEval"):
        read_files([path], TASKS["agieval"].read)
    path = tmp_path / "x.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.json: not a file of GAOKAO-Bench"):
        read_files([path], TASKS["gaokao"].read)


def test_a_missing_part_is_told_with_what_there_is(benchmarks: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cmmlu has test, dev"):
        TASKS["cmmlu"].items(benchmarks, "val")
    with pytest.raises(UserError, match="haonan-li/CMMLU"):
        TASKS["cmmlu"].items(tmp_path, "test")


@pytest.mark.skipif(not (REAL / "cmmlu").is_dir(), reason="the real benchmark files are not here")
@pytest.mark.parametrize(
    ("name", "count", "left_out"),
    [
        ("cmmlu", 5918, 0),
        ("xcopa_zh", 500, 0),
        ("zhoblimp", 35400, 0),
        ("cmath", 600, 0),
        ("agieval", 2255, 162),
        ("gaokao", 1605, 34),
    ],
)
def test_the_real_files_have_as_many_items_as_they_say(name: str, count: int, left_out: int) -> None:
    task = TASKS[name]
    read = task.items(REAL, next(iter(task.splits)))
    assert (len(read.items), sum(read.left_out.values())) == (count, left_out)
    for item in read.items:
        assert not item.options or (0 <= item.answer < len(item.options) and all(item.options))
