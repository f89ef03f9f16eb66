"""The arms of distillation: teachers that know nothing, and the targets."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from benchmarks.post_training_arms import distillation
from benchmarks.post_training_arms.arm import Start
from benchmarks.post_training_arms.distillation import ARMS, ARMS_OF, TASKS, measure, targets
from benchmarks.post_training_arms.product import write_lines
from benchmarks.post_training_arms.runs import RunLine, Runs
from configs.schema import UserError
from model.weights import load_model
from tests.tiny_run import TinyRun, same


def test_a_uniform_teacher_is_uniform_and_an_untrained_one_is_not_the_teacher(trained: TinyRun, tmp_path: Path) -> None:
    teacher = trained.path("pretrain")
    uniform, untrained = (
        load_model(distillation._stand_in(teacher, name, tmp_path))[0]
        for name in ("uniform_teacher", "untrained_teacher")
    )
    logits = uniform(torch.arange(10)[None])
    assert_close(logits, torch.zeros_like(logits))
    assert not same(untrained.state_dict(), load_model(teacher)[0].state_dict())
    assert untrained.config == load_model(teacher)[0].config


def test_each_arm_belongs_to_one_task() -> None:
    assert tuple(ARMS_OF) == TASKS and len(set(ARMS)) == len(ARMS)
    start = Start(Path("none"), {}, "")
    with pytest.raises(UserError, match="no arm of the task documents"):
        measure("on_policy", "documents", 0, start, Path("none"))


def test_accuracy_counts_the_answers_that_have_a_rule(tmp_path: Path) -> None:
    lines = [{"right": right, "cluster": number} for number, right in enumerate([True, False, None, True])]
    metric = distillation.accuracy(write_lines(tmp_path / "answers.jsonl", lines))
    assert (metric.value, metric.n) == (2 / 3, 3)


def line(arm: str, seed: int, **metrics: float) -> RunLine:
    """A run."""
    return RunLine("distillation", arm, "documents", seed, "", "", 1, 1.0, metrics)


def test_the_targets_of_documents_are_paired_by_seed_and_in_percent_of_the_student_alone() -> None:
    values = {"distilled": (1.94, 1.96, 1.95), "alone": (2.0, 2.0, 2.0), "untrained_teacher": (2.2,)}
    lines = [
        line(arm, seed, bits_per_byte=value) for arm, of_arm in values.items() for seed, value in enumerate(of_arm)
    ]
    lower, errors, equal_time, untrained, uniform = targets(Runs(lines, list(values)))
    assert lower.reached == pytest.approx(2.5) and lower.met
    assert errors.reached == pytest.approx(0.05 / (0.01 / 3**0.5)) and errors.met
    assert untrained.reached == pytest.approx(10.0) and untrained.met
    assert not uniform.met and not equal_time.met  # not measured


def test_the_targets_of_arithmetic_are_in_points() -> None:
    lines = [line("on_policy", 0, accuracy=0.6), line("off_policy", 0, accuracy=0.5)]
    equal_tokens, equal_time = targets(Runs(lines, ["on_policy", "off_policy"]))
    assert equal_tokens.reached == pytest.approx(10) and equal_tokens.met and not equal_time.met


def test_targets_of_arms_that_have_not_run_are_not_met() -> None:
    for metrics in ({"bits_per_byte": 1.9}, {"accuracy": 0.5}):
        arm = "distilled" if "bits_per_byte" in metrics else "on_policy"
        assert not any(target.met for target in targets(Runs([line(arm, 0, **metrics)], [arm])))
