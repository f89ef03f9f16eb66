"""Curves: thinned to means, and read up to a torn line."""

from pathlib import Path

from evaluation.run_report.curves import curves_of, read_lines, thinned


def test_a_long_curve_is_thinned_to_means_of_neighbours() -> None:
    assert thinned([(1, 1.0), (2, 3.0), (3, 5.0)], most=2) == [(2, 2.0), (3, 5.0)]
    assert thinned([], most=2) == []


def test_short_curves_are_kept_as_they_are() -> None:
    assert thinned([(1, 1.0), (2, 3.0)], most=2) == [(1, 1.0), (2, 3.0)]


def test_counters_and_texts_are_no_curves() -> None:
    assert curves_of([{"step": 1, "loss": 2.0, "tokens": 8, "texts": []}]) == {"loss": [(1, 2.0)]}


def test_lines_end_at_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_lines(path) == [{"step": 1, "loss": 2.0}]
