"""The keys: which texts and records count as the same."""

import re
import unicodedata

from dataset.records.keys import heldout_key, normalised, normalised_question
from dataset.records.shapes import parse_record
from tests.dataset.records.conversations import ASSISTANT, USER


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
