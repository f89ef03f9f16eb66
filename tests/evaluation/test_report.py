"""Tables that fit a terminal of 100 columns."""

from unicodedata import east_asian_width

from evaluation.intervals import Metric
from evaluation.report import tables, wrong_answers
from evaluation.stage import Verdict
from inference.engine import Answer

BASELINES = {"constant": 0.25, "nearest": 0.5}
PAIRS = {"length": 0.5, "nearest": None, "reason": "dpo.jsonl: no such file"}
METRICS = {
    "loss": Metric(1.23456, 123_456, 1.2, 1.3, 1_234),
    "ended": Metric(0.991, 4_000, 0.98, 0.995, 900),
    "accuracy_identity": Metric(
        0.5, 350, 0.4, 0.6, 22, BASELINES, {f"topic_{n}": {"value": n / 20, "n": 11} for n in range(20)}
    ),
    "first_minutes_identity": Metric(1.0, 350, 0.9, 1.0, 220, BASELINES),
    "preference_accuracy": Metric(0.75, 350, 0.4, 0.6, 220, PAIRS),
    "preference_accuracy_length_normalized": Metric(0.875, 12_350, 0.4, 0.6, 1_220, PAIRS),
    "preference_accuracy_length_normalized_before": Metric(0.25, 12_350, 0.4, 0.6, 1_220, PAIRS),
    "preference_accuracy_wrong_fact": Metric(0.75, 350, 0.4, 0.6, 220, PAIRS),
    "preference_accuracy_length_normalized_wrong_fact": Metric(0.5, 350, 0.4, 0.6, 220, PAIRS),
    "preference_accuracy_length_normalized_wrong_fact_before": Metric(0.333, 350, 0.2, 0.5, 220, PAIRS),
    "preference_accuracy_no_reference": Metric(0.75, 12_350, 0.415, 0.615, 1_220, PAIRS),
    "preference_accuracy_no_reference_before": Metric(0.375, 12_350, 0.4, 0.6, 1_220, PAIRS),
    "reward_margin": Metric(0.5, 350, 0.4, 0.6),
}


def width(line: str) -> int:
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in line)


def test_tables_fit_and_their_columns_are_aligned() -> None:
    lines = tables(METRICS)
    assert max(map(width, lines)) <= 100
    head, row = (line for line in lines if line.startswith(("  accuracy ", "  identity ")))
    for column, cell in (("right", "50.0%"), ("95%", "40-60"), ("const", "25%"), ("near", "50%")):
        assert head.index(column) + len(column) == row.index(cell) + len(cell)


def test_answers_and_first_minutes_stand_side_by_side_where_they_fit() -> None:
    (row,) = [line.split() for line in tables(METRICS) if line.startswith("  identity ")]
    assert row == ["identity", "50.0%", "40-60", "25%", "50%", "identity", "100.0%", "90-100", "25%", "50%"]
    wide = "a_category_of_the_users_own_with_a_long_name"
    lines = tables(METRICS | {f"accuracy_{wide}": METRICS["accuracy_identity"]})
    assert max(map(width, lines)) <= 100
    assert [line.split()[0] for line in lines].count("identity") == 2


def test_what_was_before_and_what_rules_reach_stand_beside_a_share() -> None:
    lines = tables(METRICS)
    text = "\n".join(lines)
    assert "preference_accuracy_no_reference 75.0% 42-62, was 37.5%; long 50%, near -" in text
    (row,) = [line.split() for line in lines if line.startswith("  all ")]
    assert row[:7] == ["all", "75%", "40-60", "88%", "25%", "50%", "-"]
    assert row[7:] == ["wrong_fact", "75%", "40-60", "50%", "33%", "50%", "-"]  # its three metrics
    assert "no nearest training example: dpo.jsonl: no such file" in text
    assert "accuracy_identity, lowest of 20 topics: topic_0 0% of 11, topic_1 5% of 11" in text


def test_wrong_answers_are_shown_with_the_rule_they_broke_some_of_each_metric() -> None:
    said = Answer("8", False, 1)
    verdicts = [
        *(Verdict("accuracy_math", (f"{n}+1",), said, (f"{n + 1}",), "another number") for n in range(3)),
        Verdict("accuracy_math", ("7+1",), said, ("8",), ""),
        Verdict("first_minutes_turns", ("你好", "那呢"), said, (), "contains GPT"),
    ]
    assert wrong_answers(verdicts, 2) == [
        "  accuracy_math: another number",
        "    问: 0+1",
        "    答: 8 …",
        "    对: 1",
        "  accuracy_math: another number",
        "    问: 1+1",
        "    答: 8 …",
        "    对: 2",
        "  first_minutes_turns: contains GPT",
        "    问: 你好 | 那呢",
        "    答: 8 …",
    ]
    assert wrong_answers(verdicts, 0) == []
