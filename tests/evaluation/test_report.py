"""Tables that fit a terminal of 100 columns."""

from unicodedata import east_asian_width

from evaluation.intervals import Metric
from evaluation.report import tables, wrong_answers
from evaluation.stage import Verdict
from model.generate import Answer

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
    ends = [line.index("clusters") + len("clusters") for line in lines if "clusters" in line]
    firsts = ("loss", "accuracy_identity  ", "preference_accuracy_no", "wrong_fact")
    rows = [line for line in lines if line.lstrip().startswith(firsts)]
    assert len(ends) == len(rows) == 4
    for end, row in zip(ends, rows, strict=True):
        assert row[:end].split()[-1] in {"1,234", "22", "220", "1,220"}
        assert row[end : end + 1] in {"", " "}


def test_what_was_before_and_what_rules_reach_stand_beside_a_share() -> None:
    lines = tables(METRICS)
    text = "\n".join(lines)
    assert "constant  nearest" in text
    assert "length  nearest  before" in text
    (row,) = [line.split() for line in lines if line.startswith("  preference_accuracy_no_reference ")]
    assert row[1:] == ["75.0%", "[41.5%,", "61.5%]", "12,350", "1,220", "50.0%", "-", "37.5%"]
    (row,) = [line.split() for line in lines if line.startswith("  all ")]
    assert row[1:] == ["75.0%", "[40.0%,", "60.0%]", "350", "220", "87.5%", "25.0%", "50.0%", "-"]
    (row,) = [line.split() for line in lines if "wrong_fact" in line]  # its three metrics in one line
    assert row == ["wrong_fact", "75.0%", "[40.0%,", "60.0%]", "350", "220", "50.0%", "33.3%", "50.0%", "-"]
    assert "no nearest training example: dpo.jsonl: no such file" in text
    assert "topic_5 25% of 11" in text


def test_wrong_answers_are_shown_with_the_rule_they_broke_some_of_each_metric() -> None:
    said = Answer("8", False, 1)
    verdicts = [
        *(Verdict("accuracy_math", (f"{n}+1",), said, (f"{n + 1}",), "another number") for n in range(3)),
        Verdict("accuracy_math", ("7+1",), said, ("8",), ""),
        Verdict("first_minutes_turns", ("你好", "那呢"), said, (), "contains GPT"),
    ]
    assert wrong_answers(verdicts, 2) == [
        "  accuracy_math: another number", "    问: 0+1", "    答: 8 …", "    对: 1",
        "  accuracy_math: another number", "    问: 1+1", "    答: 8 …", "    对: 2",
        "  first_minutes_turns: contains GPT", "    问: 你好 | 那呢", "    答: 8 …",
    ]  # fmt: skip
    assert wrong_answers(verdicts, 0) == []
