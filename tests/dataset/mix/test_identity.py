"""What identity records call the model and its maker."""

from pathlib import Path
from typing import Any

import pytest

from dataset.mix.build import build_mix
from dataset.mix.identity import Names, names_in
from dataset.mix.sources import find_sources
from tests.dataset.mix.small_mix import PATTERNS, SMALL, XIAOZHI, chat, out, write


@pytest.mark.parametrize("name", ["identity_mine.jsonl", "identity_conversations.jsonl"])
def test_a_user_s_identity_file_replaces_the_bundled_one_and_is_held_out_from(
    tmp_path: Path, bundled: Path, name: str
) -> None:
    find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)  # copies the bundled file there
    write(bundled / name, XIAOZHI)
    sources = find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)
    assert [s.path.name for s in sources.files if s.category == "identity"] == [name]
    assert ("identity_conversations.jsonl" in sources.left_out) == (name != "identity_conversations.jsonl")
    manifest = build_mix(sources, SMALL, tmp_path / "out")
    assert manifest["categories"]["identity"]["heldout"] == 3
    answers = [
        record["conversations"][-1]["content"] for record in out(tmp_path, "sft") if record["category"] == "identity"
    ]
    assert set(answers) == {"我是小智，由星河实验室训练的助手。"}
    (bundled / "identity_conversations.jsonl").unlink()
    if name != "identity_conversations.jsonl":
        find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)
        assert not (bundled / "identity_conversations.jsonl").exists()


def test_the_name_in_a_user_s_identity_file_fills_the_samples_and_the_manifest(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "identity_mine.jsonl", XIAOZHI)
    manifest = build_mix(find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS), SMALL, tmp_path / "out")
    assert manifest["identity"] == {"own": True, "name": "小智", "author": "星河实验室"}
    assert manifest["settings"]["name"] == "小智"
    assert any("call the model 小智 and its maker 星河实验室" in note for note in manifest["notes"])
    texts = [record["text"] for record in out(tmp_path, "pretrain") if record["category"] == "corpus"]
    assert texts and all("我叫小智" in text for text in texts)


@pytest.mark.parametrize(
    ("answer", "identity"),
    [
        ("我叫{{name}}，是{{author}}做的。", {"own": True, "name": "MiniLLM", "author": "MiniLLM团队"}),
        ("我是一个人工智能助手。", {"own": True, "name": None, "author": None}),
        ("你可以叫我阿星。", {"own": True, "name": "阿星", "author": None}),
        ("I'm Nova, built by Galaxy Lab.", {"own": True, "name": "Nova", "author": "Galaxy Lab"}),
        (None, {"own": False, "name": "MiniLLM", "author": "MiniLLM团队"}),
    ],
)
def test_the_manifest_says_whose_identity_it_is_and_what_it_calls_the_model(
    tmp_path: Path, bundled: Path, answer: str | None, identity: dict[str, Any]
) -> None:
    if answer:
        write(bundled / "identity_mine.jsonl", [chat(f"你是谁{n}", answer) for n in range(20)])
    manifest = build_mix(find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS), SMALL, tmp_path / "out")
    assert manifest["identity"] == identity
    warned = [note for note in manifest["notes"] if "don't say what the model is called" in note]
    assert bool(warned) == (identity["name"] is None)


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
