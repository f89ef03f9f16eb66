"""evaluation/benchmarks/prompts.py: exact words around an item; examples of dev only."""

from pathlib import Path

import pytest

from configs.schema import UserError
from evaluation.benchmarks.prompts import CLOZE, LETTER, examples_of, prompts_of, without_question
from evaluation.benchmarks.tasks import TASKS

QUESTION = "题目：计算1加1的结果是\n"
OPTIONS = "A. 1\nB. 2\nC. 2点五\nD. 大约22\n"


def test_the_letter_form_lists_the_options_and_compares_letters(benchmarks: Path) -> None:
    task = TASKS["cmmlu"]
    prompt = prompts_of(task, task.items(benchmarks, "test").items, LETTER, {})[0]
    assert prompt.context == f"以下是单项选择题，请选出正确答案。\n\n{QUESTION}{OPTIONS}答案"
    assert prompt.continuations == ("：A", "：B", "：C", "：D")
    assert prompt.lengths == ("A", "B", "C", "D")


def test_the_cloze_form_does_not_show_the_options(benchmarks: Path) -> None:
    task = TASKS["cmmlu"]
    items = task.items(benchmarks, "test").items
    assert prompts_of(task, items, CLOZE, {})[0].context == f"{QUESTION}答案"
    assert prompts_of(task, items, CLOZE, {})[0].lengths == items[0].options
    assert without_question(items)[0].context == "答案"


@pytest.mark.parametrize("form", [LETTER, CLOZE])
def test_examples_stand_with_their_answers_before_the_question(benchmarks: Path, form: str) -> None:
    task = TASKS["cmmlu"]
    items, dev = task.items(benchmarks, "test").items, task.items(benchmarks, "dev").items
    examples = examples_of(task, items, dev, 2)
    assert {group: [item.group for item in own] for group, own in examples.items()} == {
        "arithmetic": ["arithmetic"] * 2,
        "counting": ["counting"] * 2,
    }
    bare, shown = (prompts_of(task, items, form, given)[0].context for given in ({}, examples))
    answer = "B" if form == LETTER else "2"
    assert f"答案：{answer}\n\n题目：计算1加2" in shown
    assert shown.endswith(bare.removeprefix("以下是单项选择题，请选出正确答案。\n\n"))
    assert shown.count("题目：") == 3


def test_a_sentence_pair_has_no_prompt_and_a_cause_ends_in_its_link(benchmarks: Path) -> None:
    task = TASKS["zhoblimp"]
    prompt = prompts_of(task, task.items(benchmarks, "test").items, LETTER, {})[0]
    assert (prompt.context, prompt.continuations[0]) == ("", "我把第0本书看完了。")
    task = TASKS["xcopa_zh"]
    items = task.items(benchmarks, "test").items
    shots = examples_of(task, items, task.items(benchmarks, "val").items, 1)
    assert prompts_of(task, items, LETTER, shots)[0].context == "她走了0里路，所以他很累。\n他跑了0公里"


def test_too_few_examples_are_an_error(benchmarks: Path) -> None:
    task = TASKS["cmmlu"]
    items = task.items(benchmarks, "test").items
    with pytest.raises(UserError, match="has 0 examples of"):
        examples_of(task, items, (), 5)
