"""The metrics file: one line a step that is logged, each step once, whatever was interrupted."""

import json
import math
from pathlib import Path

import pytest

from configs.schema import UserError
from tests.tiny_run import TinyRun, killed_in_step
from trainer.metrics import Metrics


def metrics(folder: Path, first_step: int = 0) -> Metrics:
    """The metrics of a run of ten steps."""
    return Metrics(
        folder, "sft", "abcdef0123", num_steps=10, first_step=first_step, use_wandb=False, settings={}
    )  # fmt: skip


def steps_in(folder: Path) -> list[int]:
    """The steps in the metrics file."""
    lines = (folder / "metrics" / "sft_abcdef01.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_lines_behind_the_step_that_a_run_resumes_from_are_dropped(tmp_path: Path) -> None:
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


def test_the_first_loss_is_near_ln_of_the_vocabulary_and_the_last_is_lower(trained: TinyRun) -> None:
    losses = trained.metric("pretrain")
    assert losses[1] == pytest.approx(math.log(6400), abs=0.15)
    assert losses[6] < losses[1] - 0.3
    assert trained.metric("dpo")[1] == pytest.approx(math.log(2), abs=0.02)


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    monkeypatch.setitem(__import__("sys").modules, "swanlab", None)
    with pytest.raises(UserError, match="neither wandb nor swanlab is installed"):
        Metrics(tmp_path, "sft", "ab", num_steps=1, first_step=0, use_wandb=True, settings={})
