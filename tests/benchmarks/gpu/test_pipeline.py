"""A talk with the result."""

from pathlib import Path

import pytest

from benchmarks.gpu.checks import CheckFailed, Ended
from benchmarks.gpu.pipeline import TALKS, of_talk


def test_a_talk_is_read_answer_by_answer(tmp_path: Path) -> None:
    questions = [question for turns in TALKS for question in turns]
    said = [f"答{number}\n第二行" for number in range(len(questions))]
    out, number = "", 0
    for turns in TALKS:
        out += "你: " if number else ""  # /new, which is answered by another question
        for _ in turns:
            out += f"你: 模型: {said[number]}\n"
            number += 1
    talk = of_talk(Ended(f"{out}你: \n"))["talk"]
    assert talk == [list(pair) for pair in zip(questions, said, strict=True)]
    with pytest.raises(CheckFailed, match="11 answers to 12 questions"):
        of_talk(Ended(out.rpartition("你: 模型: ")[0]))
