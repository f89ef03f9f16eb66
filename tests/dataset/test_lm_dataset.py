"""Batches equal what is stored, and their order depends only on step and seed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.artifacts import write_json
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from dataset.lm_dataset import Batch, DPODataset, PretrainDataset, SFTDataset, epoch_order, rows_of_step, target_places
from dataset.tensors import IGNORE, open_tensors, read_manifest
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from dataset.tokens.build import TensorJob, build_tensors

tokenizer = RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)})


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def tensors_of(stage: str, folder: Path) -> Path:
    numbers = range(1, 21)
    records = {
        "pretrain": [{"text": "文" * number} for number in numbers],
        "sft": [{"conversations": chat("q", "答" * number)} for number in numbers],
        "dpo": [{"chosen": chat("q", "a" * number), "rejected": chat("q", "b" * (21 - number))} for number in numbers],
    }
    source = folder / f"{stage}.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records[stage]), encoding="utf-8")
    build_tensors(TensorJob(STAGE_TABLE[stage].data, source, folder / stage, tokenizer, 64, 1, progress=False))
    return folder / stage


def assert_targets_are_found(batch: Batch) -> None:
    """Take the places out of a batch, and compare them with places found one label at a time."""
    places = batch.pop("target_places")
    columns = batch["labels"].shape[1]
    wanted = [
        row * columns + column
        for row, labels in enumerate(batch["labels"].tolist())
        for column, label in enumerate(labels)
        if label != IGNORE
    ]
    assert places.dtype == torch.int64
    assert places.tolist() == wanted


def test_places_of_targets_count_through_the_rows() -> None:
    labels = torch.tensor([[IGNORE, 5, 0, IGNORE], [IGNORE] * 4, [7, IGNORE, IGNORE, 8]])
    assert target_places(labels).tolist() == [1, 2, 8, 11]
    assert target_places(labels[1:2]).shape == (0,)


@pytest.mark.parametrize(("stage", "kind"), [("pretrain", PretrainDataset), ("sft", SFTDataset)])
def test_a_batch_is_the_rows_as_they_are_stored_in_64_bits(
    tmp_path: Path, stage: str, kind: type[PretrainDataset | SFTDataset]
) -> None:
    path = tensors_of(stage, tmp_path)
    rows, arrays = kind(path), open_tensors(path)
    numbers = np.array([3, 0, 3])
    batch = rows.batch(numbers)
    assert_targets_are_found(batch)
    assert set(batch) == {"input_ids", "labels", "document_ids"}
    for name, tensor in batch.items():
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == [arrays[name][number].tolist() for number in (3, 0, 3)]
    assert len(rows) == len(arrays["input_ids"]) == rows.manifest.rows


def test_all_targets_of_all_rows_are_those_of_the_manifest(tmp_path: Path) -> None:
    rows = SFTDataset(tensors_of("sft", tmp_path))
    batch = rows.batch(rows.largest(len(rows)))
    assert len(batch["target_places"]) == rows.manifest.num_targets


def test_a_batch_of_pairs_has_the_chosen_rows_first_and_its_padding_last(tmp_path: Path) -> None:
    pairs = DPODataset(tensors_of("dpo", tmp_path))
    batch = pairs.batch(np.array([0, 4]))  # answers of 1 and 5 tokens, rejected ones of 20 and 16
    assert_targets_are_found(batch)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].shape == batch["labels"].shape == (4, 6 + 20)
    for row, (text, length) in enumerate([("a", 1), ("a", 5), ("b", 20), ("b", 16)]):
        ids, mask = tokenizer.render_conversation(chat("q", text * length))
        padding = 26 - len(ids)
        assert batch["input_ids"][row].tolist() == ids + [tokenizer.end_of_text_id] * padding
        labels = [token if is_target else IGNORE for token, is_target in zip(ids, mask, strict=True)][1:]
        assert batch["labels"][row].tolist() == labels + [IGNORE] * (padding + 1)
    assert len(pairs) == 20
    lengths = [pairs.batch(np.array([number]))["labels"].shape[1] for number in pairs.largest(20)]
    assert lengths == sorted(lengths, reverse=True) and len(set(pairs.largest(20).tolist())) == 20


def test_tensors_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tensors_of("sft", tmp_path)
    with pytest.raises(UserError, match="tensors of conversations; this needs documents"):
        PretrainDataset(path)


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide() -> None:
    first = epoch_order(100, 0, 42)
    assert sorted(first) == list(range(100))
    epoch_order.cache_clear()
    assert (epoch_order(100, 0, 42) == first).all()
    assert (epoch_order(100, 1, 42) != first).any()
    assert (epoch_order(100, 0, 43) != first).any()


@pytest.mark.parametrize("rows_per_step", [1, 4, 7, 10, 23])
def test_steps_go_through_each_epoch_without_a_gap(rows_per_step: int) -> None:
    steps = [rows_of_step(step, rows_per_step, 10, seed=1) for step in range(30)]
    assert all(len(rows) == rows_per_step for rows in steps)
    stream = np.concatenate(steps)
    for epoch in range(len(stream) // 10):
        assert (stream[epoch * 10 : (epoch + 1) * 10] == epoch_order(10, epoch, 1)).all()


def test_a_step_needs_no_step_before_it() -> None:
    stream = [rows_of_step(step, 6, 20, seed=3).tolist() for step in range(12)]
    epoch_order.cache_clear()
    assert rows_of_step(11, 6, 20, seed=3).tolist() == stream[11]


@pytest.mark.parametrize(("stage", "kind"), [("pretrain", PretrainDataset), ("sft", SFTDataset), ("dpo", DPODataset)])
def test_tensors_that_name_their_stage_as_they_did_before_are_read(
    tmp_path: Path, stage: str, kind: type[PretrainDataset | SFTDataset | DPODataset]
) -> None:
    path = tensors_of(stage, tmp_path)
    manifest = read_manifest(path)
    content = manifest.as_json()
    del content["data"]
    write_json(path / "manifest.json", content | {"stage": stage})
    assert len(kind(path)) == manifest.rows
    assert read_manifest(path) == manifest
    with pytest.raises(UserError, match="this needs"):
        (SFTDataset if stage == "pretrain" else PretrainDataset)(path)
