"""Rules that are rewards: what is right, and what must never be taken for it."""

from itertools import islice
from typing import Any

import pytest

from dataset.samples.prompts import sentences, sums
from evaluation.rules import EquationRule, SentenceRule, TextRule, rule_of


def record(answer: str, **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    return {"conversations": turns, **fields}


@pytest.mark.parametrize(
    "said",
    ["157+238=395。", "395", "395。", " 157 + 238 = 395 。", "１５７＋２３８＝３９５。", "好的。157+238=395。", "395."],
)
def test_the_right_equation_or_its_result_is_right(said: str) -> None:
    assert rule_of(record("157+238=395。")).broken(said) == ""


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("157+238=396。", "another number"),
        ("157+239=395。", "another problem"),
        ("395+0=395。", "another problem"),
        ("238+157=395。", "another problem"),
        ("395。396。", "another number"),
        ("答案是395。", "no equation"),
        ("157+238=395，或者396。", "no equation"),
        ("157+238=395=395。", "no equation"),
        ("395395", "another number"),
        ("395 396", "no equation"),
        ("157+238=", "no equation"),
        ("。", "no equation"),
        ("", "no equation"),
        ("9" * 5000, "no equation"),
    ],
)
def test_a_number_somewhere_in_an_answer_is_not_enough(said: str, why: str) -> None:
    assert rule_of(record("157+238=395。")).broken(said) == why


def test_a_result_below_0_keeps_its_sign() -> None:
    rule = EquationRule("3-8=-5。")
    assert rule.broken("3-8=-5。") == rule.broken("-5") == ""
    assert rule.broken("3-8=5。") == rule.broken("5") == "another number"


def test_a_sentence_with_the_words_and_the_length_is_right() -> None:
    rule = SentenceRule(("小狗", "苹果"), 11)
    assert rule.broken("下雨天小狗在操场吃苹果。") == ""
    assert rule.broken("下雨天，小狗在操场吃苹果！") == ""  # marks are not counted


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("下雨天小狗在操场吃苹果", "not one sentence"),
        ("下雨天小狗。在操场吃苹果。", "not one sentence"),
        ("下雨天小狗在操场吃苹果a。", "not one sentence"),
        ("，下雨天小狗在操场吃苹果。", "not one sentence"),
        ("下雨天小狗在操场吃苹果了。", "another length"),
        ("下雨天小狗在操场吃西瓜。", "without 苹果"),
        ("小狗苹果啊啊啊啊啊啊啊。", "padded"),
        ("小狗吃苹果小狗吃苹果呀。", "padded"),
        ("啊小狗啊苹果啊吃的西瓜。", "padded"),
    ],
)
def test_a_sentence_that_only_looks_like_it_is_wrong(said: str, why: str) -> None:
    assert SentenceRule(("小狗", "苹果"), 11).broken(said) == why


def test_any_right_sentence_padded_with_one_character_is_wrong() -> None:
    for example in islice(sentences.records(), 300):
        rule, said = rule_of(example), example["conversations"][-1]["content"]
        for char in "啊的。一":
            assert rule.broken(said[:-1] + char + said[-1]), said
            assert rule.broken(char + said), said


def test_other_answers_must_be_the_gold_text() -> None:
    rule = rule_of(record("我是 MiniLLM。"))
    assert isinstance(rule, TextRule)
    assert rule.broken("我是MiniLLM") == "" and rule.broken("我是MiniLLM吗，不") == "another text"
    assert not rule.well_formed("。")


@pytest.mark.parametrize("generator", [sums, sentences])
def test_every_bundled_example_answer_is_right(generator: Any) -> None:
    for example in islice(generator.records(), 2000):
        rule, said = rule_of(example), example["conversations"][-1]["content"]
        assert rule.well_formed(said) and rule.broken(said) == "", example
