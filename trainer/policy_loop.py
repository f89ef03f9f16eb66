"""What GRPO and PPO share: sampling with a reward, one update over all processes, validation, and
how a run is saved, rolled back and ended.

Shapes: P prompts of a step in this process, G answers to each, B = P G; N tokens of some answers.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from configs.messages import warning
from configs.paths import display
from configs.schema import UserError
from configs.stage_settings import PolicyConfig
from dataset.lm_dataset import rows_of_step
from dataset.prompts import read_prompts, validation_prompts
from evaluation.rules import rule_of
from inference.sampling import Sampling
from model.model_minillm import MiniLLM
from model.weights import require_finite, save_weights
from trainer.autoconfig import chosen_values, eval_steps
from trainer.facts import Facts, depending_on, longest_prompt
from trainer.loop import MAX_SKIPPED_STEPS, TrainingDiverged, TrainingStopped, clip_gradients, steps_of_run
from trainer.metrics import Metrics
from trainer.recipe import Training, explaining_helper_failure, watch_signals, weights_manifest
from trainer.reference import load_reference
from trainer.resume import fitting
from trainer.rewards import Reward, find_reward, rewards_of, rule_reward
from trainer.rollout import Rollout, Sample, answer_logps, generate, rollout_of, sample_of
from trainer.runtime import ParentWatch, rng_states, set_rng_states

FALL = 0.05
"""A run whose validation falls by so much below its best goes back to it and ends."""
NUM_VALIDATION = 500
"""Prompts of a validation at most."""
SHOWN = 4
"""Sampled answers that are logged with each validation."""
AGREEMENT = 1e-5
"""What the log-probabilities of the engine and of the training forward pass may differ by, in nats,
on the mean over tokens, where both compute in float32. They add up numbers in another order, so the
last bits of logits of 30 or 40, which are worth 4e-6, differ."""


class Stateful(Protocol):
    """A model or an optimizer, whose state is saved and put back."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Put a state back."""
        ...


@dataclass(frozen=True, slots=True)
class Answers:
    """What this process sampled in a step."""

    rollout: Rollout
    samples: list[Sample]
    rewards: Tensor
    """(P, G)."""
    seconds: float
    """How long the sampling took."""


def with_reward(facts: Facts) -> tuple[Facts, Reward]:
    """The reward of a run, and the facts that depend on it. Raises: UserError."""
    settings = facts.config
    assert isinstance(settings, PolicyConfig)
    if facts.start is None:
        raise UserError(
            "--from_weight none: a model that is never right learns nothing from rewards. Name weights, such as full_sft.",
            "需要起始权重：请指定，例如 full_sft",
        )
    if facts.run.shape_flags.get("dropout"):
        raise UserError(
            "--dropout: learning from rewards has none, since the policy that is trained must be the one that was sampled. "
            "Leave it out.",
            "强化学习不用 dropout：请去掉该选项",
        )
    reward = find_reward(
        settings.reward,
        settings.reward_model_path,
        unproven=settings.reward_unproven,
        tokenizer_sha256=facts.tokenizer.sha256,
    )
    return (depending_on(facts, "reward", reward.sha256) if reward.sha256 else facts), reward


