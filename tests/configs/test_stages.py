"""The stage book: what is done, what starts over, and which commands follow."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs import stages
from configs.schema import UserError
from configs.stage_table import RECIPE_VERSION, STAGE_TABLE, STAGES
from configs.stages import (
    PIPELINE,
    Hashes,
    Pipeline,
    StageBook,
    evaluate_command,
    export_command,
    pipeline_from_environment,
    train_command,
)

Make = Callable[..., Pipeline]


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function that gives the pipeline in this folder under some variables."""

    def make(profile: str = "smoke", gpus_found: int = 0, **variables: str) -> Pipeline:
        for name in (*(spec.arguments for spec in STAGE_TABLE.values()), "ENABLE_RUSTBPE", "NUM_GPUS"):
            monkeypatch.delenv(name, raising=False)
        for name in ("DATA_DIR", "OUT_DIR", "TF_DIR"):
            monkeypatch.setenv(name, str(tmp_path / name.lower()))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return pipeline_from_environment(profile, gpus_found)

    return make


def perform(pipeline: Pipeline, stage: str) -> bool:
    """Let the book decide about a training stage, and do its work; whether there was any."""
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
    assert not book.must_start_over("pretrain")  # the trainer sees by itself that these are of other settings


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
    before = state_of(pipeline, "pretrain")  # of a run that was stopped before
    StageBook(pipeline).redo_from("pretrain")
    for _ in range(2):  # the second after a kill before anything was saved
        book = StageBook(pipeline)
        assert book.begin("pretrain")
        assert pipeline.weights("pretrain").exists() and before.exists()
        assert book.must_start_over("pretrain")
    os.utime(state_of(pipeline, "pretrain"), (time.time() + 1, time.time() + 1))  # it has saved
    assert StageBook(pipeline).begin("pretrain")
    assert not StageBook(pipeline).must_start_over("pretrain")
    before.unlink()
    pipeline.weights("pretrain").write_text("new weights")  # it has ended
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
    before = {other: StageBook(run_of()).fingerprint(other) for other in PIPELINE}
    monkeypatch.setitem(RECIPE_VERSION, stage, RECIPE_VERSION[stage] + 1)
    assert [other for other in PIPELINE if StageBook(run_of()).fingerprint(other) != before[other]] == [stage]


def test_another_answer_of_the_rules_redoes_a_training_stage(run_of: Make) -> None:
    answers = [
        {
            stage: StageBook(run_of(), lambda *_, rate=rate: {"learning_rate": rate}).fingerprint(stage)
            for stage in PIPELINE
        }
        for rate in (0.1, 0.2)
    ]
    assert tuple(stage for stage in PIPELINE if answers[0][stage] != answers[1][stage]) == STAGES


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
    monkeypatch.setattr(stages, name, exam)
    for stage in STAGES:
        perform(run_of(), stage)
    assert not any(StageBook(run_of()).begin(stage) for stage in STAGES)
    exam.write_text("another")
    assert {stage: StageBook(run_of()).begin(stage) for stage in STAGES} == {
        "pretrain": False, "sft": True, "dpo": True,
    }  # fmt: skip
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
    assert [StageBook(run_of()).begin(stage) for stage in PIPELINE] == [True] * len(PIPELINE)


# --- commands --------------------------------------------------------------------------------------------------------


def test_weights_carry_the_shape_of_those_they_start_from(run_of: Make) -> None:
    pipeline = run_of("default", PRETRAIN_ARGS="--hidden_size 640 --use_moe")
    assert [pipeline.weights(stage).name for stage in STAGES] == [
        "pretrain_640_moe.pth", "full_sft_640_moe.pth", "rlhf_640_moe.pth",
    ]  # fmt: skip
    other = run_of("default", SFT_ARGS="--from_weight elsewhere/pretrain_768.pth")
    assert other.weights("dpo").name == "rlhf_768.pth"


def test_dpo_may_start_from_pretraining(run_of: Make) -> None:
    pipeline = run_of(DPO_ARGS="--from_weight pretrain")
    assert train_command(pipeline, "dpo")[-2:] == ["--from_weight", str(pipeline.out_dir / "pretrain_64.pth")]
    command = evaluate_command(pipeline, "dpo", "id")
    assert command[command.index("--reference") + 1] == str(pipeline.out_dir / "pretrain_64.pth")


def test_a_stage_may_start_from_nothing(run_of: Make) -> None:
    assert train_command(run_of(SFT_ARGS="--from_weight none"), "sft")[-2:] == ["--from_weight", "none"]


def test_tensors_are_as_long_as_their_trainer_reads(run_of: Make) -> None:
    command = export_command(run_of(SFT_ARGS="--max_seq_len 77"), "sft")
    assert command[command.index("--max-length") + 1] == "77"


@pytest.mark.parametrize(
    ("variables", "gpus_found", "processes"),
    [
        ({}, 0, 1),
        ({}, 4, 4),
        ({"NUM_GPUS": "2"}, 4, 2),
        ({"PRETRAIN_ARGS": "--device cpu"}, 4, 1),
        ({"PRETRAIN_ARGS": "--device cuda:1"}, 4, 1),
    ],
)
def test_a_process_for_each_gpu_that_trains(
    run_of: Make, variables: dict[str, str], gpus_found: int, processes: int
) -> None:
    pipeline = run_of("default", gpus_found, **variables)
    assert pipeline.processes("pretrain") == processes
    assert (train_command(pipeline, "pretrain")[0].endswith("trainer/torchrun.py")) == (processes > 1)


def test_hashes_are_read_again_only_when_size_or_time_changed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    os.utime(file, ns=(5, 5))
    hashes = Hashes(tmp_path / "hashes.json", {"base": tmp_path})
    first = hashes.sha256(file)
    hashes.save()
    file.write_text("two")
    os.utime(file, ns=(5, 5))
    assert Hashes(tmp_path / "hashes.json", {"base": tmp_path}).sha256(file) == first
    os.utime(file, ns=(6, 6))
    assert Hashes(tmp_path / "hashes.json", {"base": tmp_path}).sha256(file) != first
    assert hashes.sha256(tmp_path / "missing") == ""


def test_a_label_leads_back_to_its_file(tmp_path: Path) -> None:
    hashes = Hashes(tmp_path / "hashes.json", {"base": tmp_path / "a"})
    for path in (tmp_path / "a" / "b" / "c.npy", tmp_path / "elsewhere"):
        assert hashes.locate(hashes.label(path)) == path
    assert hashes.label(tmp_path / "a" / "b" / "c.npy") == "base/b/c.npy"
