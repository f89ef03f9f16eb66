"""Marks of other chat formats inside texts and turns."""

import pytest

from dataset.records.record import ChatRecord, TextRecord
from dataset.records.shapes import parse_record


@pytest.mark.parametrize(
    ("text", "expected", "marks"),
    [
        ("<|im_start|>问？答。<|im_end|> <|im_start|>又问？又答。<|im_end|>", "问？答。\n又问？又答。", 4),
        ("<|im_start|>user\n问<|im_end|>\n<|im_start|>assistant\n答<|im_end|>", "问\n答", 4),
        ("<s>问？答。</s> <s>又问？又答。</s>", "问？答。\n又问？又答。", 4),
        ("一段话。</s>", "一段话。", 1),
        ("网页里的<s>旧价</s>新价", "网页里的<s>旧价</s>新价", 0),
        ("a < b\n\n  c", "a < b\n\n  c", 0),
    ],
)
def test_marks_of_other_formats_become_line_ends(text: str, expected: str, marks: int) -> None:
    record = parse_record({"text": text})
    assert isinstance(record, TextRecord)
    assert (record.text, record.fields["text"], record.marks) == (expected, expected, marks)


@pytest.mark.parametrize(
    ("asked", "answer", "expected", "marks"),
    [
        ("<|im_start|>user\n你好<|im_end|>", "您好<|im_end|>", ("你好", "您好"), 3),
        ("[INST] 你好 [/INST]", "您好</s>", ("你好", "您好"), 3),
        ("<start_of_turn>user\n你好<end_of_turn>", "您好<eos>", ("你好", "您好"), 3),
        ("<|user|>\n你好", "您好<|end|>", ("你好", "您好"), 2),
        ("<｜User｜>你好", "您好<｜end▁of▁sentence｜>", ("你好", "您好"), 2),
        ("<|im_start|>是什么意思？", "是一个标记。", ("<|im_start|>是什么意思？", "是一个标记。"), 0),
        ("划掉旧价", "<s>旧价</s>，新价", ("划掉旧价", "<s>旧价</s>，新价"), 0),
        ("划掉旧价", "新价 <s>旧价</s>", ("划掉旧价", "新价 <s>旧价</s>"), 0),
    ],
)
def test_marks_around_a_turn_go_and_those_that_are_talked_about_stay(
    asked: str, answer: str, expected: tuple[str, str], marks: int
) -> None:
    record = parse_record({"instruction": asked, "output": answer})
    assert isinstance(record, ChatRecord)
    assert ((record.messages[0]["content"], record.messages[1]["content"]), record.marks) == (expected, marks)