class PolicyRun:
    """One training from rewards: its prompts, its policy, and what is done around the updates."""

    def __init__(self, training: Training, reward: Reward) -> None:
        facts, config = training.facts, training.config
        assert isinstance(config, PolicyConfig)
        self.training, self.config, self.reward = training, config, reward
        self.facts, self.runtime, self.tokenizer = facts, training.runtime, facts.tokenizer
        # Dropout would make the policy that is trained another one than the policy that is sampled.
        self.model: MiniLLM = training.model.eval()
        longest = longest_prompt(config)
        found = read_prompts(facts.tensors_path, self.tokenizer, longest=longest)
        if found.too_long:
            facts.say(f"{found.too_long} of {found.records} prompts left out: longer than {longest} tokens")
        self.prompts = found.prompts
        self.validation = validation_prompts(facts.tensors_path, self.tokenizer, longest=longest)[:NUM_VALIDATION]
        self.reference = load_reference(facts, self.runtime) if config.beta else None
        self.num_steps = steps_of_run(config, len(self.prompts), self.runtime.world_size)
        self.prompts_per_step = config.batch_size * config.accumulation_steps * self.runtime.world_size
        self.eval_steps = set(eval_steps(self.num_steps, config.eval_interval)) if self.validation else set()
        self.sampling = Sampling(max_new_tokens=config.max_gen_len, temperature=config.temperature, logprobs=0)
        self.metrics: Metrics | None = None
        self.parent = ParentWatch()
        self.skipped = 0  # updates in a row without a finite gradient
        self.tokens = 0.0  # sampled by all processes since the first step
        self.best: dict[str, Any] = {}
        """`step`, `score` and `model` of the best validation; empty before the first one."""
        self.fell = False
        """Whether the last validation was so bad that the run ends."""
        self.started = time.perf_counter()
        self.sampling_seconds = 0.0  # in this process, since it started
        self.widest = self.farthest = 0.0  # difference to the engine: largest of a token, largest mean
        self.compared = self.told = False  # whether that was measured yet, and said

    # --- sampling ---------------------------------------------------------------------------------

    def sample(self, step: int) -> Answers:
        """The answers of this process in a step, with their rewards.

        They depend on the weights, the seed and the number of the step alone.
        """
        started, config = time.perf_counter(), self.config
        numbers = rows_of_step(step, self.prompts_per_step, len(self.prompts), config.seed)
        places = range(self.runtime.rank, self.prompts_per_step, self.runtime.world_size)
        prompts = [self.prompts[numbers[place]] for place in places]
        seeds = [Random(f"{config.seed} {step} {place}").getrandbits(60) for place in places]
        groups = generate(self.model, self.tokenizer, prompts, self.sampling, seeds, config.num_generations)
        rollout = rollout_of([request for group in groups for request in group], self.runtime.device)
        seconds = time.perf_counter() - started
        self.sampling_seconds += seconds
        samples = [
            sample_of(request, prompt, self.tokenizer)
            for prompt, group in zip(prompts, groups, strict=True)
            for request in group
        ]
        rewards = rewards_of(self.reward, samples).view(len(prompts), config.num_generations)
        return Answers(rollout, samples, rewards, seconds)

    def minibatches(self, num_prompts: int) -> list[Tensor]:
        """The answers of each update of a step: numbers of rows (n,). Answers to one prompt stay
        together."""
        rows = torch.arange(num_prompts * self.config.num_generations).view(num_prompts, -1)
        parts = np.array_split(np.arange(num_prompts), self.config.num_minibatches)
        return [rows[part[0] : part[-1] + 1].flatten() for part in parts if len(part)]

    def micro_batches(self, rows: Tensor) -> Sequence[Tensor]:
        """Rows (n,) in parts that go through the network together; none without rows."""
        size = self.config.batch_size * self.config.num_generations
        return rows.split(size) if len(rows) else ()

    # --- the network ------------------------------------------------------------------------------

    def logps(self, model: MiniLLM, rollout: Rollout) -> Tensor:
        """Log-probability of each token of the answers (N,), computed as training computes it."""
        with self.runtime.autocast():
            return answer_logps(model, rollout, self.config.temperature)

    def check_agreement(self, logps: Tensor, rollout: Rollout) -> None:
        """Compare the policy's log-probabilities (N,), before an update, with the engine's."""
        self.compared = True
        differences = (logps - rollout.logprobs[rollout.mask]).abs()
        self.widest = max(self.widest, float(differences.max()))
        mean, before = float(differences.mean()), self.farthest
        self.farthest = max(before, mean)
        exact = self.runtime.dtype == torch.float32 and self.runtime.device.type == "cpu"
        if exact and before <= AGREEMENT < mean:  # said once
            self.say(
                warning(
                    f"sampling and training differ by {mean:.1e} nats a token, more than {AGREEMENT:.0e}: the answers are not "
                    "those of the policy that is trained",
                    "采样与训练的概率相差过大",
                )
            )

    def update(self, optimizer: torch.optim.Optimizer, model: nn.Module, *, taken: bool) -> float | None:
        """One step of the optimizer with the gradients of all processes. All of them call it.

        Args: taken: whether this process has a gradient. Where none has one there is no step:
        AdamW would move the weights all the same, by what it remembers.
        Returns: the norm of the gradient before clipping; None without a step.
        Raises: TrainingDiverged after MAX_SKIPPED_STEPS steps in a row that are not finite.
        """
        if not self.runtime.any_rank(taken):
            return None
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.grad is None:  # another process may have one
                parameter.grad = torch.zeros_like(parameter)
        self.runtime.sum_gradients(model)
        norm = clip_gradients(model, self.config.grad_clip)
        if bool(torch.isfinite(norm)):
            optimizer.step()
            self.skipped = 0
        else:
            self.skipped += 1
            self.say(f"gradient norm {float(norm):.4g}: update skipped")
            if self.skipped >= MAX_SKIPPED_STEPS:
                raise TrainingDiverged(
                    f"{self.skipped} updates in a row without a finite gradient. Lower --learning_rate.",
                    "梯度不再是有限的数：请调低 --learning_rate",
                )
        optimizer.zero_grad(set_to_none=True)
        return float(norm)

    # --- between the steps ------------------------------------------------------------------------

    def steps(self, parts: Mapping[str, Stateful]) -> Iterator[int]:
        """The numbers of the steps that are still to do, 0 is the first. A saved state is put back.

        Args: parts: name -> what a resume state holds, `model` and `optimizer` among them.
        """
        step = self._restore(parts)
        while step < self.num_steps and not self.fell:
            yield step
            step += 1

    def after_step(
        self, step: int, parts: Mapping[str, Stateful], answers: Answers, figures: dict[str, float], lr: float
    ) -> None:
        """Log, validate and save, when it is time. Args: step: how many are done.

        Raises: TrainingStopped if the run was asked to stop; the state is saved.
        """
        last = step == self.num_steps
        shown = self._figures(answers) | figures | {"lr": lr, "seconds": time.perf_counter() - self.started}
        if self.metrics is not None:
            # It must be seen in each run, not only where it is too large. A step whose groups all
            # have equal rewards has compared nothing.
            if self.compared and not self.told:
                self.told = True
                self.say(
                    f"sampling and training agree to {self.farthest:.1e} nats a token (largest difference {self.widest:.1e})"
                )
            self.metrics.progress(
                reward=f"{shown['reward']:.3f}",
                length=f"{shown['length']:.1f}",
                val=f"{self.best.get('score', 0.0):.3f}",
            )
            if step % self.config.log_interval == 0 or last:
                self.metrics.log(step, shown)
        if step in self.eval_steps or last:
            self._validate(step, answers)
        asked = self.training.stop.exit_code != 0 or self.parent.is_gone()
        stopping = self.runtime.any_rank(asked) and not (last or self.fell)
        if (step % self.config.save_interval == 0 or stopping) and not (last or self.fell):
            self._save(step, parts)
        if stopping:
            raise TrainingStopped(self.training.stop.reason or "the pipeline that started this trainer is gone")

    def _figures(self, answers: Answers) -> dict[str, float]:
        """What the answers of a step look like, over all processes."""
        samples, rewards = answers.samples, answers.rewards
        ended = [sample for sample in samples if sample.ended]
        spread = rewards.amax(dim=1) - rewards.amin(dim=1)
        sums = torch.tensor(
            [
                float(len(samples)),
                float(rewards.sum()),
                sum(map(rule_reward, samples)),
                float(sum(rule_of(sample.record).well_formed(sample.answer) for sample in samples)),
                float(len(rewards)),
                float((spread == 0).sum()),
                float(answers.rollout.lengths.sum()),
                float(len(ended)),
                float(sum(sample.num_tokens for sample in ended)),
                float(-answers.rollout.logprobs.sum()),
            ],
            dtype=torch.float64,
        )
        count, reward, right, formed, groups, flat, tokens, num_ended, ended_tokens, nats = self.runtime.sum_over_ranks(
            sums.to(self.runtime.device)
        ).tolist()
        self.tokens += tokens
        return {
            "reward": reward / count,
            "accuracy": right / count,
            "well_formed": formed / count,
            "groups_without_variance": flat / groups,
            # The mean surprise at what was sampled is an estimate of the entropy without bias.
            "entropy": nats / tokens,
            "length": tokens / count,
            **({"length_ended": ended_tokens / num_ended} if num_ended else {}),
            "cut_share": 1 - num_ended / count,
            "engine_difference": self.farthest,
            "engine_difference_largest": self.widest,
            "sampling_seconds": answers.seconds,
        }

    def _validate(self, step: int, answers: Answers) -> None:
        """Score the greedy answers to the validation prompts, and remember the best weights."""
        if not self.validation:
            return
        score, accuracy, ended = validation_score(self)
        if not self.best or score >= self.best["score"]:
            model = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"step": step, "score": score, "model": model}
        self.fell = self.config.rollback and score < self.best["score"] - FALL
        if self.metrics is not None:
            values = {"validation_reward": score, "validation_accuracy": accuracy, "validation_ended": ended}
            self.metrics.log(step, values)
            self.metrics.log_texts(step, [_shown(*pair) for pair in self._to_show(answers)])
            self.say(
                f"step {step}/{self.num_steps}: validation reward {score:.3f}, accuracy {accuracy:.3f}"
                + (f"; fallen from {self.best['score']:.3f} after step {self.best['step']}" if self.fell else "")
            )

    def _to_show(self, answers: Answers) -> list[tuple[Sample, float]]:
        """A few answers of the step with their rewards: the first to the first prompts."""
        rewards = answers.rewards[:, 0].tolist()
        return list(zip(answers.samples[:: self.config.num_generations], rewards, strict=True))[:SHOWN]

    # --- saved, restored, ended -------------------------------------------------------------------

    def _save(self, step: int, parts: Mapping[str, Stateful]) -> None:
        """Write the resume state, and wait until it is written."""
        require_finite(self.model, self.facts.state.path, f"after step {step}")
        rng = rng_states(self.runtime)  # all processes must call this, so it is outside the `if`
        if self.runtime.is_main:
            self.facts.state.save(
                {
                    "step": step,
                    "num_steps": self.num_steps,
                    "scaler": {},
                    "rng": rng,
                    "tokens": self.tokens,
                    "targets": 0.0,
                    "skipped": self.skipped,
                    "overflows": 0,
                    "choices": chosen_values(self.config, self.runtime),
                    "best": self.best,
                    "differences": [self.farthest, self.widest],
                    **{name: part.state_dict() for name, part in parts.items()},
                }
            )
        self.runtime.barrier()

    def _restore(self, parts: Mapping[str, Stateful]) -> int:
        """Put a saved state back. Returns: how many steps are done."""
        state, self.training.resume = self.training.resume, None
        if state is None:
            return 0
        with fitting(state["path"]):
            for name, part in parts.items():
                part.load_state_dict(state[name])
            set_rng_states(state["rng"], self.runtime)
            self.best = state["best"]
            self.farthest, self.widest = state["differences"]
        self.tokens, self.skipped = state["tokens"], state["skipped"]
        step: int = state["step"]
        return step

    def fit(self, train: Callable[["PolicyRun"], None]) -> int:
        """Train and write the weights.

        Those of the best validation are written; with `--no-rollback` those of the last step, and
        the best ones beside them. Returns: the exit code of the program. Raises: UserError.
        """
        facts, training = self.facts, self.training
        config = self.config
        facts.say(
            f"{facts.run.stage}: {self.model.num_parameters():,} parameters; {config.optimizer}, lr "
            f"{config.learning_rate:g}; {len(self.prompts):,} prompts, {self.prompts_per_step} a step x "
            f"{config.num_generations} answers, {self.num_steps} steps; reward {self.reward.name}; "
            f"{self.runtime.device}, {str(self.runtime.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
        )
        if not self.validation:
            facts.say("no validation prompts beside the file: the weights of the last step are kept")
        self.metrics = training.open_metrics(self.num_steps)
        watch_signals(training.stop)
        kept = None
        try:
            with explaining_helper_failure(facts):
                train(self)
                require_finite(self.model, facts.weights_path, f"at the end of stage {facts.run.stage}")
                self._choose_weights()
                kept = training.write_weights()
        except TrainingStopped as error:
            return training.tell_of_stop(error, self.metrics)
        finally:
            if self.metrics is not None:
                self.metrics.close()
        seconds = time.perf_counter() - self.started
        facts.say(
            f"{display(facts.weights_path)} written after {seconds:.0f} s of training; sampling took "
            f"{self.sampling_seconds / seconds:.0%} of the time"
        )
        if kept is not None:
            facts.say(f"the weights of before are {display(kept)}")
        self.runtime.barrier()
        self.runtime.close()
        return 0

    def _choose_weights(self) -> None:
        """Take the weights of the best validation, or write them beside the last ones."""
        if not self.best:
            return
        best, path = self.best, best_weights(self.facts)
        if not self.config.rollback:
            if self.runtime.is_main:
                last = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
                self.model.load_state_dict(best["model"])
                save_weights(path, self.model, weights_manifest(self.facts, self.config, self.runtime))
                self.model.load_state_dict(last)
            self.facts.say(f"{display(path)}: the best of the validations, after step {best['step']}")
            return
        self.model.load_state_dict(best["model"])
        self.facts.say(f"the weights of step {best['step']} are kept: validation reward {best['score']:.3f}")

    def say(self, text: str) -> None:
        """Print a line from the main process."""
        if self.metrics is not None:
            self.metrics.say(text)


