"""GRPO: sample several answers to each prompt, and make those more likely that are better than the
others.
组相对策略优化：每个提示采样多个回答，提高优于同组的回答的概率。

python trainer/train_grpo.py --profile cpu
python trainer/train_grpo.py --data_path my_prompts.jsonl --reward my_reward.py:score
python trainer/train_grpo.py --data_path prompts_words --beta 0.02

Minimised: -r A for each token of an answer, where A is the reward of the answer less the mean of
its group, and r is the probability of the token over that when it was sampled, clipped (GRPO,
arXiv:2402.03300, eq. 3, without its two biases: arXiv:2503.20783). `--advantage`, `--ratio` and
`--loss_mean` give the variants (trainer/losses.py).
Data: prompts with a gold answer or a rule: `prompts_sums`, `prompts_words`, or your conversations.
Start: the weights of SFT. They must be right sometimes: where all answers to a prompt are equally
good or bad, nothing is learnt from it.
Settings: `grpo` of the profile.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from configs.cli import run
from configs.stage_settings import GRPOConfig
from configs.train_run import parse_run
from trainer.facts import gather
from trainer.losses import clipped_share, group_advantages, kl_to_reference, policy_losses, token_weights
from trainer.optim import build_optimizer, lr_at, set_lr
from trainer.policy_loop import PolicyRun, Stateful, with_reward
from trainer.recipe import begin, is_done
from trainer.rollout import Rollout


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/grpo_HIDDEN.pth`."""
    facts, reward = with_reward(gather(parse_run("grpo", __doc__ or "", argv)))
    if is_done(facts):
        return 0
    return PolicyRun(begin(facts), reward).fit(train)


def train(run: PolicyRun) -> None:
    """Each step: sample answers, compare them within their group, update the policy.

    Shapes: P prompts, G answers to each, B = P G.
    """
    settings = run.config
    assert isinstance(settings, GRPOConfig)
    optimizer = build_optimizer(run.model, settings, torch.float32)
    parts: dict[str, Stateful] = {"model": run.model, "optimizer": optimizer}
    for step in run.steps(parts):
        lr = lr_at(step, run.num_steps, settings)
        set_lr(optimizer, lr)
        answers = run.sample(step)
        advantages = group_advantages(answers.rewards, settings.advantage).flatten().to(run.runtime.device)  # (B,)
        updates = [Update(run, answers.rollout, advantages, rows) for rows in run.minibatches(len(answers.rewards))]
        # The ratio is measured against the policy before the first update, as the training forward
        # pass computes it. So it is exactly 1 in the first update. Where that is the only one, its
        # own forward pass says what it needs.
        for update in updates if len(updates) > 1 else ():
            update.remember_policy()
        for update in updates:
            update.backward()
            update.grad_norm = run.update(optimizer, run.model, taken=bool(update.micro))
        run.after_step(step + 1, parts, answers, figures(run, updates), lr)


class Update:
    """One update of the policy: the answers that it learns from, and the loss over them.

    Shapes: B answers of the step, n those of a micro-batch, N their tokens.
    """

    def __init__(self, run: PolicyRun, rollout: Rollout, advantages: Tensor, rows: Tensor) -> None:
        """Args: advantages (B,). rows: the numbers of this update's answers."""
        settings = run.config
        assert isinstance(settings, GRPOConfig)
        self.run, self.settings, self.rollout, self.advantages = run, settings, rollout, advantages
        # The mean of the loss is over the answers of all processes, those without advantage too.
        counts = torch.stack([torch.tensor(len(rows)).to(rollout.lengths), rollout.lengths[rows].sum()]).float()
        answers, tokens = run.runtime.sum_over_ranks(counts).tolist()
        self.weights = token_weights(
            rollout.lengths, settings.loss_mean, answers=answers, tokens=tokens, max_gen_len=settings.max_gen_len
        )  # (B,): of each token of an answer
        # An answer without advantage has no gradient, so it need not be read. The divergence from
        # the reference has one for every answer.
        self.micro = run.micro_batches(rows if run.reference else rows[advantages[rows] != 0])
        self.old: list[Tensor] = []
        """Log-probabilities of the tokens of each micro-batch, before the first update: (N,). Empty
        where this is the only update."""
        self.grad_norm: float | None = None
        self.sums = torch.zeros(3, device=rollout.lengths.device)
        """Clipped tokens, divergence in nats, tokens."""

    @torch.no_grad()
    def remember_policy(self) -> None:
        """Compute what the ratio is measured against."""
        self.old = [self.run.logps(self.run.model, self.rollout.select(rows)) for rows in self.micro]

    def backward(self) -> None:
        """Add the gradient of the loss, micro-batch after micro-batch."""
        settings = self.settings
        for number, rows in enumerate(self.micro):
            rollout = self.rollout.select(rows)
            logps = self.run.logps(self.run.model, rollout)  # (N,)
            old = self.old[number] if self.old else logps.detach()
            self.run.check_agreement(old, rollout)
            row = rollout.row_of_token
            advantages = self.advantages[rows][row]
            losses = policy_losses(logps, old, advantages, ratio=settings.ratio, clip_epsilon=settings.clip_epsilon)
            clipped = clipped_share(logps.detach(), old, advantages, settings.clip_epsilon) * len(logps)
            divergence = torch.zeros_like(clipped)
            if self.run.reference:
                with torch.no_grad():
                    reference = self.run.logps(self.run.reference, rollout)
                kl = kl_to_reference(logps, reference)
                losses = losses + settings.beta * kl
                divergence = kl.detach().sum()
            (losses * self.weights[rows][row]).sum().backward()
            self.sums += torch.stack([clipped, divergence, torch.tensor(float(len(logps))).to(clipped)])


def figures(run: PolicyRun, updates: Sequence[Update]) -> dict[str, float]:
    """What the updates of a step were like, over all processes."""
    sums = run.runtime.sum_over_ranks(sum((update.sums for update in updates), torch.zeros_like(updates[0].sums)))
    clipped, divergence, tokens = sums.tolist()
    norms = [update.grad_norm for update in updates if update.grad_norm is not None]
    return {
        "updates": float(len(norms)),
        "clip_share": clipped / max(tokens, 1.0),
        **({"grad_norm": sum(norms) / len(norms)} if norms else {}),
        **({"kl": divergence / max(tokens, 1.0)} if run.reference else {}),
    }


if __name__ == "__main__":
    run(main)
