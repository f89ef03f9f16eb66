"""Thought and answer inside one text, and texts that only look like it."""

import pytest

from dataset.records.record import BadRecord, ChatRecord
from dataset.records.shapes import parse_record


def read(said: str, **more: object) -> dict[str, object]:
    """The assistant's message of a record in minimind's shape, but for its role."""
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": said, **more}]
    record = parse_record({"conversations": turns})
    assert isinstance(record, ChatRecord)
    message = dict(record.messages[-1])
    assert message.pop("role") == "assistant"
    # What was read once is read again as the same.
    assert parse_record(record.fields) == record
    return message


@pytest.mark.parametrize(
    ("said", "thought", "answer"),
    [
        ("<think>\n想一想\n</think>\n<answer>\n答\n</answer>", "想一想", "答"),
        ("<think>想</think><answer>答</answer>", "想", "答"),
        ("\n<think> 想\n\n再想 </think>\n\n<answer> 答\n 二 </answer>\n", "想\n\n再想", "答\n 二"),
        (
            "<think>用户在问 <think> 标签</think><answer>写 <answer> 即可</answer>",
            "用户在问 <think> 标签",
            "写 <answer> 即可",
        ),
        ("<think>\n想\n</think>\n\n答", "想", "答"),
        ("<think>\n想\n再想\n</think>\n答", "想\n再想", "答"),
    ],
)
def test_thought_and_answer_become_fields_of_their_own(said: str, thought: str, answer: str) -> None:
    assert read(said) == {"content": answer, "reasoning_content": thought}


@pytest.mark.parametrize(
    "said", ["<think>\n\n</think>\n\n答", "<think></think><answer>答</answer>", "<think>\n</think>\n答"]
)
def test_an_empty_thought_is_an_answer_without_thinking(said: str) -> None:
    assert read(said) == {"content": "答", "enable_thinking": False}


@pytest.mark.parametrize(
    "said",
    [
        "<think>想",  # no end
        "想</think><answer>答</answer>",  # no beginning
        "好的。<think>想</think><answer>答</answer>",  # something before
        "<think>想</think><answer>答</answer>完",  # something behind
        "<think>想</think>接着<answer>答</answer>",  # something between
        "<think>想</think>答",  # R1's form without its line ends may be a sentence about marks
        "<think> 是标签，</think> 是它的结尾。",
        "<think>\n写 </think> 结束\n</think>\n答",  # could be cut in two ways
        "<think>a</think><answer>b</answer><think>c</think><answer>d</answer>",
        "<THINK>想</THINK><answer>答</answer>",
        "<answer>答</answer>",
        "`<think>`",
    ],
)
def test_a_text_that_only_looks_like_marks_stays_text(said: str) -> None:
    assert read(said) == {"content": said}


def test_the_marks_of_a_user_stay_text() -> None:
    said = "<think>想</think><answer>答</answer>"
    record = parse_record({"instruction": said, "output": "好"})
    assert isinstance(record, ChatRecord) and record.messages[0]["content"] == said


def test_a_thought_that_has_a_field_already_stays_there() -> None:
    said = "<think>一</think><answer>答</answer>"
    assert read(said, reasoning_content="二") == {"content": said, "reasoning_content": "二"}


def test_question_and_answer_in_columns_may_hold_a_thought_too() -> None:
    record = parse_record({"instruction": "问", "output": "<think>\n想\n</think>\n\n答"})
    assert isinstance(record, ChatRecord)
    assert record.messages[-1] == {"role": "assistant", "content": "答", "reasoning_content": "想"}


def test_a_thought_without_an_answer_teaches_nothing() -> None:
    with pytest.raises(BadRecord, match="empty assistant answer"):
        read("<think>想</think><answer></answer>")


def test_a_turn_says_that_its_prompt_had_thinking_switched_off() -> None:
    assert read("答", enable_thinking=False) == {"content": "答", "enable_thinking": False}
    with pytest.raises(BadRecord, match="enable_thinking is false beside reasoning_content"):
        read("答", enable_thinking=False, reasoning_content="想")
