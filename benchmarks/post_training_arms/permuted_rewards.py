"""GRPO whose rewards are shuffled among the answers of a step: a control that must not learn.

The flags are those of trainer/train_grpo.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.cli import run
from configs.train_run import parse_run
from trainer.facts import depending_on, gather
from trainer.policy_loop import PolicyRun, with_reward
from trainer.recipe import begin, is_done
from trainer.rewards import Reward
from trainer.rollout import Sample
from trainer.train_grpo import train


def permuted(reward: Reward) -> Reward:
    """The rewards of the same answers in another order. It depends on the answers alone, so a run
    that was interrupted repeats it. The mean, which a validation takes, stays."""

    def score(samples: Sequence[Sample]) -> list[float]:
        scores = list(reward.score(samples))
        Random(repr([sample.ids for sample in samples])).shuffle(scores)
        return scores

    return Reward(f"{reward.name}, permuted", score, reward.sha256)


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/grpo_HIDDEN.pth`."""
    facts, reward = with_reward(gather(parse_run("grpo", __doc__ or "", argv)))
    facts = depending_on(facts, "permuted", "1")
    if is_done(facts):
        return 0
    return PolicyRun(begin(facts), permuted(reward)).fit(train)


if __name__ == "__main__":
    run(main)
