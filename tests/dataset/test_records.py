"""The record shapes: what is accepted, what it becomes, what is refused and why."""

import gzip
import json
import lzma
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from configs.schema import UserError
from dataset import records
from dataset.records import (
    BadItem,
    BadRecord,
    ChatRecord,
    LeftOut,
    PreferenceRecord,
    TextRecord,
    decode_item,
    heldout_key,
    normalised,
    normalised_question,
    parse_record,
    read_items,
    read_records,
)

USER = {"role": "user", "content": "你好"}
ASSISTANT = {"role": "assistant", "content": "你好！"}
CALL = {"name": "add", "arguments": {"a": 1}}


def turns(record: Any) -> list[tuple[str, str]]:
    assert isinstance(record, ChatRecord)
    assert record.fields["conversations"] == record.messages
    return [(message["role"], message["content"]) for message in record.messages]


def reason(fields: dict[str, Any]) -> str:
    with pytest.raises(BadRecord) as error:
        parse_record(fields)
    return str(error.value)


def test_raw_text_keeps_its_own_fields() -> None:
    record = parse_record({"text": "一段话。", "id": 7})
    assert isinstance(record, TextRecord)
    assert (record.text, record.fields) == ("一段话。", {"text": "一段话。", "id": 7})


def test_minimind_conversations_keep_system_tool_and_reasoning_fields() -> None:
    conversation = [
        {"role": "system", "content": "", "tools": json.dumps([CALL]), "reasoning_content": ""},
        {"role": "user", "content": "算", "tools": None},
        {"role": "assistant", "content": None, "reasoning_content": "想", "tool_calls": json.dumps([CALL])},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "得2"},
    ]
    record = parse_record({"conversations": conversation, "lang": "zh"})
    assert isinstance(record, ChatRecord)
    assert record.fields["lang"] == "zh"
    assert record.messages == [
        {"role": "system", "content": "", "tools": [CALL]},
        {"role": "user", "content": "算"},
        {"role": "assistant", "content": "", "reasoning_content": "想", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "得2"},
    ]
    assert record.plain_text() == "算\n得2"


