"""Weights and resume state on disk: whole, plain data, strictly loaded, never executed."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from configs.schema import UserError, as_dict
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from model.model_minillm import MiniLLM
from tests.tiny_run import TinyRun, killed_in_step
from trainer.checkpoint import (
    CHOICE_PARTS,
    STATE_PARTS,
    ResumeState,
    load_model,
    load_strict,
    read_weights,
    save_weights,
    saved_states,
)


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
    names = [Path(source["path"]).name for source in trained.manifest("dpo")["training_data"]]
    assert names == ["pretrain.jsonl", "sft.jsonl", "dpo.jsonl"]


def test_weights_return_as_they_were_saved(trained: TinyRun, tmp_path: Path) -> None:
    model, manifest = load_model(trained.path("sft"))
    save_weights(tmp_path / "copy.pth", model, manifest)
    again, _ = load_model(tmp_path / "copy.pth")
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
    resave(path, config=as_dict(config) | {"num_hidden_layers": 2})
    with pytest.raises(UserError, match="weights of another shape"):
        tiny.train("sft", "--seed", "9")


def test_weights_of_another_tokenizer_are_refused(tiny: TinyRun) -> None:
    path = tiny.path("pretrain")
    resave(path, manifest=tiny.manifest("pretrain") | {"tokenizer_sha256": "0" * 64})
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


# --- resume states --------------------------------------------------------------------------------------------------


def a_state(**changes: Any) -> dict[str, Any]:
    """A resume state as a run hands it over, but for its weights."""
    chosen = dict.fromkeys(CHOICE_PARTS, 1)
    return {
        "step": 3, "num_steps": 99, "model": {}, "optimizer": {}, "scaler": {}, "rng": {}, "tokens": 1.0, "targets": 1.0,
        "skipped": 0, "overflows": 0, "choices": chosen, **changes,
    }  # fmt: skip


def test_each_run_finds_its_own_state_beside_those_of_other_settings(tmp_path: Path) -> None:
    for name in ("one" * 10, "other" * 10):
        ResumeState(tmp_path / "s", name).save(a_state(step=len(name)))
    for name in ("one" * 10, "other" * 10):
        state = ResumeState(tmp_path / "s", name).load()
        assert state is not None and state["step"] == len(name)
        assert state["path"] == tmp_path / "s" / name[:16] / "state.pt"
    assert ResumeState(tmp_path / "s", "third").load() is None


def test_the_newest_two_states_of_a_stage_are_kept_and_its_own_is_one_of_them(tmp_path: Path) -> None:
    states = {name: ResumeState(tmp_path, name) for name in ("a", "b", "c")}
    removed = [states[name].save(a_state()) for name in ("a", "b", "b", "c", "b", "c")]
    assert removed == [[], [], [], [tmp_path / "a"], [], []]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    assert saved_states(tmp_path) == [tmp_path / "c" / "state.pt", tmp_path / "b" / "state.pt"]


def test_a_finished_run_removes_its_own_state_alone_and_no_empty_folder_stays(tmp_path: Path) -> None:
    one, other = ResumeState(tmp_path / "s", "one"), ResumeState(tmp_path / "s", "other")
    one.save(a_state())
    other.save(a_state())
    one.clear()
    assert not one.path.exists() and other.path.exists()
    other.clear()
    other.clear()
    assert not (tmp_path / "s").exists()


def test_a_damaged_resume_state_is_named_with_the_way_out(tiny: TinyRun) -> None:
    with killed_in_step(5):
        tiny.train("pretrain", "--seed", "9")
    (state,) = tiny.states("pretrain")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=r"state\.pt: damaged .* Delete .*pretrain.* to train this stage from its start"
    ):
        tiny.train("pretrain", "--seed", "9")
    assert tiny.train("pretrain", "--seed", "9", "--from_resume", "0") == 0


@pytest.fixture(scope="module")
def stopped(trained: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run killed in the fifth step of six. Tests change its state and put it back."""
    run = TinyRun(trained.data, tmp_path_factory.mktemp("stopped"))
    with killed_in_step(5):
        run.train("pretrain", "--seed", "9")
    return run


def refusal(run: TinyRun, state: dict[str, Any]) -> str:
    """What the trainer says to this state, which is then as it was."""
    (path,) = run.states("pretrain")
    before = path.read_bytes()
    torch.save(state, path)
    try:
        with pytest.raises(UserError) as refused:
            run.train("pretrain", "--seed", "9")
    finally:
        path.write_bytes(before)
    said = str(refused.value)
    assert said.startswith(str(path)) and "\n" not in said
    assert f"Delete {path.parent} to train this stage from its start." in said
    return said


@pytest.mark.parametrize("part", STATE_PARTS)
def test_a_state_without_a_part_or_with_one_of_another_type_is_refused_by_name(stopped: TinyRun, part: str) -> None:
    state = torch.load(stopped.states("pretrain")[0], weights_only=True)
    wanted = f"no resume state of this version ({part} is missing or of another type)"
    assert wanted in refusal(stopped, {name: value for name, value in state.items() if name != part})
    assert wanted in refusal(stopped, state | {part: [1]})


@pytest.mark.parametrize("part", CHOICE_PARTS)
def test_a_state_without_a_choice_is_refused_by_name(stopped: TinyRun, part: str) -> None:
    state = torch.load(stopped.states("pretrain")[0], weights_only=True)
    chosen = {name: value for name, value in state["choices"].items() if name != part}
    assert f"(choices.{part} is missing" in refusal(stopped, state | {"choices": chosen})


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", lambda model: {}),
        ("model", lambda model: model | {"model.norm.weight": torch.zeros(3)}),
        ("optimizer", lambda optimizer: {}),
        ("optimizer", lambda optimizer: optimizer | {"state": {n: {"x": 1} for n in optimizer["state"]}}),
        ("optimizer", lambda optimizer: optimizer | {"state": {n: {"momentum": 1.0} for n in optimizer["state"]}}),
        ("optimizer", lambda optimizer: optimizer | {"param_groups": optimizer["param_groups"][:1]}),
        ("rng", lambda rng: {}),
        ("rng", lambda rng: {"cpu": torch.zeros(1, 7, dtype=torch.uint8)}),
        ("choices", lambda chosen: chosen | {"dtype": "float8"}),
        ("choices", lambda chosen: chosen | {"threads": "many"}),
        ("choices", lambda chosen: chosen | {"batch_size": "two"}),
        ("choices", lambda chosen: chosen | {"machine": None, "dtype": "float16"}),
        ("step", lambda step: 0),
        ("step", lambda step: 7),
    ],
)
def test_a_state_whose_parts_do_not_fit_is_told_in_one_line(
    stopped: TinyRun, part: str, change: Callable[[Any], Any]
) -> None:
    state = torch.load(stopped.states("pretrain")[0], weights_only=True)
    refusal(stopped, state | {part: change(state[part])})


def test_a_state_that_was_moved_to_the_folder_of_other_settings_is_refused(stopped: TinyRun) -> None:
    state = torch.load(stopped.states("pretrain")[0], weights_only=True)
    assert "the state of other settings or data" in refusal(stopped, state | {"fingerprint": "another"})
