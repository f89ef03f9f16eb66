"""How results are kept, shown again and held against targets."""

import importlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import Page, Target, add_page_flags, keep, show, shows_old_figures
from configs.cli import Parser
from configs.schema import UserError


def test_an_arm_measured_before_stays_beside_one_of_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    kept = partial(keep, order=("minillm", "baseline"))

    def result(arm: str, **fields: Any) -> dict[str, Any]:
        return {"arm": arm, "model": "64x2", "device": "cpu", "corpus": {"tokens": 3}, **fields}

    kept(path, [result("baseline", speed=1)])
    assert [r["arm"] for r in kept(path, [result("minillm", speed=2)])] == ["minillm", "baseline"]
    assert [r["speed"] for r in kept(path, [result("baseline", speed=3)])] == [2, 3]
    assert kept(path, [result("minillm", model="128x2")]) == [result("minillm", model="128x2")]
    assert json.loads(path.read_text()) == [result("minillm", model="128x2")]
    assert kept(None, [result("minillm")]) == [result("minillm")]


def test_a_target_is_met_from_its_figure_on() -> None:
    assert str(Target("speed", 2.5, 2.5)) == "speed: 2.50x (target 2.5x): met"
    assert str(Target("faster", 3.0, 3.456)) == "faster: 3.46x (target 3x): met"
    assert str(Target("faster", 3.0, 2.0)) == "faster: 2.00x (target 3x): NOT met"
    assert str(Target("share", 90.0, 89.9, "%")).endswith("NOT met")


def test_what_could_not_be_measured_meets_no_target() -> None:
    assert not Target("memory", 2.0, math.nan).met
    assert str(Target("memory", 2.0, math.nan, " GB")) == "memory: not measured (target 2 GB)"


def test_old_figures_are_printed_and_drawn_again_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser()
    add_page_flags(parser)
    page = Page(lambda figures: [f"arm {one['arm']}" for one in figures], lambda path, figures: path.touch())
    assert not shows_old_figures(page, parser.parse_args([]))
    path = tmp_path / "speed.json"
    path.write_text('[{"arm": "a"}, {"arm": "b"}]', encoding="utf-8")
    assert shows_old_figures(page, parser.parse_args(["--from_json", str(path)]))
    assert capsys.readouterr().out.startswith("arm a\narm b\ndrawn: ")
    assert (tmp_path / "speed.svg").exists()


def test_figures_that_are_not_there_name_the_flag_that_makes_them(tmp_path: Path) -> None:
    parser = Parser()
    add_page_flags(parser)
    args = parser.parse_args(["--from_json", str(tmp_path / "none.json")])
    with pytest.raises(UserError, match="Make it with --json"):
        shows_old_figures(Page(lambda figures: [], lambda path, figures: None), args)


def test_without_a_file_only_the_table_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show(Page(lambda figures: ["table"], pytest.fail), [], None)
    assert capsys.readouterr().out == "table\n"


@pytest.mark.parametrize("program", ["train_speed", "time_to_loss", "compare_settings"])
def test_the_training_benchmarks_report_in_one_way(program: str) -> None:
    module = importlib.import_module(f"benchmarks.{program}")
    assert isinstance(module.PAGE, Page)
    assert module.show is show and module.shows_old_figures is shows_old_figures
