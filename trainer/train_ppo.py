"""PPO: a second model learns what reward to expect, and answers that exceed it become likelier.
近端策略优化：价值模型预测预期奖励，超出预期的回答变得更可能。

python trainer/train_ppo.py --profile cpu
python trainer/train_ppo.py --data_path my_prompts.jsonl --reward_model_path out/reward_192.pth

Minimised: -min(r A, clip(r, 1 - e, 1 + e) A) for each token of an answer (arXiv:1707.06347, eq. 7).
The advantages A come from a value model (generalised advantage estimates, arXiv:1506.02438), where
GRPO takes those of the whole answer over its group. So PPO can tell which token was the good one,
and pays for it with a second network.
Data, start: those of GRPO (trainer/train_grpo.py). The value model starts as a copy of the policy.
Settings: `ppo` of the profile.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from configs.cli import run
from configs.stage_settings import PPOConfig
from configs.train_run import parse_run
from trainer.facts import gather
from trainer.losses import clipped_share, gae, policy_losses, value_losses, whitened
from trainer.optim import build_optimizer, lr_at, set_lr
from trainer.policy_loop import Answers, PolicyRun, Stateful, with_reward
from trainer.recipe import begin, is_done
from trainer.value_model import ValueModel


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/ppo_actor_HIDDEN.pth`."""
    facts, reward = with_reward(gather(parse_run("ppo", __doc__ or "", argv)))
    if is_done(facts):
        return 0
    return PolicyRun(begin(facts), reward).fit(train)


def train(run: PolicyRun) -> None:
    """Each step: sample answers, estimate the advantage of each token, update policy and values."""
    settings = run.config
    assert isinstance(settings, PPOConfig)
    value_model = ValueModel(run.model).eval()
    optimizer = build_optimizer(run.model, settings, torch.float32)
    value_optimizer = build_optimizer(value_model, settings, torch.float32)
    parts: dict[str, Stateful] = {
        "model": run.model,
        "optimizer": optimizer,
        "value_model": value_model,
        "value_optimizer": value_optimizer,
    }
    for step in run.steps(parts):
        lr = lr_at(step, run.num_steps, settings)
        set_lr(optimizer, lr)
        set_lr(value_optimizer, lr / settings.learning_rate * settings.value_learning_rate)
        answers = run.sample(step)
        estimates = estimate(run, value_model, answers)
        figures = Figures(run)
        for rows in run.minibatches(len(answers.rewards)):
            backward(run, value_model, answers, estimates, rows, figures)
            figures.value_norms.append(run.update(value_optimizer, value_model, taken=True))
            # An untrained value model says nothing yet about which token was good.
            learns = step >= settings.value_warmup_steps
            norm = run.update(optimizer, run.model, taken=learns)
            optimizer.zero_grad(set_to_none=True)
            figures.norms.append(norm)
        run.after_step(step + 1, parts, answers, figures.values(estimates), lr)


# --- what the tokens are worth --------------------------------------------------------------------

# Shapes: P prompts, G answers to each, B = P G, L tokens of the longest answer, N of some answers.


@dataclass(frozen=True, slots=True)
class Estimates:
    """What is known of each token before the first update, (B, L) each; 0 behind an answer."""

    logps: Tensor
    """Of the policy, as the training forward pass computes them."""
    values: Tensor
    advantages: Tensor
    """Whitened over all tokens of the step, in all processes."""
    returns: Tensor
    """What the value model is to predict."""
    kl: float
    """Divergence from the reference in nats a token; 0 without a reference."""


