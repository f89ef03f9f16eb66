"""Reward model: give the better of two answers the higher number.
奖励模型：给更好的回答打更高的分。

python trainer/train_reward.py --profile cpu
python trainer/train_reward.py --data_path my_pairs.jsonl --from_weight full_sft

Minimised: -log sigmoid(reward of the chosen answer - reward of the rejected one) of each pair
(Ouyang et al. 2022, arXiv:2203.02155, eq. 1), and `--centering` x (sum of both rewards)^2
(arXiv:2312.09244).
Data: pairs of conversations that differ in the last answer.
Start: the weights of SFT, and a head of zeros that reads the end token of an answer.
Kept with the weights: how often the chosen answer gets the higher reward in validation pairs of
like length. GRPO and PPO refuse a reward model that is not better than chance there.
Settings: `reward` of the profile.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.schema import UserError
from configs.stage_settings import RewardConfig
from configs.train_run import parse_run
from dataset.lm_dataset import DPODataset
from model.heads import attach_reward_head, evidence
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import save_weights
from trainer.facts import gather
from trainer.objectives import Reward
from trainer.recipe import begin, is_done
from trainer.reward_accuracy import matched_accuracy
from trainer.validation import validation_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/reward_HIDDEN.pth`."""
    facts = gather(parse_run("reward", __doc__ or "", argv))
    if facts.start is None:
        raise UserError(
            "--from_weight none: a reward model needs weights that know the language. Name them, such as full_sft.",
            "奖励模型需要起始权重：请指定，例如 full_sft",
        )
    if is_done(facts):
        return 0
    pairs, heldout = DPODataset(facts.tensors_path), validation_rows(DPODataset, facts.tensors_path)

    def save(path: Path, model: MiniLLM, manifest: WeightsManifest) -> None:
        accuracy = matched_accuracy(model, heldout) if heldout is not None else None
        kept = {} if accuracy is None else accuracy.as_json()
        save_weights(path, model, replace(manifest, reward_accuracy=kept))
        facts.say("reward: " + evidence(kept))

    def add_head(model: MiniLLM) -> None:
        attach_reward_head(model)

    settings = facts.config
    assert isinstance(settings, RewardConfig)
    return begin(facts, add_head, save).fit(pairs, Reward(settings.centering), heldout)


if __name__ == "__main__":
    run(main)