def validation_score(run: PolicyRun) -> tuple[float, float, float]:
    """Of the greedy answers to the validation prompts: mean reward, share that is right by its
    rule, and share that ended."""
    mine = run.validation[run.runtime.rank :: run.runtime.world_size]
    sums = torch.zeros(4, dtype=torch.float64)
    if mine:
        greedy = Sampling(max_new_tokens=run.config.max_gen_len)
        groups = generate(run.model, run.tokenizer, mine, greedy, [0] * len(mine), 1)
        samples = [sample_of(group[0], prompt, run.tokenizer) for prompt, group in zip(mine, groups, strict=True)]
        right, ended = sum(map(rule_reward, samples)), sum(sample.ended for sample in samples)
        sums += torch.tensor([len(samples), float(rewards_of(run.reward, samples).sum()), right, ended])
    count, *totals = run.runtime.sum_over_ranks(sums.to(run.runtime.device)).tolist()
    reward, accuracy, finished = (total / count for total in totals)
    return reward, accuracy, finished


def best_weights(facts: Facts) -> Path:
    """Where `--no-rollback` writes the best weights: `best_grpo_192.pth` beside `grpo_192.pth`."""
    return facts.weights_path.with_name(f"best_{facts.weights_path.name}")


def _shown(sample: Sample, reward: float) -> dict[str, Any]:
    """A sampled answer for the log."""
    return {"prompt": sample.prompt, "answer": sample.answer, "reward": reward, "ended": sample.ended}
