"""Pretrain: predict the next token of raw text. 预训练：在原始文本上预测下一个词元。

python trainer/train_pretrain.py --profile cpu
python trainer/train_pretrain.py --data_path my_text.jsonl --epochs 2 --hidden_size 512

Minimised: cross-entropy of every token of a document, given the tokens before it (Radford et al.
2018, eq. 1).
Data: documents, packed end to end in rows. No token looks across the border of two documents.
Start: random weights.
Settings: `pretrain` of the profile. Sizes and rates that are left open follow the rules in
trainer/autoconfig.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.train_run import parse_run
from dataset.lm_dataset import PretrainDataset
from trainer.facts import gather
from trainer.objectives import NextToken
from trainer.recipe import begin, is_done
from trainer.validation import validation_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/pretrain_HIDDEN.pth`."""
    facts = gather(parse_run("pretrain", __doc__ or "", argv))
    if is_done(facts):
        return 0
    rows = PretrainDataset(facts.tensors_path)
    return begin(facts).fit(rows, NextToken(), validation_rows(PretrainDataset, facts.tensors_path))


if __name__ == "__main__":
    run(main)
