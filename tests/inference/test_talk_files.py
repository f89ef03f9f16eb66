"""A saved conversation: a training record that comes back; nothing else is overwritten."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import UserError
from dataset.records.record import ChatRecord
from dataset.records.shapes import parse_record
from inference.talk_files import load_talk, save_talk

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "说短一点。"},
    {"role": "user", "content": "你好\n😀"},
    {"role": "assistant", "content": "你好！", "reasoning_content": "他在问好。"},
    {"role": "user", "content": "讲个故事"},
    {"role": "assistant", "content": "从前有", "loss": False},
]


def test_a_conversation_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "我的对话.jsonl"
    save_talk(path, MESSAGES, "rlhf_192.pth")
    assert load_talk(path) == MESSAGES
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    save_talk(path, MESSAGES[:3], "rlhf_192.pth")
    assert load_talk(path) == MESSAGES[:3]


def test_a_saved_conversation_is_a_training_record_without_the_answer_that_was_cut_off(tmp_path: Path) -> None:
    save_talk(tmp_path / "talk.jsonl", MESSAGES, "rlhf_192.pth")
    (line,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    record = parse_record(json.loads(line))
    assert isinstance(record, ChatRecord)
    assert record.messages == MESSAGES[:3]
    assert record.fields["source"] == "eval_model.py" and record.fields["model"] == "rlhf_192.pth"


@pytest.mark.parametrize(
    "content",
    [
        b"notes\n",
        b'{"conversations": []}\n',
        b'{"source": "eval_model.py"}\n{"source": "eval_model.py"}\n',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
def test_another_file_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"notes\.txt: is there already"):
        save_talk(path, MESSAGES, "m")
    assert path.read_bytes() == content
    with pytest.raises(UserError, match="is there already"):
        save_talk(tmp_path, MESSAGES, "m")


def test_an_empty_file_and_the_target_of_a_link_are_written(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "empty.jsonl")
    save_talk(tmp_path / "link.jsonl", MESSAGES, "m")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert load_talk(tmp_path / "empty.jsonl") == MESSAGES


GOOD = '{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has 0 lines"),
        (f'{{"conversations": [{GOOD}]}}\n' * 2, "has 2 lines"),
        ("{", "is not JSON"),
        ('{"conversations": NaN}', "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"text": "春天"}', "holds no conversations"),
        ('{"conversations": {}}', "holds no conversations"),
        ('{"conversations": [1]}', "message 1"),
        (f'{{"conversations": [{GOOD}, {{"role": "boss", "content": "x"}}]}}', "message 3: role is 'boss'"),
        (f'{{"conversations": [{GOOD}, {{"role": "system", "content": "x"}}]}}', "message 3: a system message"),
        ('{"conversations": [{"role": "user", "content": "问"}]}', "must end with an answer"),
        ('{"conversations": [{"role": "assistant", "content": "答"}]}', "holds no question"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=why) as refused:
        load_talk(path)
    assert str(path) in refused.value.line and "\n" not in refused.value.line


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            load_talk(path)


def test_half_characters_of_json_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "half.jsonl"
    messages = [{"role": "user", "content": "\udc00问"}, {"role": "assistant", "content": "\ud83d\ude00"}]
    path.write_text(json.dumps({"conversations": messages}), encoding="utf-8")
    loaded = load_talk(path)
    assert [message["content"] for message in loaded] == ["\ufffd问", "😀"]
    save_talk(tmp_path / "again.jsonl", loaded, "m")
    assert load_talk(tmp_path / "again.jsonl") == loaded
