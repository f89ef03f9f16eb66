"""DPO: prefer the better of two answers, measured against the model that SFT left.
偏好对齐：相对 SFT 模型偏向更好的回答。

python trainer/train_dpo.py --profile cpu
python trainer/train_dpo.py --data_path my_pairs.jsonl --from_weight full_sft --beta 0.1

Minimised: -log sigmoid(beta x (margin of the model - margin of the reference)) of each pair, where
a margin is the log-probability of the chosen answer less that of the rejected one (Rafailov et al.
2023, arXiv:2305.18290, eq. 7). `--sft_loss_weight` adds the chosen answer's own loss, which keeps
what SFT taught (RPO, arXiv:2404.19733).
Data: pairs of conversations that differ in the last answer.
Start: the weights of SFT. The same weights, frozen, are the reference.
Settings: `dpo` of the profile.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.stage_settings import DPOConfig
from configs.train_run import parse_run
from dataset.lm_dataset import DPODataset
from trainer.facts import gather
from trainer.objectives import Preference
from trainer.recipe import begin, is_done
from trainer.reference import WithReference, reference_logps
from trainer.validation import validation_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/rlhf_HIDDEN.pth`."""
    facts = gather(parse_run("dpo", __doc__ or "", argv))
    if is_done(facts):
        return 0
    training = begin(facts)
    pairs, heldout = DPODataset(facts.tensors_path), validation_rows(DPODataset, facts.tensors_path)
    parts = {"train": pairs} | ({"validation": heldout} if heldout is not None else {})
    # The reference never changes, so it runs once over the data instead of once in each step.
    reference = reference_logps(facts, training.runtime, parts)
    settings = training.config
    assert isinstance(settings, DPOConfig)
    return training.fit(
        WithReference(pairs, reference["train"]),
        Preference(settings.beta, settings.sft_loss_weight),
        WithReference(heldout, reference["validation"]) if heldout is not None else None,
    )


if __name__ == "__main__":
    run(main)
