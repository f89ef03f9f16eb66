"""SFT: learn to answer, every assistant turn supervised and nothing else. 指令微调：只监督助手的每一轮回答。

python trainer/train_full_sft.py --profile cpu
python trainer/train_full_sft.py --data_path my_chats.jsonl --from_weight pretrain
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.flags import parse_run
from dataset.lm_dataset import SFTDataset
from trainer.objectives import NextToken, validation_rows
from trainer.recipe import Stage, already_done


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/full_sft_HIDDEN.pth`."""
    stage = Stage(parse_run("sft", __doc__ or "", argv))
    if already_done(stage):
        return 0
    rows = SFTDataset(stage.tensors_path)
    return stage.fit(stage.build_model(), rows, NextToken(), validation_rows(SFTDataset, stage.tensors_path))


if __name__ == "__main__":
    run(main)