@torch.no_grad()
def estimate(run: PolicyRun, value_model: ValueModel, answers: Answers) -> Estimates:
    """Log-probabilities, values, advantages and returns of all tokens that this process sampled."""
    settings, rollout = run.config, answers.rollout
    assert isinstance(settings, PPOConfig)
    mask = rollout.mask  # (B, L)
    logps, values, rewards = (torch.zeros_like(rollout.logprobs) for _ in range(3))  # (B, L)
    kl = torch.zeros(2, device=mask.device)
    for rows in run.micro_batches(torch.arange(len(rollout))):
        part = rollout.select(rows)
        now = run.logps(run.model, part)  # (N,)
        run.check_agreement(now, part)
        place = (rows.to(mask.device)[:, None].expand(mask[rows].shape))[mask[rows]], places_in(mask[rows])
        logps[place] = now
        with run.runtime.autocast():
            values[place] = value_model.values(part)
        if run.reference:
            # As in InstructGPT (arXiv:2203.02155, eq. 2) the divergence is a part of the reward, a
            # token at a time.
            divergence = now - run.logps(run.reference, part)
            rewards[place] -= settings.beta * divergence
            kl += torch.stack([divergence.sum(), torch.tensor(float(len(now))).to(divergence)])
    # The reward of the answer comes with its last token, and with no other.
    last = rollout.lengths - 1
    rewards[torch.arange(len(rollout)), last] += answers.rewards.flatten().to(rewards)
    advantages, returns = gae(rewards, values, mask, gamma=settings.gamma, lam=settings.gae_lambda)
    kl_sum, kl_tokens = run.runtime.sum_over_ranks(kl).tolist()
    return Estimates(logps, values, whitened_over_ranks(run, advantages, mask), returns, kl_sum / max(kl_tokens, 1.0))


def places_in(mask: Tensor) -> Tensor:
    """The place of each token within its answer, in the order of the answers, (N,)."""
    return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)[mask]


def whitened_over_ranks(run: PolicyRun, advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages with mean 0 and variance 1 over the tokens of all processes, (B, L)."""
    own = advantages[mask].double()
    count, total, squares = run.runtime.sum_over_ranks(
        torch.stack([torch.tensor(float(len(own))).to(own), own.sum(), own.square().sum()])
    )
    mean = total / count
    return whitened(advantages, mean.float(), (squares / count - mean.square()).clamp(min=0).float()) * mask


# --- one update -----------------------------------------------------------------------------------


class Figures:
    """What the updates of a step were like."""

    def __init__(self, run: PolicyRun) -> None:
        self.run = run
        self.norms: list[float | None] = []
        self.value_norms: list[float | None] = []
        self.sums = torch.zeros(4, device=run.runtime.device)
        """Clipped tokens, squared errors of the values, changes of log-probabilities, tokens."""

    def values(self, estimates: Estimates) -> dict[str, float]:
        """The figures over all processes."""
        clipped, errors, moved, tokens = self.run.runtime.sum_over_ranks(self.sums).tolist()
        found = {
            "clip_share": clipped / tokens,
            "value_loss": 0.5 * errors / tokens,
            "approximate_kl": moved / tokens,
            "updates": float(sum(norm is not None for norm in self.norms)),
        }
        for name, norms in (("grad_norm", self.norms), ("value_grad_norm", self.value_norms)):
            if taken := [norm for norm in norms if norm is not None]:
                found[name] = sum(taken) / len(taken)
        return found | ({"kl": estimates.kl} if self.run.reference else {})


def backward(
    run: PolicyRun, value_model: ValueModel, answers: Answers, estimates: Estimates, rows: Tensor, figures: Figures
) -> None:
    """Add the gradients of both losses over some answers. Args: rows: their numbers."""
    settings = run.config
    assert isinstance(settings, PPOConfig)
    num_tokens = run.runtime.sum_over_ranks(answers.rollout.lengths[rows].sum().float())  # of all processes
    for part in run.micro_batches(rows):
        rollout = answers.rollout.select(part)
        mask = rollout.mask
        old_logps, old_values, advantages, returns = (
            of_step[part, : mask.shape[1]][mask]
            for of_step in (estimates.logps, estimates.values, estimates.advantages, estimates.returns)
        )  # (N,) each
        logps = run.logps(run.model, rollout)
        losses = policy_losses(logps, old_logps, advantages, ratio="clip", clip_epsilon=settings.clip_epsilon)
        (losses.sum() / num_tokens).backward()
        with run.runtime.autocast():
            values = value_model.values(rollout)
        errors = value_losses(values, old_values, returns, clip_epsilon=settings.value_clip_epsilon)
        (errors.sum() / num_tokens).backward()
        now = logps.detach()
        figures.sums += torch.stack(
            [
                clipped_share(now, old_logps, advantages, settings.clip_epsilon) * len(now),
                (values.detach() - returns).square().sum(),
                (old_logps - now).sum(),
                torch.tensor(float(len(now))).to(now),
            ]
        )


if __name__ == "__main__":
    run(main)