def test_sharegpt_becomes_role_and_content() -> None:
    record = parse_record(
        {
            "system": "简短",
            "conversations": [
                {"from": "human", "value": "算"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "得2"},
            ],
        }
    )
    assert turns(record) == [("system", "简短"), ("user", "算"), ("assistant", ""), ("tool", "2"), ("assistant", "得2")]
    assert isinstance(record, ChatRecord)
    assert record.messages[2]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"instruction": "翻译", "input": "cat", "output": "猫"}, [("user", "翻译\ncat"), ("assistant", "猫")]),
        (
            {"instruction": "翻译", "input": "", "output": "猫", "text": "问：翻译 答：猫"},
            [("user", "翻译"), ("assistant", "猫")],
        ),
        (
            {"instruction": "再见", "output": "再会", "history": [["你好", "您好"]], "system": "礼貌"},
            [("system", "礼貌"), ("user", "你好"), ("assistant", "您好"), ("user", "再见"), ("assistant", "再会")],
        ),
        ({"prompt": "一加一", "response": "二"}, [("user", "一加一"), ("assistant", "二")]),
        ({"input": "还剩几页？", "golden": "9", "grade": 1}, [("user", "还剩几页？"), ("assistant", "9")]),
    ],
)
def test_instructions_become_conversations(fields: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    record = parse_record(fields)
    assert turns(record) == expected
    assert record.fields.items() >= fields.items()


@pytest.mark.parametrize(
    "fields",
    [
        {"Question": "哪个最大？", "A": "一", "B": "二", "C": "三", "D": "四", "Answer": "B"},
        {"question": "哪个最大？", "A": "一", "B": "二", "C": "三", "D": "四", "answer": "b"},
        {"question": "哪个最大？", "choice": ["一", "二", "三", "四"], "answer": "二"},
        {"question": "哪个最大？", "options": ["(A)一", "(B)二", "(C)三", "(D)四"], "label": "B", "answer": None},
        {"question": "哪个最大？", "choices": {"A": "一", "B": "二", "C": "三", "D": "四"}, "answer": ["B"]},
        {"question": "哪个最大？", "options": ["一", "二", "三", "四"], "label": 1},
    ],
)
def test_multiple_choice_becomes_question_and_answer(fields: dict[str, Any]) -> None:
    expected = [("user", "哪个最大？\nA. 一\nB. 二\nC. 三\nD. 四"), ("assistant", "答案：B。二")]
    assert turns(parse_record(fields)) == expected


def test_multiple_choice_puts_its_passage_first() -> None:
    record = parse_record({"context": "短文。", "question": "问？", "choice": ["甲", "乙"], "answer": "乙"})
    assert turns(record)[0] == ("user", "短文。\n问？\nA. 甲\nB. 乙")


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "哼"}]},
        {"prompt": "你好", "chosen": "你好！", "rejected": "哼"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "哼"}]},
        {
            "conversations": [{"from": "human", "value": "你好"}],
            "chosen": {"from": "gpt", "value": "你好！"},
            "rejected": {"from": "gpt", "value": "哼"},
        },
    ],
)
def test_preference_pairs_become_two_conversations(fields: dict[str, Any]) -> None:
    record = parse_record(fields)
    assert isinstance(record, PreferenceRecord)
    assert record.chosen == [USER, ASSISTANT]
    assert record.rejected == [USER, {"role": "assistant", "content": "哼"}]


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        ({"context": "材料。", "question": "问？", "answer": "答"}, "材料。\n问？"),
        ({"instruction": "据材料答", "context": "材料。", "response": "答"}, "据材料答\n材料。"),
        ({"prompt": "你是导游：", "query": "门在哪", "response": "答"}, "你是导游：\n门在哪"),
        ({"instruction": "用一句话答", "question": "门在哪", "answer": "答"}, "用一句话答\n门在哪"),
        ({"instruction": "一", "input": "三", "context": ["二", "二半"], "output": "答"}, "一\n二\n二半\n三"),
        ({"instruction": "同", "prompt": "同", "output": "答"}, "同"),
        ({"text": "材料。", "question": "问？", "answer": "答"}, "材料。\n问？"),
        ({"kind": "翻译", "input": "猫", "target": "答"}, "猫"),
        ({"问题": "问？", "回答": "答"}, "问？"),
    ],
)
def test_every_part_of_a_question_is_in_it(fields: dict[str, Any], question: str) -> None:
    record = parse_record(fields)
    assert turns(record) == [("user", question), ("assistant", "答")]
    assert parse_record(record.fields) == record


LONG = [("system", "礼貌"), ("user", "早"), ("assistant", "早！"), ("user", "你好"), ("assistant", "你好！")]


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "礼貌", "history": [["早", "早！"]], "instruction": "你好", "output": "你好！"},
        {"system_prompt": "礼貌", "history": '[["早", "早！"]]', "query": "你好", "response": "你好！"},
        {
            "system": "礼貌",
            "history": [{"role": "user", "content": "早"}, {"role": "assistant", "content": "早！"}],
            "prompt": "你好",
            "completion": "你好！",
        },
        {"system": "礼貌", "history": [["早", "早！"]], "messages": [USER, ASSISTANT]},
        {"conversation": [{"system": "礼貌", "input": "早", "output": "早！"}, {"input": "你好", "output": "你好！"}]},
        {
            "system": "礼貌",
            "conversation": [{"human": "早", "assistant": "早！"}, {"human": "你好", "assistant": "你好！"}],
        },
        {"system": "礼貌", "instruction": "Human:早\nAssistant:早！\nHuman:你好\nAssistant:", "output": "你好！"},
        {
            "meta_instruction": "礼貌",
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: 早<eoh>\n",
                    "MOSS": "<|MOSS|>: 早！<eom>\n",
                    "Commands": "<|Commands|>: None<eoc>",
                },
                "turn_2": {"Human": "<|Human|>: 你好<eoh>", "MOSS": "<|MOSS|>: 你好！<eom>"},
            },
        },
        {
            "messages": [
                {"role": "System", "content": "礼貌"},
                {"role": "用户", "content": [{"type": "text", "text": "早"}]},
                {"role": "chatgpt", "content": ["早", "！"]},
                {"role": " User ", "content": "你好"},
                {"role": "助手", "content": "你好！"},
            ]
        },
    ],
)
def test_history_and_system_become_turns_whatever_their_shape(fields: dict[str, Any]) -> None:
    record = parse_record(fields)
    assert turns(record) == LONG
    assert parse_record(record.fields) == record


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "礼貌", "history": [["早", "早！"]], "instruction": "你好", "chosen": "你好！", "rejected": "哼"},
        {
            "system": "礼貌",
            "history": [["早", "早！"]],
            "chosen": [USER, ASSISTANT],
            "rejected": [USER, {"role": "assistant", "content": "哼"}],
        },
        {
            "system": "礼貌",
            "history": [["早", "早！"]],
            "query": "你好",
            "response": "你好！",
            "rejected_response": "哼",
        },
        {
            "system": "礼貌",
            "history": [["早", "早！"]],
            "messages": [USER, ASSISTANT],
            "rejected_messages": [USER, {"role": "assistant", "content": "哼"}],
        },
        {
            "input": {"messages": [{"role": role, "content": said} for role, said in LONG[:-1]]},
            "preferred_output": [ASSISTANT],
            "non_preferred_output": [{"role": "assistant", "content": "哼"}],
        },
    ],
)
def test_pairs_keep_system_and_history(fields: dict[str, Any]) -> None:
    record = parse_record(fields)
    assert isinstance(record, PreferenceRecord)
    assert [(m["role"], m["content"]) for m in record.chosen] == LONG
    assert record.rejected == [*record.chosen[:-1], {"role": "assistant", "content": "哼"}]
    assert parse_record(record.fields) == record


