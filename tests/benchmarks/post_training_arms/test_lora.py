"""The arms of LoRA: their flags are those of the trainers, their targets those that were set."""

import pytest

from benchmarks.post_training_arms import lora
from benchmarks.post_training_arms.runs import RunLine, Runs
from configs.train_run import parse_run


@pytest.mark.parametrize("arm", lora.ARMS)
def test_all_arms_but_one_take_the_same_steps_and_that_one_the_same_new_rows(arm: str) -> None:
    run = parse_run("sft" if arm == "full" else "lora", "", [*lora.COMMON, *lora.FLAGS[arm]])
    steps = lora.MORE_STEPS if arm == "more_replay" else lora.STEPS
    assert (run.train.max_steps, run.train.batch_size, run.train.accumulation_steps) == (steps, lora.ROWS, 1)
    assert run.train.optimizer == "adamw" and run.train.max_seq_len == lora.LENGTH
    share = getattr(run.train, "replay_share")  # noqa: B009
    assert share == {"no_replay": 0.0, "more_replay": 0.8}.get(arm, 0.5)
    assert arm == "no_replay" or steps * (1 - share) == pytest.approx(lora.STEPS * 0.5)


def line(arm: str, **metrics: float) -> RunLine:
    return RunLine("lora", arm, "identity", 0, "ab", "cpu", 1, 1.0, metrics)


def test_targets_are_met_by_figures_that_reach_them_and_by_no_others() -> None:
    good = {
        "trained_share": 0.04, "identity_new": 0.98, "identity_old": 0.0, "identity_leak": 0.001,
        "accuracy_identity_new": 0.96, "change_math": -0.005, "change_knowledge": 0.01,
    }  # fmt: skip
    full = line("full", accuracy_identity_new=0.97)
    assert all(target.met for target in lora.targets(Runs([line("lora", **good), full], lora.ARMS)))
    for name, value in {
        "identity_new": 0.96,
        "identity_leak": 0.01,
        "change_math": -0.02,
        "trained_share": 0.06,
    }.items():
        worse = lora.targets(Runs([line("lora", **good | {name: value}), full], lora.ARMS))
        assert [target.met for target in worse].count(False) == 1
    missing = lora.targets(Runs([line("lora", **{k: v for k, v in good.items() if k != "change_math"})], lora.ARMS))
    assert not all(target.met for target in missing)  # full tuning was not measured
