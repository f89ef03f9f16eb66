"""DPO: prefer the better of two answers, measured against the model that SFT left. 偏好对齐：相对 SFT 模型偏向更好的回答。

python trainer/train_dpo.py --profile cpu
python trainer/train_dpo.py --data_path my_pairs.jsonl --from_weight full_sft --beta 0.1
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.flags import parse_run
from dataset.lm_dataset import DPODataset
from trainer.objectives import Preference, WithReference, reference_logps, validation_rows
from trainer.recipe import Stage, already_done


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/rlhf_HIDDEN.pth`."""
    stage = Stage(parse_run("dpo", __doc__ or "", argv))
    if already_done(stage):
        return 0
    model = stage.build_model()
    pairs = DPODataset(stage.tensors_path)
    heldout = validation_rows(DPODataset, stage.tensors_path)
    parts = {"train": pairs, "validation": heldout} if heldout is not None else {"train": pairs}
    reference = reference_logps(stage, parts)  # the frozen model runs once over the data, not once a step
    return stage.fit(
        model,
        WithReference(pairs, reference["train"]),
        Preference(stage.config.beta, stage.config.sft_loss_weight),
        WithReference(heldout, reference["validation"]) if heldout is not None else None,
    )


if __name__ == "__main__":
    run(main)
