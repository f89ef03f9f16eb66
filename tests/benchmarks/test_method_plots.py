"""Curves of methods: thinned, kept a line each, and drawn with a panel a field."""

import json
import math
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.method_plots import CURVES, WINDOWS, Curve, draw, main, read_curves, thin
from configs.schema import UserError


def metrics(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def keep(folder: Path, file: Path, *words: str, name: str = "healthy", fields: str = "loss") -> int:
    given = {"method": "m", "name": name, "label": f"the {name} run", "fields": fields, "metrics": file}
    flags = [word for flag, value in given.items() for word in (f"--{flag}", str(value))]
    return main(["keep", *flags, "--curves", str(folder), *words])


def test_few_steps_stay_as_they_are_and_many_become_means_of_windows() -> None:
    steps, fields = thin([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "val": 3.0}], ["loss", "val"])
    assert (steps, fields) == ([1, 2], {"loss": [2.0, 1.0], "val": [None, 3.0]})
    steps, fields = thin([{"step": step, "loss": step / 3} for step in range(1, 1201)], ["loss"])
    assert len(steps) == WINDOWS and steps[-1] == 1200 and steps[0] == 20
    assert fields["loss"][0] == pytest.approx(3.5, abs=1e-4)  # the mean of 1/3 to 20/3


def test_a_value_that_is_no_number_counts_as_not_logged() -> None:
    assert thin([{"step": 1, "loss": math.nan}, {"step": 2, "loss": "x"}], ["loss"])[1] == {"loss": [None, None]}


def test_a_run_is_kept_in_place_of_one_of_its_name(tmp_path: Path) -> None:
    file = metrics(tmp_path / "grpo_1.jsonl", {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0})
    keep(tmp_path, file)
    keep(tmp_path, file, "--sick", name="rate")
    keep(tmp_path, metrics(tmp_path / "grpo_2.jsonl", {"step": 1, "loss": 9.0}))
    healthy, sick = read_curves(tmp_path / "m.jsonl")
    assert (healthy.source, healthy.fields["loss"], healthy.healthy) == ("grpo_2.jsonl", [9.0], True)
    assert (sick.name, sick.label, sick.healthy, list(sick.steps)) == ("rate", "the rate run", False, [1, 2])


def test_each_field_is_a_panel_with_a_line_a_run_that_has_it(tmp_path: Path) -> None:
    curves = [
        Curve("rate", "sick", False, "", [1, 2, 3], {"loss": [2.0, None, 4.0]}),
        Curve("healthy", "well", True, "", [1, 2], {"loss": [2.0, 1.0], "reward": [0.1, 0.2]}),
    ]
    draw(tmp_path / "m.svg", "m", curves)
    root = ElementTree.parse(tmp_path / "m.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    shown = [text.text for text in root.iter(f"{svg}text")]
    assert {"loss 训练损失", "reward 奖励"} <= set(shown) and shown.index("well") < shown.index("✗ sick")
    lines = [path.attrib["d"] for path in root.iter(f"{svg}path") if path.attrib.get("fill") == "none"]
    assert [d.count("L") for d in lines] == [1, 1, 1]  # two points each: the gap is bridged


def test_draw_makes_a_picture_of_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path, metrics(tmp_path / "x.txt", {"step": 0, "loss": 2.0}))
    assert main(["draw", "--curves", str(tmp_path), "--plots", str(tmp_path / "plots")]) == 0
    assert (tmp_path / "plots" / "m.svg").exists() and "m.svg" in capsys.readouterr().out


def test_of_a_folder_the_newest_metrics_are_taken(tmp_path: Path) -> None:
    (tmp_path / "run" / "tf" / "metrics").mkdir(parents=True)
    for name, time in (("a", 2), ("b", 1)):
        file = metrics(tmp_path / "run" / "tf" / "metrics" / f"{name}.jsonl", {"step": 1, "loss": 2.0})
        os.utime(file, ns=(time, time))
    metrics(tmp_path / "run" / "tf" / "eval_results.jsonl", {"other": 1})
    keep(tmp_path, tmp_path / "run")
    assert read_curves(tmp_path / "m.jsonl")[0].source == "a.jsonl"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no metrics/\*\.jsonl below it"):
        keep(tmp_path, tmp_path / "empty")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    file = metrics(tmp_path / "x.jsonl", {"step": 1, "loss": 2.0, "kl": 0.1})
    with pytest.raises(UserError, match=r"no reward in it\. It has kl, loss\."):
        keep(tmp_path, file, fields="loss,reward")
    with pytest.raises(UserError, match="no metrics of a trainer"):
        keep(tmp_path, metrics(tmp_path / "y.jsonl", {"loss": 1.0}))
    with pytest.raises(UserError, match="no kept curves"):
        main(["draw", "--method", "none", "--curves", str(tmp_path)])


def test_what_is_kept_in_the_repository_can_be_drawn(tmp_path: Path) -> None:
    for path in CURVES.glob("*.jsonl"):
        draw(tmp_path / "plot.svg", path.stem, read_curves(path))
