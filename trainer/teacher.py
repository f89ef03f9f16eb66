"""The teacher of a distillation: found, checked, opened, frozen."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from configs.paths import display, find_dataset, find_model_folder, latest_weights
from configs.schema import ModelConfig, UserError
from configs.stage_settings import DistillConfig
from configs.train_run import TrainRun
from inference.loading import tokenizer_of
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import load_model, read_weights, weights_fingerprint
from trainer.facts import Facts, depending_on


@dataclass(frozen=True)
class Teacher:
    """What is read of the teacher before the first step."""

    path: Path
    sha256: str
    """Hash of its content."""
    shape: ModelConfig
    manifest: WeightsManifest

    def open(self, device: torch.device) -> MiniLLM:
        """The teacher itself, frozen. Raises: UserError."""
        model, _ = load_model(self.path, device=device)
        return model.requires_grad_(False).eval()


def find_teacher(run: TrainRun) -> Teacher:
    """The weights that `--teacher` names: a path, a Hugging Face folder, or the beginning of a file
    name in OUT_DIR (`full_sft`), of which the newest counts.

    Raises: UserError if there are none, or if they are damaged.
    """
    assert isinstance(run.train, DistillConfig)
    name = run.train.teacher
    if name.endswith(".pth"):
        path = find_dataset(Path(name))
    elif os.sep in name or Path(name).is_dir():
        path = find_model_folder(Path(name))
    else:
        path = latest_weights(name, run.out_dir)
    sha256 = weights_fingerprint(path)
    _, shape, manifest = read_weights(path)
    return Teacher(path, sha256, shape, manifest)


def student_of(run: TrainRun, teacher: Teacher) -> TrainRun:
    """The same run, with the shape of the student where nobody gave one: that of the teacher with
    half of its blocks."""
    if run.shape_flags or run.from_weight != "none":
        return run
    layers = max(1, teacher.shape.num_hidden_layers // 2)
    return replace(run, model=replace(teacher.shape, num_hidden_layers=layers, rope_scaling_factor=1.0))


def learning_from(facts: Facts, teacher: Teacher) -> Facts:
    """The facts of a run that also depends on its teacher, and sees what the teacher has seen.

    Raises: UserError if the tokens of the two do not mean the same.
    """
    tokenizer, manifest = tokenizer_of(
        teacher.path, teacher.manifest, teacher.shape, None if teacher.path.is_dir() else facts.run.tokenizer_dir
    )
    if tokenizer.sha256 != facts.tokenizer.sha256 or teacher.shape.vocab_size < facts.shape.vocab_size:
        raise UserError(
            f"{display(teacher.path)}: a teacher with another vocabulary ({tokenizer.sha256[:8]}, "
            f"{teacher.shape.vocab_size} tokens) than the data ({facts.tokenizer.sha256[:8]}, {facts.shape.vocab_size}): token "
            "by token they can't be compared. Train on its answers instead: python scripts/teacher_answers.py --teacher "
            f"{display(teacher.path)} --input CHATS.jsonl --output ANSWERS.jsonl.",
            "教师的词表不同，无法逐词元蒸馏：请用该命令让教师作答，再以其回答做指令微调",
        )
    return depending_on(facts, "teacher", teacher.sha256, *manifest.training_data)