def test_a_pair_asks_its_prompt_and_its_input() -> None:
    record = parse_record({"prompt": "翻译", "input": "cat", "chosen": "猫", "rejected": "狗"})
    assert isinstance(record, PreferenceRecord)
    assert record.chosen[0] == {"role": "user", "content": "翻译\ncat"}


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"loss": False},
        {"train": False},
        {"training": "false"},
        {"weight": 1, "loss": 0},
    ],
)
def test_a_turn_marked_so_is_context_alone(mark: dict[str, Any]) -> None:
    wrong = {"role": "assistant", "content": "错的", **mark}
    record = parse_record({"messages": [USER, wrong, USER, {**ASSISTANT, "weight": 1, "loss": True}]})
    assert isinstance(record, ChatRecord)
    assert record.messages == [USER, {"role": "assistant", "content": "错的", "loss": False}, USER, ASSISTANT]
    assert "错的" not in record.plain_text()
    assert parse_record(record.fields) == record
    last = parse_record({"messages": [USER, ASSISTANT, USER, wrong]})
    assert isinstance(last, ChatRecord)
    assert last.messages == [USER, ASSISTANT]


def test_trl_prompt_and_completion_learn_the_completion_alone() -> None:
    record = parse_record({"prompt": [USER, ASSISTANT, {"role": "user", "content": "再见"}], "completion": [ASSISTANT]})
    assert isinstance(record, ChatRecord)
    assert [m.get("loss", True) for m in record.messages if m["role"] == "assistant"] == [False, True]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": [USER, ASSISTANT], "label": False}, "label is false"),
        ({"prompt": "问", "completion": "答", "label": "False"}, "label is false"),
        ({"instruction": "问", "output": "答", "kto_tag": 0}, "kto_tag is false"),
        ({"question": "问？", "A": "一", "B": "二", "answer": "A", "label": False}, "label is false"),
        ({"messages": [USER, ASSISTANT], "train": False}, "train is false"),
        ({"messages": [USER, ASSISTANT], "weight": 0}, "weight is false"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "all answers are marked as not to be learnt"),
    ],
)
def test_what_says_that_it_is_not_to_be_learnt_is_left_out(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(LeftOut, match=expected):
        parse_record(fields)


def test_labels_that_are_no_judgement_decide_nothing() -> None:
    for label in (True, 0, 1, "消极", None):
        assert turns(parse_record({"messages": [USER, ASSISTANT], "label": label})) == [
            ("user", "你好"),
            ("assistant", "你好！"),
        ]


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


def test_marks_around_the_answers_of_a_pair_go_and_are_counted() -> None:
    record = parse_record({"prompt": "问", "chosen": "好<|im_end|>", "rejected": "坏<|im_end|>"})
    assert isinstance(record, PreferenceRecord)
    assert (record.chosen[-1]["content"], record.rejected[-1]["content"], record.marks) == ("好", "坏", 2)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"items": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, ["问", "答"]),
        ({"dialogue": [{"role": "客户", "content": "问"}, {"role": "客服", "content": "答"}]}, ["问", "答"]),
        ({"turns": [{"role": "问", "content": "问"}, {"role": "答", "content": "答"}]}, ["问", "答"]),
        ({"context": "文", "question": "问", "answers": {"text": ["答", "甲"], "answer_start": [0]}}, ["文\n问", "答"]),
        ({"question": "问", "answers": [{"text": "答"}]}, ["问", "答"]),
        ({"question": "问", "answers": ["答"]}, ["问", "答"]),
        ({"plain_text": "[Human]: 问<eoh> [MOSS]: 答<eoa>", "num_turns": 1}, ["问", "答"]),
        ({"textbox_q_instruction": "选", "textbox_question": "问", "textbox_answer": "答"}, ["选\n问", "答"]),
    ],
)
def test_known_shapes_under_other_names_are_read(fields: dict[str, Any], expected: list[str]) -> None:
    record = parse_record(fields)
    assert isinstance(record, ChatRecord)
    assert [message["content"] for message in record.messages] == expected


