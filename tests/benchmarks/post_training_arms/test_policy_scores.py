"""Scores of a policy: losses on the same questions, answers that repeat each other."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.post_training_arms.policy_scores import Scores, keep_answers, repeated_4_grams
from tests.tiny_run import sum_record

RIGHT: dict[str, Any] = {"value": 0.5, "n": 2, "ci95": [0.1, 0.9]}


def scores(rights: list[bool], answers: list[str]) -> Scores:
    questions = ["accuracy_identity", "accuracy_math", "first_minutes_chat", "accuracy_math_beyond"]
    return Scores(
        prompt_metrics=dict.fromkeys(
            ("accuracy_prompts", "accuracy_sampled", "well_formed_prompts", "ended_prompts"), RIGHT
        ),
        answers=[
            {"record": sum_record(1, 2), "answer": text, "ended": True, "right": True, "tokens": len(text)}
            for text in answers
        ],
        others={
            f"{number} q": [metric, f"c{number}", right]
            for number, (metric, right) in enumerate(zip(questions, rights, strict=True))
        },
        pass_at=0.75,
    )


def test_changes_are_taken_on_the_same_questions_and_large_sums_apart() -> None:
    before, after = scores([True, True, False, True], ["1+2=3。"]), scores([True, False, False, False], ["3。"])
    change = after.change(before)
    assert isinstance(change["other_change"], dict)
    assert change["other_change"]["value"] == pytest.approx(-1 / 3)
    assert change["other_change_beyond"] == -1.0


def test_a_line_of_results_has_each_score() -> None:
    found = scores([True, True, False, True], ["1+2=3。", "3。"]).metrics("start_")
    assert found["start_accuracy"] == RIGHT and found["start_pass_at_8"] == 0.75
    assert found["start_length"] == 4.0 and found["start_other_first_minutes"] == 0


def test_runs_of_4_characters_that_come_again_are_counted_over_all_answers() -> None:
    assert repeated_4_grams(["小狗在家吃"]) == 0.0
    assert repeated_4_grams(["小狗在家吃", "小狗在家睡"]) == pytest.approx(1 / 4)
    assert repeated_4_grams(["啊啊啊啊啊啊"]) == pytest.approx(2 / 3)
    assert repeated_4_grams(["好"]) == 0.0


def test_answers_are_kept_to_be_read(tmp_path: Path) -> None:
    keep_answers(scores([True] * 4, ["1+2=3。"]), tmp_path / "a" / "answers.jsonl")
    text = (tmp_path / "a" / "answers.jsonl").read_text(encoding="utf-8")
    assert text == '{"prompt": "1+2等于多少？", "answer": "1+2=3。", "right": true}\n'
