"""The stage book: which stages are done, which start over, and what is kept until then."""

import json
import os
import time
from pathlib import Path

import pytest

from configs.schema import UserError
from configs.stage_table import OPTIONAL_STAGES, RECIPE_VERSION, STAGES
from scripts.pipeline import fingerprints
from scripts.pipeline.book import StageBook, State
from scripts.pipeline.plan import PIPELINE, Pipeline
from tests.scripts.pipeline.conftest import Make


def perform(pipeline: Pipeline, stage: str) -> bool:
    """Let the book decide about a training stage, and do its work; returns whether it did any."""
    book = StageBook(pipeline)
    if not book.begin(stage):
        return False
    weights = pipeline.weights(stage)
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_text(f"{stage} {pipeline.runs[stage].train.seed}")
    results = pipeline.tf_dir / "eval_results.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(f'{{"run_id": "{book.run_id(stage)}", "stage": "{stage}"}}\n')
    book.finish(stage, 1)
    book.hashes.save()
    return True


def test_a_stage_is_done_once(run_of: Make) -> None:
    assert perform(run_of(), "pretrain")
    assert not perform(run_of(), "pretrain")


def test_a_stage_whose_settings_changed_starts_over_and_leaves_weights_and_states_to_the_trainer(run_of: Make) -> None:
    perform(run_of(), "pretrain")
    changed = run_of(PRETRAIN_ARGS="--seed 7")
    before, state = changed.weights("pretrain").read_text(), state_of(changed, "pretrain")
    book = StageBook(changed)
    assert book.begin("pretrain")
    assert changed.weights("pretrain").read_text() == before
    assert state.exists()
    assert not book.must_start_over("pretrain")  # the trainer finds out by itself that their settings differ


def state_of(pipeline: Pipeline, stage: str) -> Path:
    """A resume state, saved now."""
    state = pipeline.out_dir / "checkpoints" / stage / "0123456789abcdef" / "state.pt"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.touch()
    os.utime(state)
    return state


def test_a_stage_to_be_redone_keeps_its_weights_until_the_trainer_has_replaced_them(run_of: Make) -> None:
    pipeline = run_of()
    perform(pipeline, "pretrain")
    before = state_of(pipeline, "pretrain")  # saved by a run that was stopped before
    StageBook(pipeline).redo_from("pretrain")
    for _ in range(2):  # the second time as after a kill before anything was saved
        book = StageBook(pipeline)
        assert book.begin("pretrain")
        assert pipeline.weights("pretrain").exists() and before.exists()
        assert book.must_start_over("pretrain")
    os.utime(state_of(pipeline, "pretrain"), (time.time() + 1, time.time() + 1))  # the trainer saves
    assert StageBook(pipeline).begin("pretrain")
    assert not StageBook(pipeline).must_start_over("pretrain")
    before.unlink()
    pipeline.weights("pretrain").write_text("new weights")  # the trainer ends
    assert StageBook(pipeline).begin("pretrain")
    assert not StageBook(pipeline).must_start_over("pretrain")


def test_a_stage_to_be_redone_before_it_has_ended_once_does_not_take_the_old_state(run_of: Make) -> None:
    pipeline = run_of()
    assert StageBook(pipeline).begin("pretrain")
    state_of(pipeline, "pretrain")
    assert not StageBook(pipeline).must_start_over("pretrain")
    StageBook(pipeline).redo_from("pretrain")
    assert StageBook(pipeline).begin("pretrain")
    assert StageBook(pipeline).must_start_over("pretrain")


def test_a_tokenizer_to_be_trained_anew_stays_until_the_new_one_is_written(run_of: Make) -> None:
    for change in ("redo", "damage", "other data"):
        pipeline = run_of(ENABLE_RUSTBPE="1")
        tokenizer = pipeline.tokenizer_dir / "tokenizer.pkl"
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.write_text("tokenizer")
        book = StageBook(pipeline)
        book.begin("tokenizer")
        book.finish("tokenizer", 1)
        assert not StageBook(pipeline).begin("tokenizer")
        if change == "redo":
            StageBook(pipeline).redo_from("tokenizer")
        elif change == "damage":
            tokenizer.write_text("tokenizer!")
        else:
            pipeline.data_dir.mkdir(exist_ok=True)
            pipeline.texts()[0].write_text("more")
        assert StageBook(pipeline).begin("tokenizer"), change
        assert tokenizer.exists(), change


