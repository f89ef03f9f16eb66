"""Calibration text: rows as a training step has them, of training text alone."""

import shutil
from pathlib import Path

import pytest
import torch

from configs.artifacts import sha256_file
from configs.schema import UserError
from dataset.calibration import LONGEST_ROW, calibration_text
from dataset.lm_dataset import SFTDataset
from dataset.tensors import VALIDATION_FOLDER
from dataset.tokenizer import QWEN2_PATTERN, RustBPETokenizer
from tests.dataset.small_tokenizers import tokenizer_with
from tests.tiny_run import TinyRun, pair_record, sum_record, write_jsonl

TEXTS = [f"第{number}天，小明读书。" for number in range(40)]


def test_documents_stand_end_to_end_and_each_sees_itself_alone(tmp_path: Path, tokenizer: RustBPETokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    rows = calibration_text(path, tokenizer, row_tokens=16, num_tokens=100)
    bos, end = tokenizer.get_bos_token_id(), tokenizer.end_of_text_id
    stream = [token for text in TEXTS for token in (bos, *tokenizer.encode(text), end)]
    assert rows.input_ids.flatten().tolist() == stream[: rows.input_ids.numel()]
    assert rows.input_ids.shape[1] == 16 and 100 - 16 < rows.input_ids.numel() < 100 + 16
    assert rows.sha256 == sha256_file(path)
    for ids, owners in zip(rows.input_ids, rows.document_ids, strict=True):
        assert owners[0] == 0
        begins = (ids[1:] == bos).long()
        assert torch.equal(owners[1:] - owners[:-1], begins)


def test_conversations_and_the_chosen_side_of_pairs_are_rendered_as_in_training(
    tmp_path: Path, tokenizer: RustBPETokenizer
) -> None:
    records = [sum_record(1, 2), pair_record(3, 4)] * 4
    rows = calibration_text(write_jsonl(tmp_path / "a.jsonl", records), tokenizer, row_tokens=8)
    conversations = [record.get("conversations") or record["chosen"] for record in records]
    stream = [token for messages in conversations for token in tokenizer.render_conversation(messages)[0]]
    assert rows.input_ids.flatten().tolist() == stream[: rows.input_ids.numel()]
    assert rows.input_ids.numel() > len(stream) - 8


def test_no_row_of_records_is_longer_than_the_limit(tmp_path: Path, tokenizer: RustBPETokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "书" * 3000}])
    assert calibration_text(path, tokenizer, row_tokens=4096).input_ids.shape[1] == LONGEST_ROW


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_rows_of_tensors_are_taken_from_the_whole_folder(
    trained: TinyRun, tokenizer: RustBPETokenizer, stage: str
) -> None:
    folder = trained.data / f"{stage}_{stage}_tokens"
    some = calibration_text(folder, tokenizer, row_tokens=32, num_tokens=32 * 3)
    everything = calibration_text(folder, tokenizer, row_tokens=32)
    assert len(some.input_ids) == 3 and len(everything.input_ids) > 6
    assert torch.equal(some.input_ids[0], everything.input_ids[0])
    assert torch.equal(some.input_ids[-1], everything.input_ids[-1])
    assert some.sha256 == sha256_file(trained.data / f"{stage}.jsonl")
    if stage == "sft":
        padded = SFTDataset(folder).arrays["document_ids"] < 0
        assert (everything.document_ids < 0).sum() == padded.sum()


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_held_out_text_is_refused(trained: TinyRun, tokenizer: RustBPETokenizer, stage: str) -> None:
    for path in (trained.data / f"{stage}_heldout.jsonl", trained.data / f"{stage}_{stage}_tokens" / VALIDATION_FOLDER):
        with pytest.raises(UserError, match="held-out"):
            calibration_text(path, tokenizer, row_tokens=8)


def test_text_that_can_not_serve_is_refused_in_one_line(
    trained: TinyRun, tmp_path: Path, tokenizer: RustBPETokenizer
) -> None:
    short = write_jsonl(tmp_path / "short.jsonl", [{"text": "书"}])
    with pytest.raises(UserError, match=r"3 tokens\. Give --calibration a file with at least 32"):
        calibration_text(short, tokenizer, row_tokens=32)
    with pytest.raises(UserError, match="tensors of pairs"):
        calibration_text(trained.data / "dpo_dpo_tokens", tokenizer, row_tokens=32)
    with pytest.raises(UserError, match="made with another tokenizer"):
        calibration_text(trained.data / "sft_sft_tokens", tokenizer_with(QWEN2_PATTERN), row_tokens=32)
    with pytest.raises(UserError, match="no such file"):
        calibration_text(tmp_path / "none.jsonl", tokenizer, row_tokens=32)
    shutil.copyfile(trained.data / "sft.jsonl", tmp_path / "broken.jsonl")
    with (tmp_path / "broken.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match=r"broken\.jsonl:61"):
        calibration_text(tmp_path / "broken.jsonl", tokenizer, row_tokens=32)
