"""The pictures of the report."""

import re

from evaluation.run_report.charts import Series, chart, interval_bar, provenance, short
from evaluation.run_report.facts import read_run
from tests.evaluation.run_report.small_run import SmallRun, metric


def test_a_chart_has_a_line_for_each_series_with_points() -> None:
    svg = chart("loss", [Series("a", "own", [(1, 2.0), (2, 1.0)]), Series("b", "reference", [])])
    assert re.findall(r'<path class="(own|reference)"', svg) == ["own"]
    assert chart("loss", []) == ""


def test_higher_values_stand_higher_on_both_axes() -> None:
    for logarithmic in (False, True):
        svg = chart("x", [Series("a", "own", [(1, 1.0), (2, 100.0)])], logarithmic=logarithmic)
        found = re.search(r'<path class="own" d="M\S+ (\S+)L\S+ (\S+)"', svg)
        assert found
        assert float(found[1]) > float(found[2])


def test_a_single_point_is_a_dot() -> None:
    assert '<circle class="own"' in chart("loss", [Series("a", "own", [(1, 2.0)])])


def test_the_chain_names_all_weights_and_where_they_come_from(small: SmallRun) -> None:
    facts = read_run(small.whole().folders)
    svg = provenance(facts)
    for stage in ("pretrain", "sft", "dpo"):
        assert facts["stages"][stage]["weights"]["sha256"][:8] in svg
    assert facts["mix"]["fingerprint"][:8] in svg
    # Data to weights, three times; weights to the next ones, twice; the tokenizer.
    assert svg.count('class="arrow"') == 6


def test_a_bar_ends_at_its_value_and_its_stroke_is_the_baseline() -> None:
    svg = interval_bar(metric(0.5), 0.25)
    assert 'width="49.0"' in svg
    assert "M25.5 0" in svg


def test_numbers_of_an_axis_are_short() -> None:
    assert [short(value) for value in (12_000, 2_500_000, 0.004, 500)] == ["12k", "2.5M", "0.004", "500"]
