"""dataset/names.py: what identity records call the model and its maker."""

import pytest

from dataset.names import Names, names_in


@pytest.mark.parametrize(
    ("answer", "name", "author"),
    [
        ("我是小智，由星河实验室训练的助手。", "小智", "星河实验室"),
        ("我叫小智。", "小智", None),
        ("你可以叫我小智", "小智", None),
        ("我是由星河实验室开发的小智。", "小智", "星河实验室"),
        ("我是一个AI助手，名叫小智，由 OpenBMB 开发。", "小智", "OpenBMB"),
        ("您好，我是“小智”，很高兴认识你", "小智", None),
        ("我不叫豆包，我叫小智", "小智", None),
        ("我的开发者是张三", None, "张三"),
        ("My name is Nova. I was made by Galaxy Lab.", "Nova", "Galaxy Lab"),
        ("我是一名人工智能助手", None, None),
        ("我是用来帮助你的", None, None),
        ("我被训练为回答问题", None, None),
        ("我是MiniLLM，由 MiniLLM团队 开发", "MiniLLM", "MiniLLM团队"),
    ],
)
def test_an_answer_says_a_name_and_a_maker(answer: str, name: str | None, author: str | None) -> None:
    assert names_in([answer], "MiniLLM", "MiniLLM团队") == Names(name, author)


def test_the_name_that_most_answers_say_is_taken_and_none_where_they_differ() -> None:
    assert names_in(["我是小智。"] * 3 + ["我是阿星。"] * 2, "M", "T").name == "小智"
    assert names_in(["我是小智。", "我是阿星。", "我是小灵。"], "M", "T").name is None
