"""Prompts: what the model sees of a record, and what it does not."""

from pathlib import Path

import pytest

from configs.schema import UserError
from dataset.prompts import prompt_manifest, read_prompts, validation_prompts
from dataset.tokenizer import RustBPETokenizer
from tests.tiny_run import chat, sum_record, write_jsonl


def test_the_model_sees_all_but_the_gold_answer(tmp_path: Path, tokenizer: RustBPETokenizer) -> None:
    turns = [*chat("你好", "你好！"), *chat("3+5=?", "3+5=8。")]
    path = write_jsonl(tmp_path / "p.jsonl", [{"conversations": turns, "words": ["八"]}])
    (prompt,) = read_prompts(path, tokenizer, longest=100).prompts
    assert list(prompt.ids) == tokenizer.render_for_completion(turns[:-1])
    assert "8" not in tokenizer.decode(prompt.ids)
    assert prompt.text == "3+5=?"
    assert prompt.record["words"] == ["八"] and prompt.record["conversations"][-1]["content"] == "3+5=8。"


def test_prompts_without_room_for_an_answer_are_counted(tmp_path: Path, tokenizer: RustBPETokenizer) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [sum_record(1, 2), sum_record(10**12, 10**12)])
    found = read_prompts(path, tokenizer, longest=15)
    assert (len(found.prompts), found.records, found.too_long) == (1, 2, 1)


def test_only_the_validation_half_chooses_weights(tmp_path: Path, tokenizer: RustBPETokenizer) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [sum_record(1, 2)])
    assert validation_prompts(path, tokenizer, longest=100) == []
    write_jsonl(tmp_path / "p_heldout.jsonl", [sum_record(3, 4, split="test"), sum_record(5, 6, split="validation")])
    assert [prompt.text for prompt in validation_prompts(path, tokenizer, longest=100)] == ["5+6等于多少？"]


def test_the_fingerprint_changes_with_all_that_a_run_depends_on(tmp_path: Path, tokenizer: RustBPETokenizer) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [sum_record(1, 2)])
    seen = {prompt_manifest(path, tokenizer, max_length=64, longest=40).fingerprint}
    seen.add(prompt_manifest(path, tokenizer, max_length=64, longest=41).fingerprint)
    write_jsonl(tmp_path / "p_heldout.jsonl", [sum_record(3, 4, split="validation")])
    seen.add(prompt_manifest(path, tokenizer, max_length=64, longest=40).fingerprint)
    write_jsonl(path, [sum_record(1, 3)])
    manifest = prompt_manifest(path, tokenizer, max_length=64, longest=40)
    assert len(seen | {manifest.fingerprint}) == 4
    assert (manifest.rows, manifest.source.records) == (1, 1)


def test_records_that_are_no_conversation_are_refused_by_line(tmp_path: Path, tokenizer: RustBPETokenizer) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [sum_record(1, 2), {"text": "从前。"}])
    with pytest.raises(UserError, match=r"p\.jsonl:2: no conversation"):
        read_prompts(path, tokenizer, longest=100)
