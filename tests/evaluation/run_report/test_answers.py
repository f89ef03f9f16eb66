"""Answers: which held-out questions are asked, which answers are shown, and what is kept."""

import json
from pathlib import Path
from typing import Any

from evaluation.run_report.answers import PER_METRIC, SHOWN, AnswerBook, sampled, spread


def record(number: int, split: str, category: str = "math") -> dict[str, Any]:
    turns = [{"role": "user", "content": f"{number}+1=?"}, {"role": "assistant", "content": str(number + 1)}]
    return {"conversations": turns, "category": category, "split": split}


def test_questions_are_of_the_half_test_and_a_few_of_each_metric(tmp_path: Path) -> None:
    path = tmp_path / "heldout.jsonl"
    records = [record(number, "test") for number in range(40)]
    records += [record(99, "validation"), record(7, "test", "identity"), record(8, "test", "general")]
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    questions = sampled(path)
    # Talk without a kind has no right answer, so it is not asked.
    assert [question.category for question in questions] == ["identity"] + ["math"] * PER_METRIC
    assert "99+1=?" not in [question.asked for question in questions]
    assert questions == sampled(path)


def test_no_metric_is_shown_twice_while_others_are_left() -> None:
    rows = [{"metric": name, "place": place} for place, name in enumerate("aaab")]
    assert [row["place"] for row in spread(rows)] == [0, 3, 1, 2]
    assert len(spread([{"metric": "a"}] * 20)) == SHOWN


def test_answers_are_kept_for_the_same_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    book = AnswerBook(path)
    assert book.get({"weights": "a"}, lambda: "first") == "first"
    book.save()
    again = AnswerBook(path)
    assert again.get({"weights": "a"}, lambda: "second") == "first"
    assert again.get({"weights": "b"}, lambda: "other") == "other"
    path.write_text("damaged")
    assert AnswerBook(path).get({"weights": "a"}, lambda: "anew") == "anew"
