"""The facts of a run: of a whole one, of one without a stage, and of one that crashed."""

import pytest

from configs.schema import UserError
from evaluation.run_report.facts import changed_settings, read_run
from model.manifest import TrainedSettings, WeightsManifest
from tests.evaluation.run_report.small_run import SmallRun


def test_a_whole_run_has_all_its_stages_with_curves_and_scores(small: SmallRun) -> None:
    facts = read_run(small.whole().folders)
    assert list(facts["stages"]) == ["pretrain", "sft", "dpo"]
    assert (facts["profile"], facts["run_id"]) == ("cpu", "r1")
    sft = facts["stages"]["sft"]
    assert (sft["state"], sft["seconds"], sft["steps"], sft["tokens"]) == ("done", 61, 200, 512 * 20)
    assert sft["curves"]["loss"][0] == (10, 4.0)
    assert sft["curves"]["validation_loss"][-1] == (200, 0.99)
    assert sft["evaluation"]["metrics"]["accuracy_math"]["value"] == 0.9
    assert sft["weights"]["start_sha256"] == facts["stages"]["pretrain"]["weights"]["sha256"]
    assert sft["weights"]["changed"] == {"epochs": {"value": 3, "default": 1}}
    assert facts["mix"]["rejects"] == {"bad JSON": 1}


def test_a_run_without_a_stage_has_the_others(small: SmallRun) -> None:
    small.whole().path("dpo").unlink()
    (small.folders.out / "stages" / "dpo.json").unlink()
    (small.folders.data / "mix_manifest.json").unlink()
    facts = read_run(small.folders)
    assert list(facts["stages"]) == ["pretrain", "sft"]
    assert facts["mix"] == {}


def test_a_stage_that_crashed_shows_how_far_it_came(small: SmallRun) -> None:
    small.whole().path("sft").unlink()
    small.note("sft", status="running", seconds=0)
    (small.folders.out / "checkpoints" / "sft" / ("e" * 64)).mkdir(parents=True)
    small.metrics("sft", [3.0, 2.0], [], fingerprint="e" * 64)
    with (small.folders.results / "metrics" / "sft_eeeeeeee.jsonl").open("a") as file:
        file.write('{"step": 3')  # torn
    sft = read_run(small.folders)["stages"]["sft"]
    assert (sft["state"], sft["steps"], sft["seconds"], sft["weights"]) == ("unfinished", 20, None, None)


def test_a_trainer_that_was_stopped_without_the_pipeline_is_shown_too(small: SmallRun) -> None:
    (small.folders.out / "checkpoints" / "sft" / ("e" * 64)).mkdir(parents=True)
    small.metrics("sft", [3.0, 2.0], [], fingerprint="e" * 64)
    sft = read_run(small.folders)["stages"]["sft"]
    assert (sft["state"], sft["steps"]) == ("unfinished", 20)


def test_a_score_of_other_weights_is_not_taken(small: SmallRun) -> None:
    small.whole().weights("dpo", "sft", fingerprint="d" * 64)
    assert read_run(small.folders)["stages"]["dpo"]["evaluation"] is None


def test_damaged_weights_and_notes_are_left_out(small: SmallRun) -> None:
    small.whole().path("sft").write_bytes(b"no weights")
    (small.folders.out / "stages" / "pretrain.json").write_text("{")
    stages = read_run(small.folders)["stages"]
    assert stages["sft"]["weights"] is None
    assert stages["pretrain"]["seconds"] is None


def test_a_folder_where_nothing_was_trained_is_refused(small: SmallRun) -> None:
    with pytest.raises(UserError, match="no stage has run here"):
        read_run(small.folders)


def test_widths_that_follow_from_others_are_no_changed_settings() -> None:
    settings = TrainedSettings(stage="pretrain", model={"hidden_size": 192, "head_dim": 32}, train={})
    assert list(changed_settings(WeightsManifest(stage="pretrain", settings=settings))) == ["hidden_size"]
