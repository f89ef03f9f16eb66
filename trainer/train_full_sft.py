"""SFT: learn to answer, every assistant turn supervised and nothing else.
指令微调：只监督助手的每一轮回答。

python trainer/train_full_sft.py --profile cpu
python trainer/train_full_sft.py --data_path my_chats.jsonl --from_weight pretrain

Minimised: cross-entropy of the assistant's tokens, the end of each turn included, given all tokens
before them (Ouyang et al. 2022, arXiv:2203.02155, section 3.5). What the user says is read, but is
no target.
Data: conversations, packed in rows like documents. `--replay_share` takes rows of the mix beside
them, so that a model that learns something new keeps what it knows (trainer/replay.py).
Start: the pretrained weights.
Settings: `sft` of the profile.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.train_run import parse_run
from dataset.lm_dataset import SFTDataset
from trainer.facts import gather
from trainer.objectives import NextToken
from trainer.recipe import begin, is_done
from trainer.replay import find_replay
from trainer.validation import validation_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/full_sft_HIDDEN.pth`."""
    facts, replay = find_replay(gather(parse_run("sft", __doc__ or "", argv)))
    if is_done(facts):
        return 0
    new = SFTDataset(facts.tensors_path)
    rows = replay.beside(new) if replay else new
    return begin(facts).fit(rows, NextToken(), validation_rows(SFTDataset, facts.tensors_path))


if __name__ == "__main__":
    run(main)
