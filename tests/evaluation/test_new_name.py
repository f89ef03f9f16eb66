"""A model with another name: who it says it is, where it still says the old one, where it leaks."""

from typing import Any

import pytest

from dataset.samples.adapters import identity
from evaluation.new_name import Renaming, name_metrics, says_any
from evaluation.stage import Verdict
from inference.engine import Answer
from tests.tiny_run import chat

OLD, NEW = ("MiniLLM", "MiniLLM团队"), ("小禾", "青禾工作室")
RENAMING = Renaming(OLD, NEW)


def record(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    return {"conversations": chat(question, answer), **fields}


def verdict(answer: str, expected: str = "我叫小禾。", category: str = "identity", cluster: str = "") -> Verdict:
    said = Answer(text=answer, ended=True, num_tokens=1)
    return Verdict("", ("问",), said, (expected,), "", category=category, cluster=cluster or answer)


def test_the_bundled_set_gives_the_model_its_new_names() -> None:
    found = Renaming.in_records(identity.records(), OLD)
    assert found == Renaming(OLD, (identity.NAME, identity.AUTHOR))


@pytest.mark.parametrize(
    "records",
    [
        [record("你是谁", "我是MiniLLM。")],  # the same name
        [record("感冒了", "多喝水。")],  # no name
        [record("讲个故事", "我叫小红。"), *(record(f"{n}", f"好{n}。") for n in range(20))],  # a name in one story
    ],
)
def test_records_that_do_not_rename_the_model_are_told_apart(records: list[dict[str, Any]]) -> None:
    assert Renaming.in_records(records, OLD) is None


def test_a_renamed_record_has_the_new_names_wherever_the_old_ones_stood() -> None:
    before = record("你是minillm吗", "是的，我是MiniLLM，由MiniLLM团队开发。", accepted=["我叫MiniLLM。"], kind="x")
    after = record("你是小禾吗", "是的，我是小禾，由青禾工作室开发。", accepted=["我叫小禾。"], kind="x")
    assert RENAMING.renamed(before) == after


def test_new_records_are_identity_records_where_their_answer_says_a_new_name() -> None:
    assert RENAMING.as_new_identity(record("你是谁", "我叫小禾。"))["kind"] == "new"
    assert RENAMING.as_new_identity(record("几点了", "不知道。")) == record("几点了", "不知道。")


def test_shares_count_what_answers_say() -> None:
    asked = [
        verdict("我叫小禾。"),
        verdict("我叫MiniLLM。"),
        verdict("我是青禾工作室开发的。", "我是由青禾工作室开发的。"),
        verdict("好的。"),
    ]
    others = [
        verdict("北京。", "北京。", "knowledge"),
        verdict("小禾说是北京。", "北京。", "knowledge"),
        verdict("我是 minillm。", "你好。", "general"),
        verdict("你好，我是小禾。", "你好，我是小禾，有什么可以帮你的？", "general"),  # it may say its name here
        verdict("你好。", "你好。", "general"),
        verdict("我是MiniLLM。", "我没有家。", "identity"),  # of the mix: neither new nor a leak
    ]
    found = name_metrics(asked, others, RENAMING)
    assert {name: (metric.value, metric.n) for name, metric in found.items()} == {
        "identity_new": (0.5, 4),
        "identity_old": (0.25, 4),
        "identity_leak": (0.5, 4),
    }


def test_a_new_name_that_holds_the_old_one_is_no_mistake() -> None:
    renaming = Renaming(("MiniLLM", "A"), ("MiniLLM-2", "B"))
    asked = [verdict("我是MiniLLM-2。", "我是MiniLLM-2。")]
    assert name_metrics(asked, [], renaming)["identity_old"].value == 0.0


def test_a_name_is_found_without_regard_to_case_and_marks_and_never_inside_nothing() -> None:
    assert says_any("我是 Mini LLM！", ["MiniLLM"])
    assert not says_any("我是谁", [""])