@pytest.mark.parametrize("name", ["content", "raw_content", "正文", "内容"])
def test_a_document_under_another_name_is_a_text(name: str) -> None:
    record = parse_record({"title": "题", name: "一篇文章。"})
    assert isinstance(record, TextRecord)
    assert record.text == record.fields["text"] == "一篇文章。"


def test_what_a_user_says_last_without_an_answer_is_left_out() -> None:
    assert turns(parse_record({"conversations": [USER, ASSISTANT, USER]})) == [
        ("user", "你好"),
        ("assistant", "你好！"),
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"conversations": [USER, ASSISTANT], "context": "材料"},
            "context stands beside the conversation, which does not hold it",
        ),
        (
            {"messages": [USER, ASSISTANT], "query": "别的"},
            "query stands beside the conversation, which does not hold it",
        ),
        (
            {"system": "礼貌", "messages": [{"role": "system", "content": "粗鲁"}, USER, ASSISTANT]},
            "system beside the conversation differs from the one in it",
        ),
        ({"question": "问？", "context": {"a": 1}, "answer": "答"}, "context is not a string"),
        ({"instruction": "问", "history": "以前", "output": "答"}, "history is not a list of [question, answer]"),
        ({"messages": [USER, ASSISTANT], "images": ["a.png"]}, "images: the record needs more than its text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}, ASSISTANT]},
            "a turn's content has a part that is not text",
        ),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "a turn's weight is neither 0 nor 1, false nor true"),
        ({"messages": [USER, {**ASSISTANT, "train_detail": [{}]}]}, "a turn's train_detail marks single characters"),
        (
            {"prompt": "别的", "chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "哼"}]},
            "prompt stands beside the conversation, which does not hold it",
        ),
        ({}, "unknown shape"),
        ({"text": 3}, "text is not a string"),
        ({"text": " \n"}, "empty text"),
        ({"conversations": "你好"}, "conversation is not a list"),
        ({"conversations": []}, "empty conversation"),
        ({"conversations": ["你好"]}, "turn is not an object"),
        ({"conversations": [{"role": "bard", "content": "x"}]}, "unknown role: bard"),
        ({"conversations": [{"role": ["user"], "content": "x"}]}, "unknown role: ['user']"),
        ({"id": 1, "字": "x"}, "unknown shape: fields id, 字"),
        (
            {"data": [{"question": "q"}]},
            "unknown shape: its records are in the list data: write them one a line (jq -c '.data[]')",
        ),
        ({"title": "题", "paragraphs": []}, "SQuAD's nested paragraphs: write one question, context and answer a line"),
        ({"data": [{"paragraphs": []}]}, "SQuAD's nested paragraphs: write one question, context and answer a line"),
        ({"question": "问", "answers": {"text": []}}, "answers holds no text"),
        (
            {"conversations": [{"role": "user", "content": "你好<|im_end|>\n<|im_start|>assistant\n您好"}, ASSISTANT]},
            "a turn holds several turns (marks of another chat format inside it)",
        ),
        (
            {"instruction": "<s>[INST] 你好 [/INST] 您好</s>", "output": "答"},
            "a turn holds several turns (marks of another chat format inside it)",
        ),
        ({"conversations": [{"role": "user", "content": 5}, ASSISTANT]}, "turn's content is not a string"),
        ({"conversations": [USER]}, "no assistant answer"),
        ({"conversations": [USER, USER, ASSISTANT]}, "roles do not alternate"),
        ({"conversations": [ASSISTANT]}, "roles do not alternate"),
        ({"conversations": [USER, ASSISTANT, ASSISTANT]}, "roles do not alternate"),
        ({"conversations": [USER, {"role": "system", "content": "x"}, ASSISTANT]}, "system message is not the first"),
        ({"conversations": [{"role": "user", "content": " "}, ASSISTANT]}, "empty user turn"),
        ({"conversations": [USER, {"role": "assistant", "content": ""}]}, "empty assistant answer"),
        ({"conversations": [USER, {**ASSISTANT, "tool_calls": "{"}]}, "tools or tool_calls are not JSON"),
        ({"conversations": [USER, {**ASSISTANT, "tool_calls": [{}]}]}, "a tool or tool call without a name"),
        ({"instruction": "", "output": "猫"}, "answer without a question"),
        ({"instruction": "翻译", "output": 5}, "question or answer is not a string"),
        ({"chosen": "好", "rejected": "坏"}, "preference strings without a prompt"),
        ({"prompt": "问", "chosen": "好", "rejected": "好 "}, "chosen and rejected are equal"),
        ({"prompt": "问", "chosen": "好"}, "chosen or rejected is neither a list nor a string"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER]}, "no assistant answer"),
        (
            {
                "chosen": [USER, ASSISTANT],
                "rejected": [{"role": "user", "content": "别的"}, {"role": "assistant", "content": "x"}],
            },
            "chosen and rejected answer different questions",
        ),
        ({"question": "问？", "A": "一", "B": "二", "answer": "E"}, "multiple choice without a valid answer"),
        ({"question": "问？", "options": ["一"], "answer": "A"}, "multiple choice without options"),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(fields: dict[str, Any], expected: str) -> None:
    assert reason(fields) == expected


