"""Reasoning: only the whole last sentence behind a closed thought makes an answer right."""

import pytest

from dataset.chat import ChatFormat
from dataset.chatml import ChatML
from evaluation.answers import Said, metric_name
from evaluation.questions import question_of
from evaluation.reasoning import LastSentenceRule, is_well_formed, last_sentence
from inference.engine import Answer

ASKED = {"role": "user", "content": "小明有12个梨，又买了7个，现在有几个梨？"}


def record(kind: str, **way: object) -> dict[str, object]:
    answer = {"role": "assistant", "content": "现在有19个梨。", **way}
    return {"conversations": [ASKED, answer], "category": "math", "kind": kind}


def test_a_record_is_asked_in_the_form_of_its_answer() -> None:
    thinking = question_of(record("reasoning_thinking", reasoning_content="12+7=19。"))
    plain = question_of(record("reasoning_plain", enable_thinking=False))
    assert (thinking.enable_thinking, plain.enable_thinking) == (True, False)
    assert question_of(record("word")).enable_thinking is None
    assert metric_name(thinking) == "accuracy_reasoning_thinking" and metric_name(plain) == "accuracy_reasoning_plain"


@pytest.mark.parametrize(
    ("said", "broken"),
    [
        ("现在有19个梨。", ""),
        ("现在有 19 个梨", ""),
        ("12+7=19。现在有19个梨。", ""),
        ("", "empty"),
        ("19", "another last sentence"),
        ("现在有9个梨。", "another last sentence"),
        ("现在有119个梨。", "another last sentence"),
        ("现在有19个苹果。", "another last sentence"),
        ("现在有19个梨。不对，是20个。", "another last sentence"),
        ("不是现在有19个梨。", "another last sentence"),
    ],
)
def test_the_whole_last_sentence_counts(said: str, broken: str) -> None:
    assert LastSentenceRule(question_of(record("reasoning_plain", enable_thinking=False))).broken(Said(said)) == broken


def test_the_last_sentence_is_the_last_one_with_words() -> None:
    assert last_sentence("一。二！\n三？。 \n") == "三"
    assert last_sentence("。\n") == "" == last_sentence("")


@pytest.mark.parametrize(
    ("written", "is_well"),
    [
        ("12+7=19。<|think_end|>现在有19个梨。", True),
        ("错的也算。<|think_end|>现在有9个梨。", True),
        ("12+7=19。", False),  # no end
        ("<|think_end|>现在有19个梨。", False),  # no thought
        ("12+7=19。<|think_end|>", False),  # no answer
        ("12+7=19。<|think_end|>现在<|think_end|>有19个梨。", False),
        ("12+7=19。<|think_start|><|think_end|>现在有19个梨。", False),
        ("12+7=19。<|think_end|><|think_start|>现在有19个梨。", False),
    ],
)
def test_a_well_formed_answer_has_one_thought_then_words_then_its_end(written: str, is_well: bool) -> None:
    text = ChatFormat().answer_of(written, begins_with_thought=True)
    assert is_well_formed(Answer(text, True, 9, written), ChatFormat()) is is_well
    assert not is_well_formed(Answer(text, False, 9, written), ChatFormat())


def test_a_format_whose_model_writes_the_first_mark_may_have_it() -> None:
    assert is_well_formed(Answer("好", True, 9, "<think>\n想\n</think>\n\n好"), ChatML())
