"""Reasoning: learn to think in short steps before the answer, from thoughts that were written down.
推理：先写出思考步骤再回答，从现成的思考过程中学习。

python trainer/train_distill_reason.py --profile cpu
python trainer/train_distill_reason.py --data_path r1_mix_1024.jsonl --from_weight full_sft

Minimised: cross-entropy of the thought and of the answer behind it (Wei et al. 2022,
arXiv:2201.11903, for what thoughts do; DeepSeek-AI 2025, arXiv:2501.12948, section 2.4, for
learning them from another model's). With `--tag_weight` W the marks around thought and answer
count W times: sum w nats / sum w. In each step some rows come from the SFT mix
(`--replay_share`).
Data: conversations with `reasoning_content`. One with several thoughts becomes several records,
each with the text that it has in use (`training_views` in dataset/chat.py).
Start: the weights of SFT. Reasoning needs single steps that are right.
Settings: `reason` of the profile.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs.cli import run
from configs.stage_settings import ReasonConfig
from configs.train_run import parse_run
from dataset.lm_dataset import SFTDataset
from dataset.tokenizer import RustBPETokenizer
from trainer.facts import gather
from trainer.objectives import NextToken, WeightedTokens
from trainer.recipe import begin, is_done
from trainer.replay import find_replay
from trainer.validation import validation_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/reason_HIDDEN.pth`."""
    facts, replay = find_replay(gather(parse_run("reason", __doc__ or "", argv)))
    if is_done(facts):
        return 0
    settings = facts.run.train
    assert isinstance(settings, ReasonConfig)
    objective = objective_of(facts.tokenizer, facts.shape.vocab_size, settings.tag_weight)
    new = SFTDataset(facts.tensors_path)
    rows = replay.beside(new) if replay else new
    return begin(facts).fit(rows, objective, validation_rows(SFTDataset, facts.tensors_path))


def objective_of(tokenizer: RustBPETokenizer, vocab_size: int, tag_weight: float) -> NextToken:
    """The loss in which the marks of thought and answer count `tag_weight` times."""
    if tag_weight == 1.0:
        return NextToken()  # the same, with one product less
    weights = torch.ones(vocab_size)
    weights[mark_ids(tokenizer)] = tag_weight
    return WeightedTokens(weights)


def mark_ids(tokenizer: RustBPETokenizer) -> list[int]:
    """Ids of the marks: the thought begins, it ends and the answer begins, the answer ends.

    In tokenizers of others a mark may be text of several tokens. Such a mark is not counted.
    """
    marks = (*tokenizer.chat_format.thought, tokenizer.chat_format.answer_end)
    return [tokenizer.special_tokens[mark] for mark in marks if mark in tokenizer.special_tokens]


if __name__ == "__main__":
    run(main)
