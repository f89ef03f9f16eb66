"""The text that a vocabulary is trained and measured on, and its statistics."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from dataset import vocabulary
from dataset.records.record import TextRecord
from dataset.samples.files import SAMPLE_FILES
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from dataset.vocabulary import Corpus, default_inputs, measure_vocabulary, texts_of


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def tokenizer_with(*tokens: str) -> RustBPETokenizer:
    ranks = {bytes([byte]): byte for byte in range(NUM_BYTES)}
    ranks |= {token.encode(): NUM_BYTES + i for i, token in enumerate(tokens)}
    return RustBPETokenizer(QWEN2_PATTERN, ranks)


ANSWER = {"role": "assistant", "content": "答", "reasoning_content": "想"}
ASIDE = {
    "source": "来源",
    "url": "https://x",
    "id": "7",
    "title": "题",
    "meta": {"db": "维基"},
    "timestamp": "2023",
    "score": 3,
}


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"text": "文"}, ["文"]),
        ({"text": "<|im_start|>问。答。<|im_end|>"}, ["问。答。"]),
        ({"text": "<s>问。</s> <s>答。</s>"}, ["问。\n答。"]),
        ({"conversations": [{"role": "user", "content": "问"}, ANSWER]}, ["问", "想", "答"]),
        (
            {"instruction": "译", "input": "猫", "output": "cat", "history": [["问", "答"]]},
            ["问", "答", "译\n猫", "cat"],
        ),
        ({"prompt": "提", "chosen": "好", "rejected": "坏"}, ["提", "好", "坏"]),
        ({"question": "几？", "A": "一", "B": "二", "answer": "B"}, ["几？\nA. 一\nB. 二", "答案：B。二"]),
    ],
)
def test_a_tokenizer_learns_what_the_stages_read_and_nothing_beside_it(
    tmp_path: Path, fields: dict[str, Any], texts: list[str]
) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{**ASIDE, **fields}])
    assert list(Corpus([path]).training_texts()) == texts
    assert list(Corpus([path], [path]).heldout_texts()) == texts


@pytest.mark.parametrize("split", [["a"], {"a": 1}, 3, "train_sft", None, "train"])
def test_a_split_that_is_none_of_ours_decides_nothing(tmp_path: Path, split: Any) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"text": "文", "split": split}])
    assert list(Corpus([path]).training_texts()) == ["文"]


def test_half_surrogates_are_replaced() -> None:
    assert texts_of(TextRecord("a\ud800", {})) == ["a\ufffd"]


def test_arrays_and_other_encodings_are_learnt_from_and_what_no_stage_reads_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(
        json.dumps([{"text": "今天天气很好"}, {"foo": "明"}, {"text": 3}], ensure_ascii=False).encode("gb18030")
    )
    corpus = Corpus([path])
    assert list(corpus.training_texts()) == ["今天天气很好"]
    assert corpus.unreadable == {(path, False): {"unknown shape: fields foo": 1, "text is not a string": 1}}


def test_held_out_records_are_never_learnt_and_only_their_validation_half_is_measured(tmp_path: Path) -> None:
    records = [{"text": "学"}, {"text": "验", "split": "validation"}, {"text": "测", "split": "test"}]
    path = write_lines(tmp_path / "c.jsonl", records)
    assert list(Corpus([path]).training_texts()) == ["学"]
    heldout = write_lines(tmp_path / "c_heldout.jsonl", records[1:])
    assert list(Corpus([path], [heldout]).heldout_texts()) == ["验"]


def test_without_held_out_files_every_nth_line_is_measured_and_not_learnt(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"text": str(i)} for i in range(7)])
    corpus = Corpus([path], leave_out_every=3)
    assert list(corpus.heldout_texts()) == ["0", "3", "6"]
    assert list(corpus.training_texts()) == ["1", "2", "4", "5"]
    assert (corpus.num_texts, corpus.num_characters) == (4, 4)
    assert list(Corpus([path]).heldout_texts()) == []


def test_caps_shorten_texts_and_end_the_reading_and_say_so(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"text": "abcdef"}, {"text": "gh"}, {"text": "ijk"}])
    corpus = Corpus([path], doc_cap=4, max_chars=7)
    assert list(corpus.training_texts()) == ["abcd", "gh", "i"]
    assert (corpus.num_capped, corpus.reached_max_chars, corpus.num_characters) == (1, True, 7)
    assert list(corpus.training_texts()) == ["abcd", "gh", "i"]  # a second pass reads the same
    assert corpus.num_capped == 1


def test_packed_files_and_byte_order_marks_give_the_same_texts_and_bad_lines_are_counted(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "c.jsonl", [{"text": "今"}, {"text": "天"}])
    packed = tmp_path / "c.jsonl.xz"
    lines = b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n") + b'\r\n{"text": \n{"text": "\xff"}\n'
    packed.write_bytes(lzma.compress(lines))
    corpus = Corpus([packed])
    assert list(corpus.training_texts()) == list(Corpus([plain]).training_texts()) == ["今", "天"]
    assert corpus.unreadable[packed, False].total() == 2


def test_without_files_named_it_takes_the_mix_else_the_sources_else_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processed, sources = tmp_path / "processed", tmp_path / "sources"
    monkeypatch.setenv("DATA_DIR", str(processed))
    monkeypatch.setenv("SOURCE_DIR", str(sources))
    monkeypatch.setattr(vocabulary, "write_samples", lambda folder, categories: {c: folder / c for c in categories})
    for folder in (processed, sources):
        folder.mkdir()
    (sources / "identity_conversations.jsonl").touch()
    samples = [path.name for path in default_inputs()]
    assert samples == [*(name for name in SAMPLE_FILES if name != "preference"), "identity_cn_sample.jsonl"]
    (sources / "a.jsonl").touch()
    assert default_inputs() == [sources / "a.jsonl", sources / "identity_conversations.jsonl"]
    (processed / "sft_chinese.jsonl").touch()
    (processed / "sft_chinese_heldout.jsonl").touch()
    assert default_inputs() == [processed / "sft_chinese.jsonl"]


def test_statistics_count_the_held_out_text() -> None:
    tokenizer = tokenizer_with("ab", "abab")
    statistics = measure_vocabulary(tokenizer, ["ababab", "c"], ["ab"])
    assert statistics["heldout"] == {"characters": 7, "bytes": 7, "tokens": 3}
    assert statistics["characters_per_token"] == 2.3333
    assert statistics["longest_tokens"][:2] == ["abab", "ab"]
    assert statistics["unused_tokens"]["count"] == NUM_BYTES - 1
    assert measure_vocabulary(tokenizer, [], [])["characters_per_token"] is None


def test_a_huge_text_is_measured_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "SLICE_CHARACTERS", 4)
    monkeypatch.setattr(vocabulary, "BATCH_CHARACTERS", 8)
    tokenizer = tokenizer_with("ab")
    assert measure_vocabulary(tokenizer, ["ab" * 11, "c"], [])["heldout"] == {
        "characters": 23,
        "bytes": 23,
        "tokens": 12,
    }
