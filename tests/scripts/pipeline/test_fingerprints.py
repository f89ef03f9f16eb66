"""Fingerprints of stages: the values that rules choose are part of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.artifacts import write_json
from configs.stage_table import STAGE_TABLE, STAGES
from dataset.tensors import Manifest, SourceFacts
from scripts.pipeline import fingerprints
from scripts.pipeline.ask import command_of
from scripts.pipeline.book import StageBook
from scripts.pipeline.fingerprints import RULE_FILES, values_by_rule
from scripts.pipeline.plan import Pipeline, pipeline_from_environment
from trainer import autoconfig, facts


def write_manifest(folder: Path, data: str, rows: int) -> None:
    """The manifest of tensors of so many rows, without the tensors."""
    manifest = Manifest(
        data=data,
        max_length=512,
        vocab_size=300,
        pad_id=0,
        tokenizer_sha256="",
        source=SourceFacts(sha256=""),
        validation=None,
        rows=rows,
        num_tokens=rows * 512,
        fingerprint="",
        files={},
    )
    write_json(folder / "manifest.json", manifest.as_json())


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The default profile in this folder, with 5,000 rows of data. Rules choose rates and steps."""
    for name in (*(spec.arguments for spec in STAGE_TABLE.values()), "ENABLE_RUSTBPE", "NUM_GPUS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DATA_DIR", "OUT_DIR", "TF_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in STAGES:
        write_manifest(tmp_path / "data_dir" / f"{name}_tokens", STAGE_TABLE[name].data, 5000)
    monkeypatch.setattr(fingerprints, "RULE_FILES", (tmp_path / "rules.py",))
    (tmp_path / "rules.py").write_text("rules")
    return pipeline_from_environment("default", 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The stages whose rules were asked."""
    stages: list[str] = []
    ask = facts.ask_rules

    def noted(run: Any, *rest: Any) -> dict[str, float]:
        stages.append(run.stage)
        return ask(run, *rest)

    monkeypatch.setattr(facts, "ask_rules", noted)
    yield stages


def test_the_rules_are_asked_once_and_a_rewritten_file_with_the_same_rules_redoes_nothing(
    pipeline: Pipeline, tmp_path: Path, asked: list[str]
) -> None:
    before = StageBook(pipeline).fingerprint("pretrain")
    assert StageBook(pipeline).fingerprint("pretrain") == before
    assert asked == ["pretrain"]
    (tmp_path / "rules.py").write_text("the same rules, in another order")
    assert StageBook(pipeline).fingerprint("pretrain") == before
    assert asked == ["pretrain"] * 2


@pytest.mark.parametrize("name", ["LEARNING_RATE", "STEP_TOKENS_SCALE"])
def test_a_changed_rule_redoes_the_stage_that_left_something_to_it(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = StageBook(pipeline).fingerprint("pretrain")
    monkeypatch.setattr(autoconfig, name, getattr(autoconfig, name) * 9)
    (tmp_path / "rules.py").write_text("another constant")
    assert StageBook(pipeline).fingerprint("pretrain") != before


def test_more_data_is_asked_about_anew(pipeline: Pipeline, tmp_path: Path, asked: list[str]) -> None:
    values = values_by_rule(pipeline, "pretrain", StageBook(pipeline).hashes)
    write_manifest(tmp_path / "data_dir" / "pretrain_tokens", "documents", 5_000_000)
    more = values_by_rule(pipeline, "pretrain", StageBook(pipeline).hashes)
    assert more["tokens_per_step"] > values["tokens_per_step"] > 0
    assert more["learning_rate"] == values["learning_rate"] > 0


def test_without_tensors_the_size_of_a_step_is_left_open(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "data_dir" / "pretrain_tokens" / "manifest.json").unlink()
    assert values_by_rule(pipeline, "pretrain", StageBook(pipeline).hashes)["tokens_per_step"] == 0


def test_a_stage_to_be_redone_is_told_not_to_take_the_weights_that_are_there(pipeline: Pipeline) -> None:
    def command() -> list[str]:
        book = StageBook(pipeline)
        assert book.begin("pretrain")
        return command_of(pipeline, book, "pretrain", "train")

    pipeline.weights("pretrain").parent.mkdir(parents=True, exist_ok=True)
    pipeline.weights("pretrain").write_text("weights")
    assert "--from_resume" not in command()
    StageBook(pipeline).redo_from("pretrain")
    assert command()[-2:] == ["--from_resume", "0"]


def test_the_files_that_hold_the_rules_are_there() -> None:
    assert all(path.is_file() for path in RULE_FILES)
