"""The right weights are opened, with the tokenizer that they were trained with."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from inference.loading import open_model, weights_to_talk_to
from model.quantize import KINDS, QuantizedEmbedding, quantize
from model.weights import load_model
from tests.tiny_run import TinyRun

CPU = torch.device("cpu")


def test_the_last_stage_that_was_trained_is_meant_where_nobody_says_it(tmp_path: Path) -> None:
    for name in ("pretrain_16.pth", "full_sft_16.pth", "rlhf_16.pth"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(1, 1))
        assert weights_to_talk_to(None, mode=None, out_dir=tmp_path) == tmp_path / name
    assert weights_to_talk_to(None, mode=0, out_dir=tmp_path) == tmp_path / "pretrain_16.pth"
    given = tmp_path / "full_sft_16.pth"
    assert weights_to_talk_to(given, mode=0, out_dir=tmp_path, hidden_size=9) == given
    with pytest.raises(UserError, match=r"pretrain_9\.pth: no such weights"):
        weights_to_talk_to(None, mode=None, out_dir=tmp_path, hidden_size=9)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_when_they_are_opened(trained: TinyRun, kind: str) -> None:
    opened = open_model(trained.path("sft"), device=CPU, tokenizer_dir=TOKENIZER_DIR, quantize=kind)
    model, _ = load_model(trained.path("sft"))
    assert isinstance(opened.model.model.embed_tokens, QuantizedEmbedding)
    assert opened.quantize == kind and opened.num_parameters == model.num_parameters()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(opened.model(ids), quantize(model.eval(), kind)(ids))


def test_the_tokenizer_trained_beside_the_weights_comes_with_them(trained: TinyRun, tmp_path: Path) -> None:
    path = Path(shutil.copy(trained.path("sft"), tmp_path))
    opened = open_model(path, device=CPU, tokenizer_dir=TOKENIZER_DIR)
    assert opened.tokenizer.sha256 == opened.manifest.tokenizer_sha256
    assert not opened.model.training
    RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)}).save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"made with another tokenizer .* than .*tokenizer"):
        open_model(path, device=CPU)
