"""Pretrain: predict the next token of raw text. 预训练：在原始文本上预测下一个词元。

python trainer/train_pretrain.py --profile cpu
python trainer/train_pretrain.py --data_path my_text.jsonl --epochs 2 --hidden_size 512
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.flags import parse_run
from dataset.lm_dataset import PretrainDataset
from trainer.objectives import NextToken, validation_rows
from trainer.recipe import Stage, already_done


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/pretrain_HIDDEN.pth`."""
    stage = Stage(parse_run("pretrain", __doc__ or "", argv))
    if already_done(stage):
        return 0
    rows = PretrainDataset(stage.tensors_path)
    return stage.fit(stage.build_model(), rows, NextToken(), validation_rows(PretrainDataset, stage.tensors_path))


if __name__ == "__main__":
    run(main)