def test_case_width_spacing_and_punctuation_do_not_make_another_key() -> None:
    assert (
        len({normalised(text) for text in ("What is　１+1？", "what is 1 + 1 ?", "WHAT IS「1+1」…", "what_is 1，1")})
        == 1
    )


def test_texts_of_marks_alone_are_told_apart() -> None:
    assert normalised("？？？") != normalised("……")


def test_a_fast_key_equals_the_plain_definition() -> None:
    text = "他说：“Ｈｅｌｌｏ，①２３…℃！”（完）—— ﬁn"
    plain = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())
    assert normalised(text) == plain == "他说hello123c完fin"


def test_a_question_keeps_the_marks_between_digits() -> None:
    assert normalised_question("1+23 = ？") == normalised_question("１ + 23=?") != normalised_question("12+3=？")


def test_the_key_is_the_group_else_the_first_question_else_the_text() -> None:
    chat = {"conversations": [USER, ASSISTANT, {"role": "user", "content": "再见"}, ASSISTANT]}
    assert heldout_key(parse_record(chat)) == heldout_key(parse_record({"text": " 你好！"})) == "你好"
    keys = [
        heldout_key(parse_record({**chat, "group": group})) for group in ("Sum: 1,23", "sum:1 23", "sum:12,3", 4)
    ]  # 4 is no text
    assert keys == ["group sum 1 23", "group sum 1 23", "group sum 12 3", "你好"]


def items(path: Path) -> list[tuple[int, Any]]:
    return list(read_items(path))


