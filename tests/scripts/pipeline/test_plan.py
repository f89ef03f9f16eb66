"""What a run consists of: the weights that a stage starts from and writes, and its commands."""

import pytest

from configs.stage_table import STAGES
from scripts.pipeline.plan import evaluate_command, export_command, train_command
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
