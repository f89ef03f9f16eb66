"""What is put around a question never changes the question itself."""

import random
from collections import Counter

import pytest

from dataset.samples import frames

QUESTIONS: dict[frames.Form, str] = {
    "ask": "太阳是恒星吗？",
    "wh": "《静夜思》的作者是谁？",
    "fact": "《静夜思》的作者是谁",
    "do": "讲个笑话。",
    "say": "今天好开心。",
}


def drawn(form: frames.Form, count: int = 2_000) -> list[str]:
    rng = random.Random(7)
    return [frames.framed(QUESTIONS[form], rng, form) for _ in range(count)]


@pytest.mark.parametrize("form", QUESTIONS)
def test_the_words_of_the_question_stay(form: frames.Form) -> None:
    words = frames.unquoted(frames.bare(QUESTIONS[form]))
    assert all(words in frames.unquoted(text) and text == text.strip() for text in drawn(form))


@pytest.mark.parametrize("form", QUESTIONS)
def test_most_questions_gain_nothing_but_a_mark(form: frames.Form) -> None:
    words = frames.unquoted(frames.bare(QUESTIONS[form]))
    plain = sum(frames.bare(frames.unquoted(text)) == words for text in drawn(form))
    assert (0.35 if form == "fact" else 0.6) < plain / 2_000 < 0.95


def test_marks_are_drawn_and_may_be_missing() -> None:
    ends = Counter(text[-1] for text in drawn("ask"))
    assert ends["？"] > ends["吗"] > ends["?"] > 50
    quoted = sum("《" in text for text in drawn("wh"))
    assert 800 < quoted < 1_200


def test_a_question_that_opens_by_itself_gets_no_second_opening() -> None:
    rng = random.Random(3)
    for question in ("请问法国的首都是哪里？", "你好，你是谁？", "那德国呢？"):
        assert all(frames.framed(question, rng, "ask").startswith(question[:2]) for _ in range(300))


def test_a_formula_keeps_its_equals_sign_and_takes_no_full_stop() -> None:
    rng = random.Random(5)
    for _ in range(500):
        text = frames.framed("1+1=？", rng)
        assert "1+1=" in text
        assert not text.endswith(("=。", "=！", "=呢"))


def test_the_same_seed_draws_the_same_frames() -> None:
    assert drawn("wh", 50) == drawn("wh", 50)


def test_what_is_asked_in_earnest_is_no_quiz_and_no_order_to_tell() -> None:
    rng = random.Random(7)
    for question in ("胃疼几天能好", "你能付款吗"):
        asked = [frames.in_earnest(question, rng, "fact") for _ in range(1_000)]
        assert not any(text.startswith(("考考你", "告诉我你能")) for text in asked)
        assert len(set(asked)) > 20
    assert frames.in_earnest("考考你，一加一等于几", rng).startswith("考考你")
