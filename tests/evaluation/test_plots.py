"""Plots drawn from figures alone."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evaluation.plots import LEFT, RIGHT, WIDTH, Bar, bar_chart, line_chart, ticks

SVG = "{http://www.w3.org/2000/svg}"


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0, 16_700) == [0, 5000, 10_000, 15_000]
    assert ticks(2.39, 2.63) == pytest.approx([2.4, 2.45, 2.5, 2.55, 2.6])
    assert ticks(3, 3) == [3]


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    path = tmp_path / "bars.svg"
    bar_chart(path, "a < b & c", [Bar("one", 100, "x", 150.0), Bar("two", 50)], mark="bound")
    root = ElementTree.parse(path).getroot()
    long, short = (float(rect.attrib["width"]) for rect in root.iter(f"{SVG}rect") if rect.attrib["height"] == "30")
    shown = [text.text for text in root.iter(f"{SVG}text")]
    assert long == pytest.approx(2 * short, abs=0.2)
    assert {"a < b & c", "one", "two", "100, x", "50", "bound"} <= set(shown)


def test_lines_stay_in_the_frame_and_go_right_and_down(tmp_path: Path) -> None:
    path = tmp_path / "lines.svg"
    series = {"minillm": [(240.0, 2.1), (60.0, 2.5)], "baseline": [(300.0, 2.6), (1200.0, 2.2)]}
    line_chart(path, "curves", "seconds", "bits", series, level=2.2)
    root = ElementTree.parse(path).getroot()
    lines = [p.attrib["d"] for p in root.iter(f"{SVG}path") if p.attrib.get("fill") == "none"]
    places = [[tuple(map(float, pair.split())) for pair in re.split("[ML]", d)[1:]] for d in lines]
    assert len(places) == 2 and len(list(root.iter(f"{SVG}circle"))) == 4
    for (x1, y1), (x2, y2) in places:
        assert LEFT < x1 < x2 < WIDTH - RIGHT and y1 < y2
