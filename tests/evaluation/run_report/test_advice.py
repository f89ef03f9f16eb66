"""Warnings by rule: each is given where its sign is there, and not where it is not."""

from typing import Any

from evaluation.run_report.advice import beats_its_baselines, notes_of, of_curves
from evaluation.run_report.facts import read_run
from tests.evaluation.run_report.small_run import SmallRun, metric


def rules(notes: dict[str, Any]) -> set[tuple[str, str]]:
    """Rule and stage of each warning."""
    return {(note["rule"], note["stage"]) for note in notes["warnings"]}


def curves(**named: list[tuple[int, float]]) -> list[str]:
    """The rules that curves alone lead to."""
    return [note.rule for note in of_curves("sft", {"curves": named, "weights": {"grad_clip": 1.0}})]


def test_a_run_is_warned_of_what_went_wrong_in_it(small: SmallRun) -> None:
    notes = notes_of(read_run(small.whole().folders))
    found = rules(notes)
    assert {("overfitting", "dpo"), ("damage", "dpo"), ("baseline", "sft"), ("rejects", ""), ("dropped", "")} <= found
    assert not {rule for rule, stage in found if stage == "pretrain"}
    texts = [note["english"] for note in notes["warnings"]]
    assert "dpo: validation rises since step 66 (0.5 to 0.7): overfitting." in texts
    assert "Clearly worse after dpo: accuracy_math 90.0% → 60.0%." in texts
    assert {"overfit", "damage", "more_wordings", "clean", "more_text"} <= {one["remedy"] for one in notes["next"]}


def test_an_unfinished_stage_and_one_without_scores_are_named(small: SmallRun) -> None:
    small.whole().note("dpo", status="running")
    small.weights("sft", "pretrain", fingerprint="f" * 63 + "e")  # others than those that were scored
    assert {("unfinished", "dpo"), ("not_evaluated", "sft")} <= rules(notes_of(read_run(small.folders)))


def test_answers_that_do_not_end_are_counted_after_chat_stages_alone(small: SmallRun) -> None:
    facts = read_run(small.whole().folders)
    facts["answers"] = {"columns": {stage: [{"text": "我我我", "ended": False}] * 12 for stage in ("pretrain", "sft")}}
    assert [note["stage"] for note in notes_of(facts)["warnings"] if note["rule"] == "endless"] == ["sft"]


def test_a_jump_is_far_outside_of_how_its_neighbours_vary() -> None:
    calm = [(step, 2.0 + 0.01 * (step % 3)) for step in range(40)]
    assert curves(loss=calm) == []
    assert curves(loss=[*calm, (40, 6.0)]) == ["jump"]
    noisy = [(step, 0.4 + 0.8 * (step % 2)) for step in range(40)]  # as the loss of a few pairs is
    assert curves(loss=noisy) == []


def test_gradients_are_cut_all_the_time_only_if_each_of_the_second_half_is() -> None:
    assert curves(grad_norm=[(step, 2.0) for step in range(20)]) == ["clipped"]
    assert curves(grad_norm=[(step, 2.0) for step in range(19)] + [(19, 0.5)]) == []


def test_a_busy_machine_is_seen_in_the_speed() -> None:
    assert curves(tokens_per_second=[(step, 1000.0 if step % 4 else 100.0) for step in range(40)]) == ["slow"]
    assert curves(tokens_per_second=[(step, 1000.0 if step % 20 else 100.0) for step in range(40)]) == []


def test_validation_that_rises_by_less_than_its_noise_is_no_overfitting() -> None:
    assert curves(validation_loss=[(1, 2.0), (2, 1.0), (3, 1.01)]) == []
    assert curves(validation_loss=[(1, 2.0), (2, 1.0), (3, 1.05)]) == ["overfitting"]


def test_a_score_beats_its_baselines_with_its_whole_interval() -> None:
    assert beats_its_baselines(metric(0.9, baselines={"constant": 0.5, "nearest": 0.87}))
    assert beats_its_baselines(metric(0.9, baselines={"constant": 0.5, "nearest": 0.89})) is False
    assert beats_its_baselines(metric(0.9)) is None
