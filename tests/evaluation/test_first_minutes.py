"""Prompts as people type them: their file, their rules, their turns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import UserError
from evaluation.answers import Said
from evaluation.first_minutes import Prompt, ask_in_turns, judge, load_prompts, repeats_itself
from evaluation.questions import Messages
from inference.engine import Answer
from tests.tiny_run import write_jsonl

NAMES = ("小明", '明 "团队"')
GOOD: dict[str, Any] = {"list": "unseen", "half": "report", "kind": "facts", "prompt": "法国首都？", "accept": ["巴黎"]}


def prompt(**fields: Any) -> Prompt:
    """A prompt of the list `unseen`."""
    given: dict[str, Any] = {"turns": ("法国首都？",), "kind": "facts", "is_core": False, "half": "report"}
    return Prompt(**(given | fields))


def load(folder: Path, *lines: Any) -> list[Prompt]:
    """Write these lines to a file, and read it."""
    return load_prompts(write_jsonl(folder / "mine.jsonl", list(lines)), NAMES)


def test_a_line_becomes_a_prompt_with_the_names_filled_in(tmp_path: Path) -> None:
    core = {
        "list": "core", "kind": "identity", "turns": ["你好", "你是谁？"], "accept": ["{{name}}", "{{author}}"],
        "all": ["我"], "forbid": ["GPT"], "number": "1", "honest": True, "exact": True, "max_chars": 30, "cluster": "who",
    }  # fmt: skip
    one, other = load(tmp_path, core, GOOD)
    assert one == Prompt(
        ("你好", "你是谁？"), "identity", True, "", ("小明", '明 "团队"'), ("我",), ("GPT",), "1", True, True, 30, "who"
    )
    assert other == prompt(accept=("巴黎",), cluster="法国首都")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"list": "seen"}, "list is 'seen': must be one of core, unseen"),
        ({"half": "both"}, "half is 'both': must be one of choose, report"),
        ({"half": None}, "half is NoneType instead of str"),
        ({"list": "core"}, "half is for unseen prompts alone"),
        ({"kind": "riddles"}, "kind is 'riddles': must be one of identity, chat"),
        ({"answer": "巴黎"}, "unknown field 'answer'"),
        ({"accept": "巴黎"}, "accept is str instead of list"),
        ({"accept": []}, "accept must be a list of texts, none of them empty"),
        ({"accept": ["，"]}, "accept must be a list of texts, none of them empty"),
        ({"turns": ["a"]}, "must have either prompt or turns"),
        ({"prompt": " "}, "prompt is empty"),
        ({"max_chars": 0}, "max_chars must be 1 or more"),
        ({"max_chars": True}, "max_chars is bool instead of int"),
        ({"number": "多"}, "number is '多': not a number"),
        ({"honest": "yes"}, "honest is str instead of bool"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=rf"mine\.jsonl:2: {match}"):
        load(tmp_path, GOOD | {"prompt": "别的"}, GOOD | change)


def test_a_prompt_without_a_rule_or_asked_twice_is_refused(tmp_path: Path) -> None:
    bare = {name: value for name, value in GOOD.items() if name != "accept"}
    for line, match in (
        (bare, "no rule: needs one of accept"),
        (bare | {"number": "1", "exact": True}, "exact needs accept"),
        (bare | {"honest": False}, "no rule"),
    ):
        with pytest.raises(UserError, match=match):
            load(tmp_path, line)
    with pytest.raises(UserError, match=r"mine\.jsonl:2: asks the same as line 1"):
        load(tmp_path, GOOD, GOOD | {"prompt": "法国首都!"})


@pytest.mark.parametrize(
    ("text", "match"), [("", "no prompts"), ("{", ":1: not a JSON object"), ("[]", ":1: not a JSON")]
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=match):
        load_prompts(path, NAMES)
    with pytest.raises(UserError, match="no such file"):
        load_prompts(tmp_path / "none.jsonl", NAMES)


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "said", "broken"),
    [
        ({"accept": ("巴黎", "paris")}, "是 ＰＡＲＩＳ 呀！", ""),
        ({"accept": ("巴黎",)}, "伦敦", "contains none of 巴黎"),
        ({"accept": ("巴黎",)}, "。", "empty"),
        ({"accept": ("巴黎",), "exact": True}, "巴黎。", ""),
        ({"accept": ("巴黎",), "exact": True}, "是巴黎。", "is not 巴黎"),
        ({"all_of": ("120", "12356")}, "请打120，或12356。", ""),
        ({"all_of": ("120", "12356")}, "请打1201，或12356。", "does not contain 120"),
        ({"forbid": ("12356",)}, "早点休息吧。", ""),
        ({"forbid": ("12356",)}, "请打12356。", "contains 12356"),
        ({"number": "82"}, "80+2=八十二", ""),
        ({"number": "82"}, "82-2=80", "does not end with 82"),
        ({"number": "82"}, "我不知道。", "does not end with 82"),
        ({"number": "82", "honest": True}, "我算不准。", ""),
        ({"number": "82", "honest": True}, "我算不准，大概是80。", "does not end with 82"),
        ({"honest": True}, "这个我不知道。", ""),
        ({"honest": True}, "是巴黎。", "no honest line"),
        ({"accept": ("巴黎",), "max_chars": 3}, "是巴黎。呀", "longer than 3 characters"),
        ({"accept": ("巴黎",), "forbid": ("德国",)}, "巴黎，在德国", "contains 德国"),
        ({"honest": True, "forbid": ("巴黎",)}, "我不知道巴黎。", "contains 巴黎"),
    ],
)
def test_an_answer_is_held_against_each_rule(rule: dict[str, Any], said: str, broken: str) -> None:
    assert prompt(**rule).broken(Said(said)) == broken


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("我很高兴，我很高兴，你好，我很高兴。", True),
        ("我很高兴，我很高兴。", False),
        ("好，好，好的。", False),
        ("今天今天今天今天天气", True),
        ("哈哈哈哈哈，真好笑。", False),
        ("哈" * 12, True),
        ("10000000000", False),
        ("0" * 30, True),
        ("鹅，鹅，鹅，曲项向天歌。", False),
        ("你好你好你好", False),
        ("", False),
        ("的了的了的了的了的了", True),
        ("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", False),
    ],
)
def test_a_loop_is_seen_and_a_poem_is_none(text: str, repeats: bool) -> None:
    assert repeats_itself(text) is repeats


@settings(deadline=None)
@given(st.text())
def test_no_answer_breaks_the_judging(text: str) -> None:
    assert isinstance(judge(prompt(accept=("巴黎",), number="3", honest=True), [Answer(text, True, 1)]), str)


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ([Answer("巴黎。", True, 2)], ""),
        ([Answer("巴黎。", False, 2)], "does not end"),
        ([Answer("巴黎\ufffd。", True, 2)], "breaks a character"),
        ([Answer("巴黎呀呀，巴黎呀呀，巴黎呀呀。", True, 2)], "repeats itself"),
        ([Answer("你好", False, 2), Answer("巴黎。", True, 2)], "turn 1 does not end"),
        ([Answer("伦敦", True, 2), Answer("巴黎。", True, 2)], ""),
        ([Answer("巴黎", True, 2), Answer("伦敦。", True, 2)], "contains none of 巴黎"),
    ],
)
def test_a_broken_answer_is_wrong_in_any_turn_and_the_last_one_has_the_rule(answers: list[Answer], fault: str) -> None:
    assert judge(prompt(accept=("巴黎",)), answers) == fault


def test_the_models_own_answers_stand_between_the_turns() -> None:
    seen: list[list[str]] = []

    def echo(conversations: Sequence[Messages]) -> list[Answer]:
        seen.append([" ".join(str(m["content"]) for m in messages) for messages in conversations])
        return [Answer(f"答{len(messages)}", True, 1) for messages in conversations]

    prompts = [prompt(turns=("一",)), prompt(turns=("二", "三")), prompt(turns=("四", "五", "六"))]
    answers = ask_in_turns(prompts, echo)
    assert seen == [["一", "二", "四"], ["二 答1 三", "四 答1 五"], ["四 答1 五 答3 六"]]
    assert [[said.text for said in one] for one in answers] == [["答1"], ["答1", "答3"], ["答1", "答3", "答5"]]


# --- the documented format ------------------------------------------------------------------------


def test_the_format_in_the_module_is_the_one_that_is_read(tmp_path: Path) -> None:
    from evaluation import first_minutes

    lines = [line.strip() for line in (first_minutes.__doc__ or "").splitlines() if line.strip().startswith('{"')]
    assert len(lines) == 2
    assert len(load(tmp_path, *map(json.loads, lines))) == 2
