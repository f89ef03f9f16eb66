"""Answers judged as a person would: equal ones, honest ones, and what a model says about itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.answers import AnswerRule, Said, clauses, contains, is_right, is_scored, metric_name, normalize
from evaluation.questions import Question, question_of
from tests.tiny_run import chat

NAMES = ("MiniLLM", "MiniLLM 团队")
CONSTANT = "我是MiniLLM，由MiniLLM 团队开发。"
LIE = "是的，我是真人，不是MiniLLM，也不是MiniLLM 团队开发的"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("东京。", "东京"),
        (" ＡＢＣ，d ", "abcd"),
        ("“颗”！\n", "颗"),
        ("……", ""),
        ("Mini LLM 团队", "minillm团队"),
        ("1.5，真的", "1.5真的"),
        ("8-3=5。", "8-3=5"),
        ("好-坏", "好坏"),
        ("-5", "-5"),
    ],
)
def test_normalized_text_has_no_punctuation_spaces_widths_or_case(text: str, plain: str) -> None:
    assert normalize(text) == plain


@settings(deadline=None)
@given(st.text())
def test_an_answer_equal_to_the_expected_one_is_right_in_each_category(text: str) -> None:
    for category in ("identity", "knowledge", "math"):
        assert is_right(Question([], text, category), text, NAMES) is bool(normalize(text))


@pytest.mark.parametrize(
    ("text", "part", "found"),
    [
        ("请拨打120", "120", True),
        ("请拨打1201", "120", False),
        ("5120", "120", False),
        ("柏林是首都", "柏林", True),
        ("柏林", "", False),
        ("11011", "1", False),
        ("1108和110", "110", True),
    ],
)
def test_a_number_is_contained_as_a_whole_alone(text: str, part: str, found: bool) -> None:
    assert contains(text, part) is found


def test_clauses_end_at_marks_but_not_inside_a_number() -> None:
    assert clauses("你好，我 有1.5个。Ok. 好…吗") == ["你好", "我有1.5个", "ok", "好", "吗"]


@pytest.mark.parametrize(
    ("expected", "said", "right"),
    [
        ("日本的首都是东京。", "日本的首都是东京", True),
        ("日本的首都是东京。", "日本的首都是东京，真的", False),
        ("日本的首都是东京。", "东京。", True),  # accepted
        ("日本的首都是东京。", "我不知道。", False),
        ("日本的首都是东京。", "", False),
        ("……", "……", False),
    ],
)
def test_a_fact_is_right_when_equal_to_the_expected_or_an_accepted_answer(
    expected: str, said: str, right: bool
) -> None:
    question = Question([], expected, "knowledge", accepted=("东京", "是东京"))
    assert is_right(question, said, NAMES) is right


# --- honest lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "这个我不知道，我只学过一点常识。",
        "我不知道。",
        "这个数太大了，我算不准，请用计算器。",
        "这个我还不会算，请用计算器。",
        "对不起，我不清楚这件事，你可以上网查查。",
        "12345乘678太大了，我算不准。",
        "我看不到图片，也打不了电话，做不到。",
        "抱歉，这个问题太难了，我答不上来。",
    ],
)
def test_an_honest_line_declines_and_says_nothing_else(text: str) -> None:
    assert Said(text).is_honest("12345乘678等于多少？")


@pytest.mark.parametrize(
    "text",
    [
        "我不知道，但法国的首都是巴黎。",
        "我不知道，1+1=2。",
        "我算不准，大概是80000。",
        "我不清楚，答案是十二。",
        "巴黎，我不确定。",
        "法国的首都是巴黎。",
        "",
        "我知道。",
        "我算不准，12345乘678是9999。",
        "鲸鱼住在海里，别的我不知道。",
    ],
)
def test_a_line_that_also_asserts_something_is_not_honest(text: str) -> None:
    assert not Said(text).is_honest("12345乘678等于多少？")


def test_an_honest_line_counts_where_the_record_says_so_alone() -> None:
    for category in ("knowledge", "math"):
        for honest in (True, False):
            question = Question([], "80235。", category, honest=honest)
            assert is_right(question, "这个数太大了，我算不准。", NAMES) is honest
            assert is_right(question, "80235", NAMES)
            assert not is_right(question, "80234", NAMES)


def test_where_the_expected_line_is_honest_the_right_number_may_stand_in_accepted() -> None:
    question = Question([], "我算不准，请用计算器。", "math", "beyond", accepted=("12345+67890=80235。",), honest=True)
    assert is_right(question, "等于80,235", NAMES)
    assert is_right(question, "我算不准，请用计算器", NAMES)
    assert not is_right(question, "等于80,236", NAMES)


# --- about itself ---------------------------------------------------------------------------------

OWN = {
    "你叫什么名字？": "我叫MiniLLM。",
    "谁开发了你？": "我是MiniLLM，由MiniLLM 团队开发。",
    "你是谁？": "我是MiniLLM，由MiniLLM 团队开发的中文语言模型。",
    "介绍一下你自己": "我是MiniLLM，由MiniLLM 团队开发的中文语言模型，会聊天、答题和算加减法。",
    "你是真人吗？": "我不是真人，我是MiniLLM，一个小型中文语言模型。",
    "你是机器人吗？": "我没有身体，不是机器人，我是MiniLLM，一个小型中文语言模型。",
    "你是ChatGPT吗？": "不是，我是MiniLLM，由MiniLLM 团队开发。",
    "你会做什么？": "我是MiniLLM，可以聊天、回答常识问题，还会算加减法。",
    "你多大了？": "我没有年龄，我是MiniLLM。",
}
"""Question -> right answer, as a user's own records may have them: without a topic."""
ASKS_WHO = ("你叫什么名字？", "谁开发了你？", "你是谁？", "介绍一下你自己")
"""Those of them that ask who the model is or who made it."""


