"""Distillation from end to end: what it learns from, how it resumes, what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.schema import UserError
from configs.stage_table import weight_file
from model.model_minillm import MiniLLM
from model.weights import read_weights, save_weights
from tests.tiny_run import TinyRun, killed_in_step, lively, same
from trainer import train_distillation
from trainer.objectives import Distillation

STUDENT = [
    "--hidden_size=16", "--num_hidden_layers=1", "--num_attention_heads=2", "--num_key_value_heads=1",
    "--intermediate_size=16",
]  # fmt: skip


def words_of(tiny: TinyRun, *words: str) -> list[str]:
    """Flags: a student smaller than the teacher, which is what SFT left."""
    return [*STUDENT, "--teacher", str(tiny.path("sft")), *words]


def teacher_file(tiny: TinyRun, name: str, seed: int, **changes: str) -> Path:
    """Other weights of the teacher's shape. `changes`: of its manifest."""
    _, config, manifest = read_weights(tiny.path("sft"))
    path = tiny.out / name
    save_weights(path, lively(MiniLLM(config), seed), replace(manifest, **changes))  # type: ignore[arg-type]
    return path


def test_a_student_is_written_with_its_teacher_in_the_manifest(tiny: TinyRun) -> None:
    assert tiny.train("distill", *words_of(tiny)) == 0
    state, config, manifest = read_weights(tiny.path("distill"))
    assert config.intermediate_size == 16 and all(tensor.isfinite().all() for tensor in state.values())
    assert manifest.stage == "distill" and "teacher" in manifest.inputs
    assert "teacher" not in manifest.settings.train  # its content counts, not its name
    seen = {Path(file.path).name for file in manifest.training_data}
    assert seen >= {"sft.jsonl", "pretrain.jsonl"}  # what the teacher has seen, the student has seen through it
    assert len(tiny.metric("distill", "validation_bits_per_byte")) > 0


def test_another_teacher_is_another_run_and_its_name_alone_is_not(tiny: TinyRun) -> None:
    assert tiny.train("distill", *words_of(tiny)) == 0
    before, fingerprint = tiny.weights("distill"), tiny.manifest("distill").fingerprint
    copy = tiny.out / "copy.pth"
    copy.write_bytes(tiny.path("sft").read_bytes())
    written = tiny.path("distill").stat().st_mtime_ns
    assert tiny.train("distill", *words_of(tiny, "--teacher", str(copy))) == 0
    assert tiny.path("distill").stat().st_mtime_ns == written
    assert tiny.train("distill", *words_of(tiny, "--teacher", str(teacher_file(tiny, "other.pth", 5)))) == 0
    assert tiny.manifest("distill").fingerprint != fingerprint
    assert not same(tiny.weights("distill"), before)


def test_alpha_1_trains_as_sft_would_from_scratch(tiny: TinyRun) -> None:
    assert tiny.train("distill", *words_of(tiny, "--alpha=1", "--learning_rate=0.01")) == 0
    before = tiny.metric("distill")
    other = teacher_file(tiny, "other.pth", 5)
    assert tiny.train("distill", *words_of(tiny, "--alpha=1", "--learning_rate=0.01", "--teacher", str(other))) == 0
    assert tiny.metric("distill") == before
    assert (
        tiny.train("sft", *STUDENT, "--from_weight=none", "--learning_rate=0.01", "--out_dir", str(tiny.out / "b")) == 0
    )
    assert list(tiny.metric("sft").values()) == pytest.approx(list(before.values()), rel=1e-4)


@pytest.mark.parametrize("share", ["0", "0.5", "1"])
def test_a_killed_run_resumes_to_the_same_weights(tiny: TinyRun, share: str) -> None:
    words = words_of(tiny, f"--on_policy_share={share}", "--max_gen_len=8", "--temperature=2", "--beta=0.5")
    assert tiny.train("distill", *words) == 0
    unbroken, losses = tiny.weights("distill"), tiny.metric("distill")
    tiny.path("distill").unlink()
    with killed_in_step(5):
        tiny.train("distill", *words)
    assert len(tiny.states("distill")) == 1
    assert tiny.train("distill", *words) == 0
    assert same(tiny.weights("distill"), unbroken)
    assert tiny.metric("distill")[6] == losses[6]


def test_on_its_own_answers_the_student_learns_something_else(tiny: TinyRun) -> None:
    assert tiny.train("distill", *words_of(tiny)) == 0
    before = tiny.weights("distill")
    assert tiny.train("distill", *words_of(tiny, "--on_policy_share=1", "--max_gen_len=8")) == 0
    assert not same(tiny.weights("distill"), before)


def test_the_teacher_stays_as_it_is(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Distillation] = []

    class Watched(Distillation):
        """Notes itself."""

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            kept.append(self)

    monkeypatch.setattr(train_distillation, "Distillation", Watched)
    assert tiny.train("distill", *words_of(tiny)) == 0
    teacher = kept[0].teacher
    assert same(teacher.state_dict(), tiny.weights("sft")) and not teacher.training
    assert all(one.grad is None and not one.requires_grad for one in teacher.parameters())


def test_documents_are_distilled_too(tiny: TinyRun) -> None:
    words = ["--data_kind=documents", "--data_path", str(tiny.data / "pretrain.jsonl"), "--teacher=pretrain"]
    assert tiny.train("distill", *STUDENT, *words) == 0
    assert tiny.manifest("distill").settings.train["data_kind"] == "documents"
    with pytest.raises(UserError, match="no prompts to answer"):
        tiny.train("distill", *STUDENT, *words, "--on_policy_share=0.5")


def test_without_a_shape_the_student_has_half_of_the_teachers_blocks(tiny: TinyRun) -> None:
    path = tiny.out / "deep_16.pth"
    _, config, manifest = read_weights(tiny.path("sft"))
    torch.manual_seed(1)
    save_weights(path, MiniLLM(replace(config, num_hidden_layers=4)), manifest)
    assert tiny.train("distill", "--teacher", str(path)) == 0
    _, shape, _ = read_weights(tiny.path("distill"))
    assert shape == replace(config, num_hidden_layers=2, original_max_position_embeddings=32)
    assert tiny.path("distill").name == weight_file("distill", shape)


def test_a_student_may_start_from_weights_of_its_own(tiny: TinyRun) -> None:
    words = ["--teacher", str(tiny.path("sft")), "--from_weight", str(tiny.path("pretrain"))]
    assert tiny.train("distill", *words) == 0
    start = tiny.manifest("distill").start
    assert start is not None and start.path == tiny.path("pretrain").name


def test_a_teacher_with_another_vocabulary_is_refused_in_one_line(tiny: TinyRun) -> None:
    stranger = teacher_file(tiny, "stranger.pth", 5, tokenizer_sha256="0" * 64)
    with pytest.raises(UserError, match="another tokenizer") as refused:
        tiny.train("distill", *words_of(tiny, "--teacher", str(stranger)))
    assert "\n" not in refused.value.line and "stranger.pth" in refused.value.line


@pytest.mark.parametrize("name", ["no_such", "no/such.pth", "no/such/folder"])
def test_a_teacher_that_is_not_there_is_refused_in_one_line(tiny: TinyRun, name: str) -> None:
    with pytest.raises(UserError) as refused:
        tiny.train("distill", *words_of(tiny, "--teacher", name))
    assert "\n" not in refused.value.line
