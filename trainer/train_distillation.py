"""Distillation: a small model learns to predict what a larger one predicts.
蒸馏：小模型学习大模型对每个词元的预测。

python trainer/train_distillation.py --profile cpu --teacher full_sft --preset 128x3
python trainer/train_distillation.py --profile cpu --teacher out/pretrain_192.pth \\
    --data_kind documents --preset 128x3
python trainer/train_distillation.py --profile cpu --from_weight full_dist --on_policy_share 0.5

Minimised, for each target: alpha x cross-entropy of the label + (1 - alpha) x temperature^2 x
divergence from the teacher (Hinton et al. 2015, arXiv:1503.02531). The divergence is that of Jensen
and Shannon, generalised: beta 0 is the forward KL, 1 the reverse KL (Agarwal et al. 2024,
arXiv:2306.13649). A share of the rows can hold the student's own answers, on which it learns by the
reverse KL alone.
Data: conversations, or documents.
Start: random weights, with the shape that the flags give; without any, the teacher's shape with
half of its blocks. With `--from_weight` the student goes on from weights of its own.
Settings: `distill` of the profile.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.stage_settings import DistillConfig
from configs.train_run import parse_run
from dataset.lm_dataset import PretrainDataset, SFTDataset
from trainer.divergence import Mixture
from trainer.facts import gather
from trainer.objectives import Distillation
from trainer.on_policy import OnPolicyStream
from trainer.recipe import begin, is_done
from trainer.teacher import find_teacher, learning_from, student_of
from trainer.validation import validation_rows

ON_POLICY = Mixture(alpha=0.0, beta=1.0, temperature=1.0)
"""The loss on the student's own answers: the reverse KL. Where the student puts its probability,
the teacher must agree."""


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/full_dist_HIDDEN.pth`."""
    asked = parse_run("distill", __doc__ or "", argv)
    teacher = find_teacher(asked)
    facts = learning_from(gather(student_of(asked, teacher)), teacher)
    if is_done(facts):
        return 0
    settings = facts.config
    assert isinstance(settings, DistillConfig)
    if settings.on_policy_share and settings.use_compile is None:
        # The number of rows that the student's answers fill changes from step to step, and each
        # number would be compiled anew.
        facts = replace(facts, config=replace(settings, use_compile=False))
    training = begin(facts)
    objective = Distillation(
        teacher.open(training.runtime.device),
        Mixture(settings.alpha, settings.beta, settings.temperature),
        ON_POLICY,
    )
    kind = SFTDataset if settings.data_kind == "conversations" else PretrainDataset
    rows, heldout = kind(facts.tensors_path), validation_rows(kind, facts.tensors_path)
    if not settings.on_policy_share:
        return training.fit(rows, objective, heldout)
    stream_of = partial(
        OnPolicyStream,
        student=training.model,
        tokenizer=facts.tokenizer,
        share=settings.on_policy_share,
        row_tokens=facts.data.max_length,
        max_gen_len=settings.max_gen_len,
    )
    return training.fit(rows, objective, heldout, stream_of=stream_of)


if __name__ == "__main__":
    run(main)