def test_bom_windows_line_ends_and_blank_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "一"}\r\n\r\n  \n{"text": "二"}'.encode())
    assert [(record["text"]) for record in read_records(path)] == ["一", "二"]
    assert [number for number, _ in items(path)] == [1, 4]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files_are_read_and_damaged_ones_named(tmp_path: Path, suffix: str, pack: Any) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    whole = pack("".join(f'{{"text": "{n * 7919}"}}\n' for n in range(2000)).encode())
    path.write_bytes(whole)
    assert len(items(path)) == 2000
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"a.jsonl{suffix}: damaged or cut short"):
        items(path)


def test_a_line_above_the_limit_is_skipped_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(records, "READ_BLOCK_BYTES", 16)
    path = tmp_path / "a.jsonl"
    longest = b'{"text": "' + b"x" * 88 + b'"}'
    path.write_bytes(longest + b"\r\n" + longest[:-2] + b'y"}\n' + b"z" * 5000 + b'\n{"text": "ok"}\n' + b"z" * 500)
    assert len(longest) == 100
    kinds = [(number, "bad" if isinstance(item, BadItem) else len(item)) for number, item in items(path)]
    assert kinds == [(1, 102), (2, "bad"), (3, "bad"), (4, 15), (5, "bad")]


def test_a_csv_of_multiple_choice_is_read_with_line_ends_inside_cells(tmp_path: Path) -> None:
    path = tmp_path / "anatomy.csv"
    text = ',Question,A,B,C,D,Answer\r\n0,"第一行\n第二行",甲,乙,丙,丁,B\r\n1,少了,甲\r\n'.encode()
    path.write_bytes(b"\xef\xbb\xbf" + text + b"2,\xff,1,2,3,4,A\n3,3?,1,2,3,4,A\n")
    found = items(path)
    assert [number for number, _ in found] == [3, 4, 5, 6]
    assert turns(parse_record(decode_item(found[0][1], {}))) == [
        ("user", "第一行\n第二行\nA. 甲\nB. 乙\nC. 丙\nD. 丁"),
        ("assistant", "答案：B。乙"),
    ]
    assert [item.reason for _, item in found[1:3]] == [
        "row with another number of cells than the header",
        "invalid UTF-8",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "malformed JSON"),
        (b"{'text': 'a'}", "a Python dict"),
        (b'{"text": "a",}', r"malformed JSON \(a comma before the end\)"),
        ("一段文字".encode(), "plain text, not JSON"),
        (b"a,b,c", "a line of CSV or of plain text"),
        (b"a\tb", "a line of TSV"),
        (b'"a"', "not a JSON object but a string"),
        (b"null", "not a JSON object but null"),
        ('{"text": "请介绍公园的门"}'.encode("gbk"), "GB18030"),
        (b"[" * 100_000, "malformed JSON"),
        (b'["a"]', "not a JSON object"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'{"text": "\\ud83d"}', "broken Unicode escape"),
    ],
)
def test_a_bad_line_is_refused_with_its_reason(line: bytes, expected: str) -> None:
    with pytest.raises(BadRecord, match=expected):
        decode_item(line, {})


def test_placeholders_are_filled_so_that_the_line_stays_json() -> None:
    fill = {"{{name}}": '小"灵', "{{author}}": "a\\b"}
    assert decode_item('{"text": "我叫{{name}}，{{author}}造。"}'.encode(), fill) == {"text": '我叫小"灵，a\\b造。'}
    assert decode_item({"Question": "{{name}}？"}, fill) == {"Question": '小"灵？'}


def test_reading_records_names_file_and_line_of_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "一"}\n{"text": 2}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:2: text is not a string"):
        list(read_records(path))
    with pytest.raises(UserError, match="no such file"):
        list(read_records(tmp_path / "b.jsonl"))


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "一", "text": "二"}',
        '{"conversations": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}',
        '{"id": %s, "text": "一", "text": "二"}' % ("9" * 5000),
        '{"text": "一", "meta": {"a": 1, "a": NaN}}',
    ],
)
def test_a_key_that_stands_twice_loses_no_value_in_silence(line: str) -> None:
    with pytest.raises(BadRecord, match="a key twice in one JSON object"):
        decode_item(line.encode(), {})