def test_weights_that_were_altered_stay_until_new_ones_replace_them(run_of: Make) -> None:
    pipeline = run_of()
    perform(pipeline, "pretrain")
    pipeline.weights("pretrain").write_text("other weights")
    book = StageBook(pipeline)
    assert book.begin("pretrain") and book.must_start_over("pretrain")
    assert pipeline.weights("pretrain").read_text() == "other weights"


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_raised_version_of_a_recipe_redoes_its_stage_alone(
    run_of: Make, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    before = {other: StageBook(run_of(optional=OPTIONAL_STAGES)).fingerprint(other) for other in PIPELINE}
    monkeypatch.setitem(RECIPE_VERSION, stage, RECIPE_VERSION[stage] + 1)
    book = StageBook(run_of(optional=OPTIONAL_STAGES))
    assert [other for other in PIPELINE if book.fingerprint(other) != before[other]] == [stage]


def test_another_answer_of_the_rules_redoes_a_training_stage(run_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for rate in (0.1, 0.2):
        pipeline = run_of(optional=OPTIONAL_STAGES)
        monkeypatch.setattr(fingerprints, "values_by_rule", lambda *_, rate=rate: {"learning_rate": rate})
        answers.append({stage: StageBook(pipeline).fingerprint(stage) for stage in PIPELINE})
    trained = [stage for stage in PIPELINE if answers[0][stage] != answers[1][stage]]
    assert trained == [*STAGES, *OPTIONAL_STAGES]


def test_the_state_of_a_stage_tells_what_became_of_it(run_of: Make) -> None:
    def state(**variables: str) -> State:
        return StageBook(run_of(**variables)).state("pretrain")

    pipeline, results = run_of(), run_of().tf_dir / "eval_results.jsonl"
    assert state() is State.NEW
    StageBook(pipeline).begin("pretrain")
    assert state() is State.INTERRUPTED
    assert state(PRETRAIN_ARGS="--seed 7") is State.STALE
    perform(pipeline, "pretrain")
    assert state() is State.DONE
    assert state(PRETRAIN_ARGS="--seed 7") is State.STALE
    judged = results.read_text()
    results.write_text("")
    assert state() is State.NOT_JUDGED
    results.write_text(judged)
    pipeline.heldout("pretrain").parent.mkdir()
    pipeline.heldout("pretrain").write_text("other records")
    assert state() is State.OTHER_EXAM
    pipeline.weights("pretrain").write_text("other weights")
    assert state() is State.BROKEN
    StageBook(pipeline).redo_from("pretrain")
    assert state() is State.REDO


def test_a_record_of_an_earlier_version_counts(run_of: Make) -> None:
    pipeline = run_of()
    perform(pipeline, "pretrain")
    path = pipeline.out_dir / "stages" / "pretrain.json"
    record = json.loads(path.read_text())
    del record["replaces"], record["seconds"]  # it had fewer fields,
    path.write_text(json.dumps(record | {"pid": 1}))  # or others
    assert StageBook(run_of()).state("pretrain") is State.DONE


def test_a_stage_that_was_interrupted_keeps_its_state_and_its_run_id(run_of: Make) -> None:
    pipeline = run_of()
    book = StageBook(pipeline)
    assert book.begin("sft")
    state = state_of(pipeline, "sft")
    run_id = book.run_id("sft")
    again = StageBook(pipeline)
    assert again.begin("sft")
    assert state.exists()
    assert again.run_id("sft") == run_id


def test_weights_that_a_user_trained_by_hand_are_left_to_the_trainer(run_of: Make) -> None:
    pipeline = run_of()
    pipeline.out_dir.mkdir()
    pipeline.weights("pretrain").write_text("by hand")
    assert StageBook(pipeline).begin("pretrain")
    assert pipeline.weights("pretrain").read_text() == "by hand"


def test_an_evaluation_setting_evaluates_again_but_keeps_the_weights(run_of: Make, tmp_path: Path) -> None:
    text = "model: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4}\nevaluate: {max_samples: %d}\n"
    mine = tmp_path / "mine.yaml"
    mine.write_text(text % 1)
    perform(run_of(str(mine)), "dpo")
    first = StageBook(run_of(str(mine))).run_id("dpo")
    mine.write_text(text % 2)
    book = StageBook(run_of(str(mine)))
    assert book.begin("dpo")
    assert run_of(str(mine)).weights("dpo").exists()
    assert book.run_id("dpo") != first


@pytest.mark.parametrize("name", ["FIRST_MINUTES", "DANGER_PROMPTS"])
def test_another_exam_evaluates_again_where_it_is_asked(
    run_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text("one")
    monkeypatch.setattr(fingerprints, name, exam)
    for stage in STAGES:
        perform(run_of(), stage)
    assert not any(StageBook(run_of()).begin(stage) for stage in STAGES)
    exam.write_text("another")
    assert {stage: StageBook(run_of()).begin(stage) for stage in STAGES} == {
        "pretrain": False,
        "sft": True,
        "dpo": True,
    }
    assert all(run_of().weights(stage).exists() for stage in STAGES)


def test_a_moved_repository_stays_done(run_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perform(run_of(), "pretrain")
    for name in ("data_dir", "out_dir", "tf_dir"):
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / f"moved_{name}")
    moved = {name: str(tmp_path / f"moved_{name.lower()}") for name in ("DATA_DIR", "OUT_DIR", "TF_DIR")}
    assert not perform(run_of(**moved), "pretrain")


def test_an_output_that_was_touched_but_not_changed_is_whole(run_of: Make) -> None:
    perform(run_of(), "pretrain")
    os.utime(run_of().weights("pretrain"), (1, 1))
    assert not perform(run_of(), "pretrain")


def test_an_output_of_the_same_size_but_other_content_is_not(run_of: Make) -> None:
    perform(run_of(), "pretrain")
    weights = run_of().weights("pretrain")
    weights.write_text(weights.read_text().upper())
    assert perform(run_of(), "pretrain")


def test_a_stage_that_wrote_nothing_is_not_done(run_of: Make) -> None:
    book = StageBook(run_of())
    book.begin("pretrain")
    with pytest.raises(UserError, match=r"pretrain_64\.pth: missing, though stage pretrain ended"):
        book.finish("pretrain", 1)


def test_a_record_that_was_torn_is_named(run_of: Make) -> None:
    pipeline = run_of()
    perform(pipeline, "pretrain")
    (pipeline.out_dir / "stages" / "pretrain.json").write_text("{")
    with pytest.raises(UserError, match=r"pretrain\.json: can't be read .* Delete it"):
        StageBook(pipeline).begin("pretrain")


def test_unfinished_files_of_a_killed_run_are_removed(run_of: Make) -> None:
    pipeline = run_of()
    leftover = pipeline.data_dir / ".sft_chinese.jsonl.a1b2.tmp"
    leftover.parent.mkdir()
    leftover.touch()
    StageBook(pipeline).begin("mix")
    assert not leftover.exists()


def test_a_run_holds_each_stage_once_and_in_order(run_of: Make) -> None:
    for stage in STAGES:
        perform(run_of(), stage)
    first = {stage: StageBook(run_of()).run_id(stage) for stage in STAGES}
    assert len(set(first.values())) == 1
    perform(run_of(DPO_ARGS="--seed 1"), "dpo")
    both = run_of(SFT_ARGS="--seed 1", DPO_ARGS="--seed 1")
    for stage in ("sft", "dpo"):
        perform(both, stage)
    second = {stage: StageBook(both).run_id(stage) for stage in STAGES}
    assert second["pretrain"] == first["pretrain"]
    assert second["sft"] == second["dpo"] != first["dpo"]


def test_redo_from_a_stage_leaves_the_ones_before_it(run_of: Make) -> None:
    for stage in STAGES:
        perform(run_of(), stage)
    StageBook(run_of()).redo_from("sft")
    assert [perform(run_of(), stage) for stage in STAGES] == [False, True, True]


def test_every_stage_of_the_pipeline_can_begin(run_of: Make) -> None:
    every = run_of(optional=OPTIONAL_STAGES)
    assert [StageBook(every).begin(stage) for stage in PIPELINE] == [True] * len(PIPELINE)


def test_an_optional_stage_joins_the_run_before_it_and_is_left_alone_by_calls_without_it(run_of: Make) -> None:
    with_lora = {"optional": ("lora",)}
    for stage in STAGES:
        perform(run_of(), stage)
    assert perform(run_of(**with_lora), "lora") and not perform(run_of(**with_lora), "lora")
    assert StageBook(run_of(**with_lora)).run_id("lora") == StageBook(run_of()).run_id("dpo")
    StageBook(run_of()).redo_from("dpo")
    assert not perform(run_of(**with_lora), "lora")
    StageBook(run_of(**with_lora)).redo_from("dpo")
    assert perform(run_of(**with_lora), "lora")


def test_unfinished_files_of_weights_in_a_folder_of_their_own_are_removed(run_of: Make) -> None:
    pipeline = run_of(optional=("lora",))
    leftover = pipeline.weights("lora").with_name(".lora_identity_64.pth.a1b2.tmp")
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    StageBook(pipeline).begin("lora")
    assert not leftover.exists()
