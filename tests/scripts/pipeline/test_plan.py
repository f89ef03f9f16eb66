"""What a run consists of: the weights that a stage starts from and writes, and its commands."""

from pathlib import Path

import pytest

from configs.stage_table import STAGES
from scripts.pipeline.fingerprints import evaluation_fingerprint, stage_fingerprint
from scripts.pipeline.hashes import Hashes
from scripts.pipeline.plan import MIX_OUTPUTS, Pipeline, evaluate_command, export_command, train_command
from tests.scripts.pipeline.conftest import Make


def test_weights_carry_the_shape_of_those_they_start_from(run_of: Make) -> None:
    pipeline = run_of("default", PRETRAIN_ARGS="--hidden_size 640 --use_moe")
    assert [pipeline.weights(stage).name for stage in STAGES] == [
        "pretrain_640_moe.pth",
        "full_sft_640_moe.pth",
        "rlhf_640_moe.pth",
    ]
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


# --- optional stages ------------------------------------------------------------------------------


def test_an_optional_stage_is_part_of_a_call_only_if_it_is_named(run_of: Make) -> None:
    assert run_of().stages == ("mix", "tokenizer", "export", *STAGES)
    assert run_of(optional=("lora",)).stages == ("mix", "tokenizer", "export", *STAGES, "lora")


def test_the_mix_makes_no_files_for_optional_stages() -> None:
    assert len(MIX_OUTPUTS) == 2 * len(STAGES) + 2


def test_the_weights_of_a_stage_may_lie_in_a_folder_under_a_name_of_the_users(run_of: Make) -> None:
    pipeline = run_of(LORA_ARGS="--lora_name my_model", optional=("lora",))
    assert pipeline.weights("lora") == pipeline.out_dir / "lora" / "my_model_64.pth"


def test_held_out_records_lie_beside_the_data_of_an_optional_stage(run_of: Make, tmp_path: Path) -> None:
    for name in ("chats.jsonl", "chats_heldout.jsonl"):
        (tmp_path / name).touch()

    def heldout_with(data_path: Path) -> Path:
        return run_of(optional=("lora",), LORA_ARGS=f"--data_path {data_path}").heldout("lora")

    default = run_of(optional=("lora",))
    assert default.heldout("lora") == default.data_dir / "lora_identity_heldout.jsonl"
    assert heldout_with(tmp_path / "chats.jsonl") == tmp_path / "chats_heldout.jsonl"
    assert heldout_with(tmp_path / "missing.jsonl") == tmp_path / "missing_heldout.jsonl"
    assert heldout_with(default.tokens("pretrain")) == default.data_dir / "pretrain_chinese_heldout.jsonl"


def fingerprint_of(pipeline: Pipeline, stage: str = "lora") -> str:
    return stage_fingerprint(pipeline, stage, Hashes(pipeline.out_dir / "hashes.json", {}))


def test_a_start_that_an_earlier_call_trained_counts_by_its_content(run_of: Make) -> None:
    pipeline = run_of(optional=("lora",), LORA_ARGS="--from_weight reason")
    assert pipeline.start("lora") is None  # there is none yet: the trainer will say so
    weights = pipeline.out_dir / "reason_64.pth"
    weights.parent.mkdir()
    weights.write_text("one")
    assert pipeline.start("lora") == weights
    before = fingerprint_of(pipeline)
    weights.write_text("another")
    assert fingerprint_of(pipeline) != before


def test_a_teacher_is_the_one_of_this_run_and_counts_by_its_content(run_of: Make) -> None:
    pipeline = run_of(optional=("distill",))
    teacher = pipeline.out_dir / "full_sft_64.pth"
    assert train_command(pipeline, "distill")[-2:] == ["--teacher", str(teacher)]
    before = fingerprint_of(pipeline, "distill")
    teacher.parent.mkdir()
    teacher.write_text("weights")
    assert fingerprint_of(pipeline, "distill") != before


def test_a_student_is_as_wide_as_its_teacher_unless_flags_say_otherwise(run_of: Make) -> None:
    pipeline = run_of(optional=("distill",), PRETRAIN_ARGS="--hidden_size 320")
    assert pipeline.weights("distill").name == "full_dist_320.pth"
    narrow = run_of(optional=("distill",), PRETRAIN_ARGS="--hidden_size 320", DISTILL_ARGS="--preset 128x2")
    assert narrow.weights("distill").name == "full_dist_128.pth"


def test_a_student_of_documents_reads_those_of_the_mix(run_of: Make) -> None:
    pipeline = run_of(optional=("distill",), DISTILL_ARGS="--data_kind documents")
    command = train_command(pipeline, "distill")
    assert command[command.index("--data_path") + 1] == str(pipeline.tokens("pretrain"))
    assert pipeline.heldout("distill") == pipeline.heldout("pretrain")


def test_the_folder_of_another_model_may_be_the_teacher(run_of: Make, tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    pipeline = run_of(optional=("distill",), DISTILL_ARGS=f"--teacher {folder}")
    assert pipeline.also_read("distill") == {"teacher": folder}
    before = fingerprint_of(pipeline, "distill")
    (folder / "model.safetensors").write_text("weights")
    assert fingerprint_of(pipeline, "distill") != before


def test_old_rows_that_are_replayed_count(run_of: Make) -> None:
    pipeline = run_of(optional=("lora",))
    before = fingerprint_of(pipeline)
    rows = pipeline.tokens("sft") / "input_ids.npy"
    rows.parent.mkdir(parents=True)
    rows.write_text("rows")
    assert fingerprint_of(pipeline) != before


def test_an_evaluation_on_a_bundled_set_is_the_same_before_and_after_its_file_is_written(run_of: Make) -> None:
    pipeline = run_of(optional=("lora",))
    before = evaluation_fingerprint(pipeline, "lora", Hashes(pipeline.out_dir / "hashes.json", {}))
    pipeline.data_dir.mkdir()
    pipeline.heldout("lora").write_text("{}\n")
    assert evaluation_fingerprint(pipeline, "lora", Hashes(pipeline.out_dir / "hashes.json", {})) == before != ""
