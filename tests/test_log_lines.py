"""A run into a file: no carriage return, and at most 60 lines a stage, however many steps and kinds
of questions it has."""

import time
from pathlib import Path
from typing import cast

import pytest
from torch import nn

from configs import progress
from configs.paths import TOKENIZER_DIR
from configs.schema import TrainConfig
from dataset.samples.preference.pairs import KINDS as PAIR_KINDS
from evaluation import report
from evaluation.answers import GENERAL_KINDS
from evaluation.first_minutes import KINDS
from evaluation.intervals import Metric
from scripts import evaluate_stage
from tests.tiny_run import TinyRun
from trainer.loop import BatchStream, Outcome, Run, StopSignal
from trainer.metrics import Metrics
from trainer.optim import MuonAdamW
from trainer.resume import ResumeState
from trainer.runtime import Runtime

LINES_A_STAGE = 60
LINES_OF_RUN_SH = 4
"""The start of a stage, its two commands, its end."""
STAGES = ("pretrain", "sft", "dpo")

TOPICS = {f"topic_{n}": {"value": n / 49, "n": 10} for n in range(49)}
ANSWERS = {"constant": 0.25, "nearest": 0.5}
PAIRS = {"length": 0.5, "nearest": 0.5}


def share(baselines: dict[str, float] | None = None, topics: dict[str, dict[str, float]] | None = None) -> Metric:
    """A share of its widest form."""
    return Metric(1.0, 12_345, 0.985, 1.0, 1_234, baselines, topics or {})


def metrics_of(stage: str) -> dict[str, Metric]:
    """Every metric that a stage has on the bundled data."""
    plain = ["loss", "perplexity", "bits_per_byte"]
    if stage == "pretrain":
        return {name: share() for name in [*plain, "bits_per_byte_corpus", "bits_per_byte_chat"]}
    kinds = [f"_{kind}" for kind in (*PAIR_KINDS, "hard")] if stage == "dpo" else None
    metrics: dict[str, Metric] = {}
    if kinds is not None:
        for kind in ["", *kinds]:
            stem = "preference_accuracy_length_normalized"
            metrics |= {f"preference_accuracy{kind}": share(PAIRS), f"{stem}{kind}": share(PAIRS)}
            metrics[f"{stem}{kind}_before"] = share(PAIRS)
        for end in ("", "_before"):
            metrics[f"preference_accuracy_no_reference{end}"] = share(PAIRS)
        metrics["reward_margin"] = share()
    conditions = ["ended", "name_in_other_answers", "declined_known_facts", "help_line_in_harmless"]
    accuracies = [
        *(f"general_{kind}" for kind in GENERAL_KINDS), "knowledge", "knowledge_claims", "knowledge_turns", "knowledge_unknown",
        "math", *(f"math_{kind}" for kind in ("basic", "beyond", "claims", "times", "turns", "word")),
    ]  # fmt: skip
    return (
        metrics
        | {name: share() for name in [*plain, *conditions]}
        | {f"accuracy_{name}": share(ANSWERS) for name in accuracies}
        | {"accuracy_identity": share(ANSWERS, TOPICS)}
        | {f"first_minutes{end}": share(ANSWERS) for end in ("", "_core", *(f"_{kind}" for kind in KINDS))}
    )


def train_thousands_of_steps(folder: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trainer's loop says in 7,654 steps of a second each."""
    now, num_steps = [0.0], 7_654
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    metrics = Metrics(folder, stage, "abcdef0123", num_steps=num_steps, first_step=0, use_wandb=False, settings={})
    found = {"validation_loss": 1.5} | ({} if stage == "dpo" else {"validation_bits_per_byte": 0.75})
    run = Run(
        TrainConfig(log_interval=1_000, save_interval=10**6),
        Runtime.start("cpu", "float32"),
        num_steps=num_steps,
        state=cast(ResumeState, None),
        resume=None,
        metrics=metrics,
        validate=lambda model: found,
        stop=StopSignal(),
    )
    nothing = cast(nn.Module, None), cast(MuonAdamW, None), cast(BatchStream, None)
    for step in range(1, num_steps + 1):
        now[0] += 1
        run.after_step(Outcome(step, 1e-2, lambda: [1.0, 1.25, 0.5, 4_096.0, 4_096.0, 0.0, 1.0]), *nothing)
    metrics.close()


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a file would hold by now."""
    shown = capsys.readouterr()
    text = shown.err + shown.out
    assert "\r" not in text
    return text.splitlines()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_of_thousands_of_steps_with_every_kind_of_question_writes_at_most_60_lines(
    tiny: TinyRun, stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.path(stage).unlink()
    capsys.readouterr()
    assert tiny.train(stage, "--seed", "9") == 0
    around = [line for line in written(capsys) if not line.startswith("step ")]
    train_thousands_of_steps(tiny.tf_dir, stage, monkeypatch)
    loop = written(capsys)
    assert sum(line.startswith(stage) for line in loop) == progress.SHARES_SHOWN
    assert sum(line.startswith("step ") for line in loop) == 5

    full = metrics_of(stage)
    monkeypatch.setattr(evaluate_stage, "tables", lambda metrics: report.tables(full))
    assert (
        evaluate_stage.main(
            [
                "--stage",
                stage,
                "--profile",
                "smoke",
                "--device",
                "cpu",
                "--tokenizer_dir",
                str(TOKENIZER_DIR),
                "--checkpoint",
                str(tiny.path(stage)),
                "--data_path",
                str(tiny.data / f"{stage}_heldout.jsonl"),
                "--results_file",
                str(tiny.out / "results.jsonl"),
            ]
        )
        == 0
    )
    evaluation = written(capsys)
    assert len(evaluation) >= len(report.tables(full)) + 3
    assert LINES_OF_RUN_SH + len(around) + len(loop) + len(evaluation) <= LINES_A_STAGE


def test_validations_and_figures_are_in_the_lines_of_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_thousands_of_steps(tmp_path, "sft", monkeypatch)
    lines = written(capsys)
    assert "step 1531/7654: validation_loss 1.5000, validation_bits_per_byte 0.7500" in lines
    assert any(line.startswith("sft 60% (4,593/7,654 steps) 1:16:33, 51:01 left") for line in lines)


def test_the_tables_say_everything_that_they_said_in_more_lines() -> None:
    text = "\n".join(report.tables(metrics_of("dpo")))
    for name in (
        *GENERAL_KINDS,
        *KINDS,
        *PAIR_KINDS,
        "hard",
        "knowledge_unknown",
        "math_word",
        "ended",
        "reward_margin",
    ):
        assert name in text, name
