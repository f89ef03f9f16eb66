"""The metrics file has each logged step once, even after interruptions; and what listeners get."""

import io
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from configs.schema import UserError
from tests.tiny_run import TinyRun, killed_in_step
from trainer.metrics import Metrics, TensorBoard


def metrics(folder: Path, first_step: int = 0) -> Metrics:
    """The metrics of a run of ten steps."""
    return Metrics(folder, "sft", "abcdef0123", num_steps=10, first_step=first_step, use_wandb=False, settings={})


def steps_in(folder: Path) -> list[int]:
    """The steps in the metrics file."""
    lines = (folder / "metrics" / "sft_abcdef01.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_lines_after_the_step_that_a_run_resumes_from_are_dropped(tmp_path: Path) -> None:
    run = metrics(tmp_path)
    for step in range(1, 6):
        run.log(step, {"loss": 1.0})
    run.close()
    again = metrics(tmp_path, first_step=3)
    again.log(4, {"loss": 0.5})
    again.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    metrics(tmp_path).close()
    assert steps_in(tmp_path) == []


def test_an_interrupted_run_leaves_every_step_once(tiny: TinyRun) -> None:
    with killed_in_step(4):
        tiny.train("pretrain", "--seed", "8")
    assert tiny.train("pretrain", "--seed", "8") == 0
    assert list(tiny.metric("pretrain")) == [1, 2, 3, 4, 5, 6]
    assert list(tiny.metric("pretrain", "validation_loss")) == [1, 2, 4, 5, 6]
    counted = [tiny.metric("pretrain", name) for name in ("tokens", "targets")]
    assert tiny.train("pretrain", "--seed", "8", "--from_resume", "0") == 0
    assert counted == [tiny.metric("pretrain", name) for name in ("tokens", "targets")]


def test_the_first_loss_is_near_ln_of_the_vocabulary_and_the_last_is_lower(trained: TinyRun) -> None:
    losses = trained.metric("pretrain")
    assert losses[1] == pytest.approx(math.log(6400), abs=0.15)
    assert losses[6] < losses[1] - 0.3
    assert trained.metric("dpo")[1] == pytest.approx(math.log(2), abs=0.02)


def test_a_value_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    run = metrics(tmp_path)
    run.log(1, {"loss": 1.0, "grad_norm": math.nan})
    run.close()
    (line,) = (tmp_path / "metrics" / "sft_abcdef01.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "loss": 1.0}


# --- listeners, which need not be installed -------------------------------------------------------


class Recorder:
    """Stands for wandb or swanlab, and for the run that its `init` gives: it keeps what it gets."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}
        self.axes: list[tuple[str, dict[str, Any]]] = []
        self.logged: list[dict[str, Any]] = []
        self.ended: list[dict[str, Any]] = []
        self.asked: str | None = None
        self.failure: Exception | None = None

    def init(self, **named: Any) -> "Recorder":
        self.asked = sys.stdin.read()
        if self.failure:
            raise self.failure
        self.started = named
        return self

    def define_metric(self, name: str, **named: Any) -> None:
        self.axes.append((name, named))

    def log(self, values: dict[str, Any], **named: Any) -> None:
        if self.failure:
            raise self.failure
        self.logged.append({**values, **named})

    def finish(self, **named: Any) -> None:
        self.ended.append(named)
        if self.failure:
            raise self.failure


def only(monkeypatch: pytest.MonkeyPatch, name: str) -> Recorder:
    """A recorder in place of the tracker of this name; the other one is not installed."""
    tracker = Recorder()
    for module in ("wandb", "swanlab"):
        monkeypatch.setitem(sys.modules, module, cast(ModuleType, tracker if module == name else None))
        monkeypatch.delenv(f"{module.upper()}_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("SWANLAB_LOG_DIR", raising=False)
    return tracker


def tracked(folder: Path, first_step: int = 0) -> Metrics:
    """The metrics of a run of ten steps that a tracker follows."""
    return Metrics(
        folder, "sft", "abcdef0123", num_steps=10, first_step=first_step, use_wandb=True, settings={"beta": 2}
    )


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "neither")
    with pytest.raises(UserError, match="neither wandb nor swanlab is installed"):
        tracked(tmp_path)


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_tracker_gets_the_settings_and_every_step_and_an_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = only(monkeypatch, name)
    run = tracked(tmp_path)
    run.log(1, {"loss": 3.0})
    run.log(1, {"validation_loss": 4.0})
    run.log(2, {"loss": 2.0})
    run.close()
    assert tracker.started["project"] == "MiniLLM"
    assert tracker.started["name"] == tracker.started["group"] == "sft_abcdef01"
    assert tracker.started["config"] == {"beta": 2}
    assert tracker.logged == [{"step": 1, "loss": 3.0}, {"step": 1, "validation_loss": 4.0}, {"step": 2, "loss": 2.0}]
    assert tracker.ended == [{"exit_code": 0} if name == "wandb" else {}]


@pytest.mark.parametrize(("name", "key"), [("wandb", "dir"), ("swanlab", "log_dir")])
def test_what_a_tracker_writes_lies_in_tf_dir_or_where_its_own_variable_says(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = only(monkeypatch, name)
    tracked(tmp_path).close()
    assert Path(tracker.started[key]).is_relative_to(tmp_path)
    monkeypatch.setenv(f"{name.upper()}_{key.upper()}", "elsewhere")
    tracked(tmp_path).close()
    assert tracker.started[key] == "elsewhere"


def test_wandb_draws_over_our_steps_because_its_own_may_not_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = only(monkeypatch, "wandb")
    tracked(tmp_path).close()
    assert ("*", {"step_metric": "step"}) in tracker.axes


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_resumed_run_tells_the_tracker_the_steps_before_and_none_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, name)
    run = tracked(tmp_path)
    for step in range(1, 6):
        run.log(step, {"loss": 10.0 - step})
    tracker = only(monkeypatch, name)
    again = tracked(tmp_path, first_step=3)
    again.log(4, {"loss": 6.0})
    again.close()
    assert tracker.logged == [{"step": step, "loss": 10.0 - step} for step in range(1, 5)]
    assert steps_in(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "end"), [("wandb", {"exit_code": 1}), ("swanlab", {"state": "crashed"})])
def test_a_run_that_an_exception_ends_is_marked_as_failed(
    name: str, end: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = only(monkeypatch, name)
    run = tracked(tmp_path)
    with pytest.raises(RuntimeError):
        try:
            raise RuntimeError("out of memory")
        finally:
            run.close()
    (ended,) = tracker.ended
    assert end.items() <= ended.items()
    assert ended.get("error", "out of memory").endswith("out of memory")


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_tracker_that_does_not_start_ends_the_run_in_one_line_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics(tmp_path).log(1, {"loss": 1.0})
    tracker = only(monkeypatch, name)
    tracker.failure = RuntimeError("no key\nfound")
    with pytest.raises(UserError) as caught:
        tracked(tmp_path)
    message = str(caught.value)
    assert f"{name} did not start (RuntimeError: no key found)" in message
    assert f"{name} login" in message
    assert f"{name.upper()}_MODE=offline" in message
    assert "\n" not in message
    assert steps_in(tmp_path) == [1]


def test_a_tracker_whose_own_requirement_is_missing_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = only(monkeypatch, "wandb")
    tracker.failure = ModuleNotFoundError("No module named 'click'", name="click")
    with pytest.raises(UserError, match=r"wandb did not start .*No module named 'click'"):
        tracked(tmp_path)


def test_no_tracker_can_ask_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard = io.StringIO("3\n")
    monkeypatch.setattr(sys, "stdin", keyboard)
    tracker = only(monkeypatch, "wandb")
    tracked(tmp_path).close()
    assert tracker.asked == ""
    assert sys.stdin is keyboard


def test_a_tracker_that_fails_during_the_run_is_named_once_and_training_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = only(monkeypatch, "wandb")
    run = tracked(tmp_path)
    tracker.failure = OSError("no network")
    run.log(1, {"loss": 3.0})
    run.log(2, {"loss": 2.0})
    tracker.failure = None
    run.log(3, {"loss": 1.0})
    tracker.failure = OSError("no network")
    run.close()
    assert steps_in(tmp_path) == [1, 2, 3]
    assert tracker.logged == [{"step": 3, "loss": 1.0}]
    assert capsys.readouterr().err.count("warning: wandb failed (OSError: no network)") == 1


class Board:
    """Stands for TensorBoard's writer."""

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.pending: list[tuple[str, float, int]] = []
        self.written: list[tuple[str, float, int]] = []

    def add_scalar(self, *scalar: Any) -> None:
        self.pending.append(scalar)

    def flush(self) -> None:
        self.written, self.pending = self.written + self.pending, []

    def close(self) -> None:
        self.closed = True


def test_tensorboard_hides_only_the_steps_that_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", cast(ModuleType, SimpleNamespace(SummaryWriter=Board)))
    run = metrics(tmp_path, first_step=3)
    (listener,) = run.listeners
    assert isinstance(listener, TensorBoard)
    board = cast(Board, listener.writer)
    run.log(4, {"loss": 1.0})
    assert board.purge_step == 4
    assert board.written == [("loss", 1.0, 4)]
    run.close()
    assert board.closed


def test_a_broken_tensorboard_is_named_and_a_missing_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: str, purge_step: int) -> None:
        raise TypeError("Descriptors cannot be created directly")

    name = "torch.utils.tensorboard"
    monkeypatch.setitem(sys.modules, name, cast(ModuleType, SimpleNamespace(SummaryWriter=broken)))
    assert metrics(tmp_path).listeners == []
    assert "warning: TensorBoard failed (TypeError: Descriptors" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, name, cast(ModuleType, None))
    assert metrics(tmp_path).listeners == []
    assert "warning" not in capsys.readouterr().err
