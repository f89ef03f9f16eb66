"""The weight file: whole, plain data, strictly loaded, never executed."""

import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from configs.schema import UserError
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from model.model_minillm import MiniLLM
from model.weights import load_model, load_strict, read_weights, save_weights
from tests.tiny_run import TinyRun


def resave(path: Path, **changes: Any) -> None:
    """Write a checkpoint again with some of its parts replaced."""
    torch.save(torch.load(path, weights_only=True) | changes, path)


def test_a_checkpoint_is_plain_data_that_loads_with_weights_only(trained: TinyRun) -> None:
    for stage in ("pretrain", "sft", "dpo"):
        content = torch.load(trained.path(stage), weights_only=True)
        assert content.keys() == {"model", "config", "manifest"}
        assert content["config"]["hidden_size"] == 16
        assert content["manifest"]["stage"] == stage
        assert all(tensor.dtype == torch.float32 for tensor in content["model"].values())


def test_the_manifest_names_all_data_that_the_weights_have_seen(trained: TinyRun) -> None:
    names = [Path(source.path).name for source in trained.manifest("dpo").training_data]
    assert names == ["pretrain.jsonl", "sft.jsonl", "dpo.jsonl"]


def test_weights_return_as_they_were_saved(trained: TinyRun, tmp_path: Path) -> None:
    model, manifest = load_model(trained.path("sft"))
    save_weights(tmp_path / "copy.pth", model, manifest)
    again, described = load_model(tmp_path / "copy.pth")
    assert described == manifest
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9, 0.999])
def test_a_checkpoint_that_was_cut_short_is_named(tiny: TinyRun, share: float) -> None:
    path = tiny.path("pretrain")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"pretrain_16\.pth: .*Train it again: python trainer/train_pretrain\.py"):
        load_model(path)


def test_a_checkpoint_that_runs_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    trace = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trace),)

    for name, write in (
        ("zip.pth", lambda path: torch.save({"model": Evil(), "config": {}, "manifest": {}}, path)),
        ("plain.pth", lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2))),
    ):
        write(tmp_path / name)
        with pytest.raises(UserError, match="was not executed"):
            read_weights(tmp_path / name)
        assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"model": {}, "config": [], "manifest": {}}])
def test_a_file_of_another_program_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: not a MiniLLM"):
        read_weights(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("model", {"model.norm.weight": [1.0]}, "model: model.norm.weight"),
        ("manifest", {"training_data": 5}, "manifest: training_data"),
        ("manifest", {"tokenizer_sha256": None}, "manifest: tokenizer_sha256"),
        ("manifest", {"settings": "none"}, "manifest: settings"),
    ],
)
def test_weights_with_a_part_of_another_type_are_refused_by_name(
    trained: TinyRun, tmp_path: Path, part: str, change: dict[str, Any], named: str
) -> None:
    content = torch.load(trained.path("pretrain"), weights_only=True)
    torch.save(content | {part: {**content[part], **change}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth: not as MiniLLM writes weights \({named}"):
        read_weights(tmp_path / "x.pth")


def test_whatever_a_broken_pickle_raises_is_told_in_one_line(trained: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError(227), AttributeError("x"), OverflowError("y"), AssertionError()):
        monkeypatch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(UserError, match=r"pretrain_16\.pth: damaged or cut short"):
            read_weights(trained.path("pretrain"))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_not_loaded(trained: TinyRun, tmp_path: Path, value: float) -> None:
    content = torch.load(trained.path("pretrain"), weights_only=True)
    content["model"]["model.norm.weight"][3] = value
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"x\.pth: 1 of \d+ tensors hold NaN or infinity \(the first is model\.norm\.weight"
    ):
        load_model(tmp_path / "x.pth")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        read_weights(tmp_path / "none.pth")


def test_loading_is_strict_and_names_what_differs(trained: TinyRun, tmp_path: Path) -> None:
    state, config, _ = read_weights(trained.path("pretrain"))
    model, path = MiniLLM(config), tmp_path / "x.pth"
    norm = "model.norm.weight"
    with pytest.raises(UserError, match=rf"{norm} is \(4,\) instead of \(16,\)"):
        load_strict(model, state | {norm: torch.zeros(4)}, path)
    with pytest.raises(UserError, match=r"lm_head\.weight is unknown"):
        load_strict(model, state | {"lm_head.weight": torch.zeros(4)}, path)
    with pytest.raises(UserError, match=f"{norm} is missing"):
        load_strict(model, {name: tensor for name, tensor in state.items() if name != norm}, path)


def test_weights_that_do_not_fit_their_own_shape_are_refused(tiny: TinyRun) -> None:
    path = tiny.path("pretrain")
    _, config, _ = read_weights(path)
    resave(path, config=asdict(config) | {"num_hidden_layers": 2})
    with pytest.raises(UserError, match="weights of another shape"):
        tiny.train("sft", "--seed", "9")


def test_weights_of_another_tokenizer_are_refused(tiny: TinyRun) -> None:
    path = tiny.path("pretrain")
    resave(path, manifest=tiny.manifest("pretrain").as_plain() | {"tokenizer_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"pretrain_16\.pth: made with another tokenizer \(00000000\)"):
        tiny.train("sft", "--seed", "9")


def test_tensors_of_another_tokenizer_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)}).save(tmp_path / "bytes")
    tensors = str(tiny.data / "pretrain_pretrain_tokens")
    with pytest.raises(UserError, match=r"made with another tokenizer .* or pass --tokenizer_dir"):
        tiny.train("pretrain", "--data_path", tensors, "--tokenizer_dir", str(tmp_path / "bytes"))


def test_a_shape_flag_that_contradicts_the_starting_weights_is_refused(tiny: TinyRun) -> None:
    start = str(tiny.path("pretrain"))
    with pytest.raises(UserError, match=r"--num_hidden_layers 3: .*pretrain_16\.pth was made with 1"):
        tiny.train("sft", "--from_weight", start, "--num_hidden_layers", "3")
    with pytest.raises(UserError, match=r"pretrain_24\.pth: no such weights"):
        tiny.train("sft", "--hidden_size", "24")
    assert tiny.train("sft", "--from_weight", start, "--num_hidden_layers", "1", "--max_steps", "1") == 0