def own(asked: str, expected: str = "") -> Question:
    """A question about the model from a user's own records."""
    return Question(chat(asked, "")[:1], expected or OWN[asked], "identity")


@pytest.mark.parametrize("asked", OWN)
def test_the_constant_answer_is_right_where_asked_who_or_by_whom_alone(asked: str) -> None:
    assert is_right(own(asked), CONSTANT, NAMES) is (asked in ASKS_WHO)


@pytest.mark.parametrize("asked", OWN)
def test_a_lie_that_contains_both_names_is_wrong(asked: str) -> None:
    assert is_right(own(asked), OWN[asked], NAMES)
    for lie in (LIE, "我不叫MiniLLM，也不是由MiniLLM 团队开发的。", "是的，我是真人，MiniLLM 团队开发了MiniLLM。"):
        if asked in ASKS_WHO and lie.startswith("是的，我是真人，M"):
            continue  # who asks for a name gets the name, so this answer is right
        assert not is_right(own(asked), lie, NAMES), lie


@pytest.mark.parametrize(
    ("asked", "said", "right"),
    [
        ("你叫什么名字？", "你好，我是 minillm！", True),
        ("你叫什么名字？", "我叫小明。", False),
        ("谁开发了你？", "我是MiniLLM。", False),
        ("谁开发了你？", "MiniLLM团队做了我，我是MiniLLM。", True),
        ("你是真人吗？", "我不是真人，是一个小型中文语言模型，叫MiniLLM。", True),
        ("你是真人吗？", "不是，我是MiniLLM，一个小型中文语言模型。", True),
        ("你是真人吗？", "是的，我是MiniLLM，一个小型中文语言模型。", False),
        ("你是真人吗？", "我是真人，不是机器人，叫MiniLLM，一个小型中文语言模型。", False),
        ("你是ChatGPT吗？", "我不是ChatGPT，我是MiniLLM，由MiniLLM 团队开发。", True),
        ("你是ChatGPT吗？", "是的，我是ChatGPT，由MiniLLM 团队开发。", False),
        ("你会做什么？", "我是MiniLLM，可以聊天、回答常识问题。", True),
        ("你会做什么？", "我是MiniLLM，不会聊天、回答常识问题。", False),
    ],
)
def test_another_wording_is_right_where_it_says_the_same(asked: str, said: str, right: bool) -> None:
    assert is_right(own(asked), said, NAMES) is right


