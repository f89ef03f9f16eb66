"""The tokens that a GPU trains on, made once and carried along."""

from pathlib import Path

import pytest

from benchmarks.gpu.data import BUNDLED, Recipe, prepare, prepared, tensors
from benchmarks.training.corpus import prepare as prepare_corpus
from configs.paths import TOKENIZER_DIR
from dataset.lm_dataset import DPODataset, PretrainDataset, SFTDataset
from dataset.tokenizer import RustBPETokenizer
from tests.tiny_run import write_records


def test_prepared_tokens_open_with_the_product_s_own_readers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "records")
    files = {stage: tmp_path / "records" / f"{stage}.jsonl" for stage in ("pretrain", "sft", "dpo")}
    recipe, folder = Recipe.of(tiny=True, files=files), tmp_path / "on_gpu"
    found = prepare(folder, recipe)
    assert found["from"] == {stage: f"{stage}.jsonl" for stage in files}
    lengths = recipe.row_tokens
    kinds = {"pretrain": PretrainDataset, "sft": SFTDataset, "dpo": DPODataset}
    for stage, kind in kinds.items():
        rows = kind(tensors(folder, stage, lengths[stage]))
        assert len(rows) and rows.batch(rows.largest(1))["input_ids"].shape[0] == (2 if stage == "dpo" else 1)
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    corpus = prepare_corpus(
        folder / "corpus", None, tokenizer, row_tokens=lengths["pretrain"]
    )  # as train_speed.py does
    assert corpus.facts["documents"] == 57
    assert prepared(folder, recipe) == found
    assert prepared(tmp_path / "nowhere", recipe) is None
    assert prepared(folder, Recipe.of(tiny=False)) is None
    assert "made for other rows" in capsys.readouterr().out


def test_what_no_file_is_given_for_comes_from_the_bundled_samples(tmp_path: Path) -> None:
    write_records(tmp_path / "records")
    found = prepare(
        tmp_path / "on_gpu", Recipe.of(tiny=True, files={"pretrain": tmp_path / "records" / "pretrain.jsonl"})
    )
    assert found["from"] == {"pretrain": "pretrain.jsonl", "sft": BUNDLED, "dpo": BUNDLED}
    assert (tmp_path / "on_gpu" / "sft_tokens" / "validation").is_dir()
    assert not list((tmp_path / "on_gpu").glob(".*"))
