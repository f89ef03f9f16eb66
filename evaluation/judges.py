"""What a reward model stands beside: other weights that prefer one answer of a pair.

They are the weights that it started from, by log-probability, and DPO's weights from the same
start, by their implicit reward.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from dataset.tensors import IGNORE
from evaluation.likelihood import Row
from evaluation.preference import PairScore, score_pairs
from evaluation.reward import Preferred
from model.heads import RewardModel
from model.model_minillm import MiniLLM
from model.weights import load_model, read_made

Rows = Sequence[tuple[Row, Row]]
"""Inputs and labels of both sides of each pair (`pair_rows`)."""


def rewards_of_pairs(reward: RewardModel, rows: Rows) -> list[Preferred]:
    """The rewards of both answers of each pair, read at their end tokens."""
    chosen, rejected = (reward.score([_to_the_end(pair[side]) for pair in rows]).tolist() for side in (0, 1))
    return [Preferred(*both) for both in zip(chosen, rejected, strict=True)]


def _to_the_end(row: Row) -> list[int]:
    """The ids of a row up to its last target: to the end token, which no input is any more."""
    inputs, labels = row
    last = max(place for place, label in enumerate(labels) if label != IGNORE)
    return [*inputs[: last + 1], labels[last]]


def other_judges(rows: Rows, start: MiniLLM, dpo: Path | None, device: torch.device) -> dict[str, list[Preferred]]:
    """Judge -> what it gives to both answers: `sft`, `sft_length_normalized`, and `dpo` where there
    are such weights.

    Args: start: the weights of SFT, which are also the reference of DPO.
    """
    by_start = score_pairs(start, rows, label="SFT")
    judges = {
        "sft": [Preferred(one.chosen, one.rejected) for one in by_start],
        "sft_length_normalized": [
            Preferred(one.chosen / one.chosen_tokens, one.rejected / one.rejected_tokens) for one in by_start
        ],
    }
    if dpo is not None:
        by_dpo = score_pairs(load_model(dpo, device=device)[0].eval(), rows, label="DPO")
        judges["dpo"] = [_implicit(*both) for both in zip(by_dpo, by_start, strict=True)]
    return judges


def _implicit(policy: PairScore, reference: PairScore) -> Preferred:
    """Implicit rewards (arXiv:2305.18290, eq. 5) but for beta, which changes no order."""
    return Preferred(policy.chosen - reference.chosen, policy.rejected - reference.rejected)


def dpo_beside(checkpoint: Path, start_sha256: str) -> Path | None:
    """DPO's weights in the folder of a reward model that started from the same weights; the newest.

    None if there are none.
    """
    found = []
    for path in checkpoint.parent.glob(f"{STAGE_TABLE['dpo'].weights}_*.pth"):
        try:
            start = read_made(path).start
        except UserError:
            continue  # damaged: it is not what is judged here
        if start is not None and start.sha256 == start_sha256:
            found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