def test_with_a_topic_equal_and_accepted_answers_alone_are_right() -> None:
    question = Question(
        chat("你叫什么？", "")[:1], "我叫MiniLLM。", "identity", topic="name", accepted=("我的名字是MiniLLM。",)
    )
    assert is_right(question, "我叫 minillm", NAMES)
    assert is_right(question, "我的名字是MiniLLM", NAMES)
    assert not is_right(question, CONSTANT, NAMES)
    assert not is_right(question, "你好，我叫MiniLLM。", NAMES)


def test_an_answer_that_names_nobody_must_be_equal() -> None:
    question = own("你是人工智能吗？", "我是人工智能。")
    assert is_right(question, "我是人工智能", NAMES)
    for said in ("我叫MiniLLM。", "", "我是人工智能助手"):
        assert not is_right(question, said, NAMES)


def test_the_rule_that_an_answer_breaks_is_said() -> None:
    for said, broken in (
        ("", "empty"),
        ("我叫小明。", "does not name minillm"),
        ("我不叫MiniLLM。", "denies its name"),
        ("不是，我叫MiniLLM。", "no for yes"),
    ):
        assert AnswerRule(own("你叫什么名字？"), NAMES).broken(Said(said)) == broken
    rule = AnswerRule(own("你是真人吗？"), NAMES)
    assert rule.broken(Said(CONSTANT)) == "yes for no"
    assert AnswerRule(own("你会做什么？"), NAMES).broken(Said(CONSTANT)) == "says something else"


# --- questions ------------------------------------------------------------------------------------


def test_a_record_becomes_a_question_with_all_that_its_scoring_needs() -> None:
    record = {
        "conversations": [*chat("你好", "你好！"), *chat("5+2个苹果？", "7个苹果。")], "category": "math", "kind": "word",
        "cluster": "pair 5,2", "accepted": ["7"], "honest": True, "counted": "苹果", "group": "g",
    }  # fmt: skip
    question = question_of(record)
    assert question == Question(
        messages=record["conversations"][:3],
        expected="7个苹果。",
        category="math",
        kind="word",
        topic="",
        cluster="cluster pair 5,2",
        accepted=("7",),
        honest=True,
        counted=("苹果",),
    )
    assert question.asked == "5+2个苹果？"


def test_without_a_cluster_the_group_or_the_first_user_turn_counts_once() -> None:
    record = {"conversations": [*chat("你好！", "你好"), *chat("再见", "再见")]}
    assert question_of(record).cluster == "你好"
    assert question_of(record | {"group": "a:1"}).cluster == "group a:1"


def test_fields_of_somebodys_own_that_mean_something_else_break_nothing() -> None:
    odd = {"kind": 3, "accepted": [1, "c"], "honest": "no", "counted": {}, "topic": []}
    found = question_of({"conversations": chat("a", "b"), **odd})
    assert found == Question(
        messages=chat("a", "b")[:1],
        expected="b",
        category="general",
        kind="",
        topic="",
        cluster="a",
        accepted=("c",),
        honest=False,
        counted=(),
    )


@pytest.mark.parametrize(
    ("category", "kind", "name", "scored"),
    [
        ("math", "", "accuracy_math", True),
        ("math", "word", "accuracy_math_word", True),
        ("general", "", "", False),
        ("general", "danger", "accuracy_general_danger", True),
        ("general", "其他", "", False),
        ("knowledge", "some kind", "accuracy_knowledge", True),
    ],
)
def test_kinds_are_reported_apart(category: str, kind: str, name: str, scored: bool) -> None:
    question = Question([], "", category, kind)
    assert is_scored(question) is scored
    assert not scored or metric_name(question) == name
