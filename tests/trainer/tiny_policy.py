"""Runs of GRPO and PPO so small that a test can afford several: 16 wide, a few short answers."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor

from configs.paths import TOKENIZER_DIR
from model.weights import read_weights
from tests.tiny_run import Killed, TinyRun, kept_signal_handlers, sum_record, write_jsonl
from trainer import train_grpo, train_ppo
from trainer.policy_loop import PolicyRun

TRAINERS: dict[str, Callable[[Sequence[str]], int]] = {"grpo": train_grpo.main, "ppo": train_ppo.main}
WEIGHTS = {"grpo": "grpo_16.pth", "ppo": "ppo_actor_16.pth"}
REWARDS = """
def parity(sample):
    return float(sum(sample.ids) % 2)

def equal(sample):
    return 1.0

def nan(sample):
    return float("nan") if "3" in sample.prompt else 0.0

def none(sample):
    return None

def length(sample):
    return float(sample.num_tokens)
"""
"""Rewards of a user's file. A model of random weights gets `parity` right half of the time."""


class TinyPolicy:
    """A trainer that learns from rewards, called in this process from a tiny run's SFT weights."""

    def __init__(self, tiny: TinyRun) -> None:
        folder = tiny.data
        self.start, self.out, self.tf_dir = tiny.path("sft"), tiny.out, tiny.out / "policy_tf"
        self.prompts = write_jsonl(folder / "prompts.jsonl", [sum_record(n, n % 7) for n in range(30)])
        write_jsonl(
            folder / "prompts_heldout.jsonl",
            [sum_record(n, 8, split="validation" if n % 2 else "test") for n in range(12)],
        )
        self.rewards = folder / "my_rewards.py"
        self.rewards.write_text(REWARDS, encoding="utf-8")

    def flags(self, stage: str, *words: str) -> list[str]:
        """A command line. `words` come last, so they replace flags of the same name."""
        own = ["--value_warmup_steps=1"] if stage == "ppo" else []
        return [
            "--profile=smoke", "--max_seq_len=64", "--max_gen_len=6", "--num_generations=4", "--batch_size=2",
            "--accumulation_steps=2", "--max_steps=4", "--eval_interval=2", "--save_interval=1", "--log_interval=1",
            "--learning_rate=1e-2", f"--reward={self.rewards}:parity", "--data_path", str(self.prompts),
            "--from_weight", str(self.start), "--tokenizer_dir", str(TOKENIZER_DIR), "--out_dir", str(self.out),
            "--tf_dir", str(self.tf_dir), *own, *words,
        ]  # fmt: skip

    def train(self, stage: str, *words: str) -> int:
        """Run a trainer. Returns: its exit code."""
        with kept_signal_handlers():
            return TRAINERS[stage](self.flags(stage, *words))

    def weights(self, stage: str) -> dict[str, Tensor]:
        """A stage's weights."""
        return read_weights(self.out / WEIGHTS[stage])[0]

    def lines(self, stage: str) -> list[dict[str, Any]]:
        """The lines of the newest metrics file of a stage."""
        files = (self.tf_dir / "metrics").glob(f"{stage}_*.jsonl")
        newest = max(files, key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]


@contextmanager
def killed_in(method: str, call: int) -> Iterator[None]:
    """Let the trainer inside die in this call (1 is the first) of a method of PolicyRun."""
    original, calls = getattr(PolicyRun, method), [0]

    def dying(self: PolicyRun, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        result = original(self, *arguments, **named)
        if calls[0] == call:
            raise Killed
        return result

    with mock.patch.object(PolicyRun, method, dying):
        try:
            yield
        except Killed:
            return
    raise AssertionError(f"the run ended before call {call} of {method}")
