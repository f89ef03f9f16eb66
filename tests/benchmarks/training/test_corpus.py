"""The prepared text: who sees which record, and what the baseline's rows are."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training.corpus import HOLD_OUT_EVERY, WINDOW_TOKENS, Corpus, CutDocuments, prepare
from configs.schema import UserError
from dataset.tensors import open_tensors
from tests.tiny_run import shipped_tokenizer, write_jsonl

TOKENIZER = shipped_tokenizer()
TEXTS = [
    f"第{number}天，小明读了{number * 7}页书。" + "他很高兴，又读了一遍。" * (number % 70) for number in range(100)
]


def prepared(folder: Path, texts: Sequence[str] = TEXTS, row_tokens: int = 64, **limits: int) -> Corpus:
    folder.mkdir(exist_ok=True)
    text = write_jsonl(folder / "text.jsonl", [{"text": text} for text in texts])
    return prepare(folder / "corpus", text, TOKENIZER, row_tokens=row_tokens, **limits)


def documents(corpus: Corpus) -> CutDocuments:
    return CutDocuments(corpus.folder, TOKENIZER.end_of_text_id)


def test_every_twentieth_record_is_held_out_from_both_arms(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, row_tokens=30_000)  # one row, which no token is repeated in
    heldout = TEXTS[::HOLD_OUT_EVERY]
    assert corpus.heldout_texts() == heldout
    kept = [text for number, text in enumerate(TEXTS) if number % HOLD_OUT_EVERY]
    tensors = open_tensors(corpus.tensors)
    ids = tensors["input_ids"][tensors["document_ids"] >= 0].tolist()
    ours = TOKENIZER.decode(ids)
    assert len(documents(corpus)) == len(kept) == corpus.facts["documents"]
    assert all(text in ours for text in kept) and not any(text[:8] in ours for text in heldout)
    rows = documents(corpus)
    for number, text in enumerate(kept):
        whole = [TOKENIZER.get_bos_token_id(), *TOKENIZER.encode(text), TOKENIZER.end_of_text_id]
        assert rows.ids[rows.offsets[number] : rows.offsets[number + 1]].tolist() == whole[:WINDOW_TOKENS]


def test_a_row_of_the_baseline_is_a_document_cut_or_padded(tmp_path: Path) -> None:
    rows = documents(prepared(tmp_path))
    ids, labels = rows.batch(np.arange(len(rows)))
    lengths = np.diff(rows.offsets)
    assert ids.shape == labels.shape == (len(rows), WINDOW_TOKENS) and lengths.max() == WINDOW_TOKENS > lengths.min()
    for row, length in enumerate(lengths):
        assert ids[row, :length].tolist() == labels[row, :length].tolist()
        assert set(labels[row, length:].tolist()) <= {-100} and set(ids[row, length:].tolist()) <= {rows.pad_id}
    assert rows.targets_per_row * len(rows) == pytest.approx((labels[:, 1:] != -100).sum())
    assert rows.padded_share == pytest.approx((labels == -100).mean())


def test_without_a_text_other_numbers_than_it_was_prepared_with_are_refused(tmp_path: Path) -> None:
    folder = prepared(tmp_path, max_tokens=500, num_heldout=3).folder
    for limits in ({}, {"max_tokens": 500, "num_heldout": 3}):
        assert prepare(folder, None, TOKENIZER, row_tokens=64, **limits).facts["num_heldout"] == 3
    with pytest.raises(UserError, match=r"--heldout_docs 4: .* was prepared with 3"):
        prepare(folder, None, TOKENIZER, row_tokens=64, num_heldout=4)
    with pytest.raises(UserError, match=r"--max_tokens 0: .* was prepared with 500"):
        prepare(folder, None, TOKENIZER, row_tokens=64, max_tokens=0)


def test_a_limit_of_tokens_stops_with_the_document_that_passes_it(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, max_tokens=500, num_heldout=3)
    lengths = [len(TOKENIZER.encode(text)) + 2 for number, text in enumerate(TEXTS) if number % HOLD_OUT_EVERY]
    count = corpus.facts["documents"]
    assert sum(lengths[: count - 1]) < 500 <= sum(lengths[:count]) == corpus.facts["tokens"]
    assert corpus.heldout_texts() == TEXTS[::HOLD_OUT_EVERY][:3]


def test_a_prepared_folder_serves_again_and_without_its_text(tmp_path: Path) -> None:
    corpus = prepared(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*.npy")}
    assert prepared(tmp_path) == corpus
    assert prepare(corpus.folder, None, TOKENIZER, row_tokens=64) == corpus
    assert {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*.npy")} == written


def test_another_text_replaces_the_rows_of_all_lengths(tmp_path: Path) -> None:
    prepared(tmp_path, row_tokens=32)
    prepared(tmp_path, row_tokens=64)
    corpus = prepared(tmp_path, TEXTS[:60], row_tokens=64)
    assert corpus.facts["documents"] == 57
    with pytest.raises(UserError, match="rows of 32"):
        prepare(corpus.folder, None, TOKENIZER, row_tokens=32)


def test_a_folder_that_is_not_prepared_asks_for_the_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--text"):
        prepare(tmp_path / "corpus", None, TOKENIZER, row_tokens=64)


def test_a_text_too_short_to_hold_out_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few records"):
        prepared(tmp_path, TEXTS[:1])


def test_the_facts_count_what_was_written(tmp_path: Path) -> None:
    corpus = prepared(tmp_path)
    saved = json.loads((corpus.folder / "corpus.json").read_text(encoding="utf-8"))
    rows = documents(corpus)
    assert saved == corpus.facts
    assert saved["tokens_after_cut"] == len(rows.ids)
    kept = [text for number, text in enumerate(TEXTS) if number % HOLD_OUT_EVERY]
    assert saved["documents_cut"] == sum(len(TOKENIZER.encode(text)) + 2 > WINDOW_TOKENS for text in kept) > 0
    assert saved["heldout_bytes"] == sum(len(text.encode()) for text in corpus.heldout_texts())
