"""The arms of reasoning: their records differ in nothing but what the arm is about."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.post_training_arms import reasoning
from benchmarks.post_training_arms.arm import Start
from benchmarks.post_training_arms.runs import RunLine, Runs
from dataset.samples.generators import generated

RECORDS: list[dict[str, Any]] = [r for r in generated("reasoning.questions") if "split" not in r and "kind" in r][:2000]


def thoughts(records: list[dict[str, Any]]) -> list[str]:
    return [r["conversations"][1].get("reasoning_content", "") for r in records]


def test_answers_alone_are_the_records_without_a_thought() -> None:
    alone = reasoning.answers_alone(RECORDS)
    assert len(alone) == 1000 and not any(thoughts(alone))
    assert [r["conversations"][1]["content"] for r in alone] == [r["conversations"][1]["content"] for r in RECORDS[::2]]


def test_other_chains_are_the_same_thoughts_with_the_same_signs_of_other_problems() -> None:
    other = reasoning.with_other_chains(RECORDS)
    assert Counter(thoughts(other)) == Counter(thoughts(RECORDS))
    moved = 0
    for before, after in zip(RECORDS, other, strict=True):
        old, new = before["conversations"][1], after["conversations"][1]
        assert before["conversations"][0] == after["conversations"][0] and old["content"] == new["content"]
        signs = [[char for char in turn.get("reasoning_content", "") if char in "+-×÷"] for turn in (old, new)]
        assert signs[0] == signs[1]
        moved += old != new
    assert moved > 980  # a few problems are alone with their signs, or got an equal thought
    assert reasoning.with_other_chains(RECORDS) == other


def test_answers_alone_take_more_steps_for_the_same_number_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"reasoning": (1000, 130_000), "answers": (400, 30_000)}

    def manifest(folder: Path) -> SimpleNamespace:
        count, targets = rows[folder.name.removesuffix("_sft_tokens")]
        return SimpleNamespace(rows=count, num_targets=targets)

    monkeypatch.setattr(reasoning, "read_manifest", manifest)
    start = Start(Path("w.pth"), {name: Path(f"{name}.jsonl") for name in rows}, "ab")
    steps = {arm: reasoning.steps_of(arm, start) for arm in reasoning.ARMS}
    assert steps.pop("answers_same_tokens") == round(reasoning.STEPS * 130 / 75)
    assert set(steps.values()) == {reasoning.STEPS}


def line(arm: str, **metrics: float) -> RunLine:
    return RunLine("reasoning", arm, "steps", 0, "ab", "cpu", 1, 1.0, metrics)


def test_targets_are_met_by_figures_that_reach_them_and_by_no_others() -> None:
    good = {
        "accuracy": 0.9, "well_formed": 0.99, "accuracy_reasoning_plain": 0.3, "accuracy_of_start": 0.1,
        "change_math": -0.01, "change_general": 0.0,
    }  # fmt: skip
    controls = [line(arm, accuracy=0.4) for arm in reasoning.ARMS[1:]]

    def unmet(**worse: float) -> int:
        lines = [line("reasoning", **good | worse), *controls]
        return [target.met for target in reasoning.targets(Runs(lines, reasoning.ARMS))].count(False)

    assert unmet() == 0 and unmet(accuracy=0.5) == 3 and unmet(well_formed=0.9) == 1
    assert unmet(accuracy_reasoning_plain=0.05) == 1 and unmet(change_math=-0.03) == 1
