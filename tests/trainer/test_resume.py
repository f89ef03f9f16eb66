"""The resume state: each run finds its own, and one line says why a state does not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import UserError
from tests.tiny_run import TinyRun, killed_in_step
from trainer.resume import CHOICE_PARTS, STATE_PARTS, ResumeState, saved_states


def a_state(**changes: Any) -> dict[str, Any]:
    """A resume state as a run gives it to `save`, with no weights in it."""
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
    """What the trainer says to this state. Afterwards the old one is back."""
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
def test_a_state_whose_parts_do_not_fit_is_refused_in_one_line(
    stopped: TinyRun, part: str, change: Callable[[Any], Any]
) -> None:
    state = torch.load(stopped.states("pretrain")[0], weights_only=True)
    refusal(stopped, state | {part: change(state[part])})


def test_a_state_that_was_moved_to_the_folder_of_other_settings_is_refused(stopped: TinyRun) -> None:
    state = torch.load(stopped.states("pretrain")[0], weights_only=True)
    assert "the state of other settings or data" in refusal(stopped, state | {"fingerprint": "another"})
