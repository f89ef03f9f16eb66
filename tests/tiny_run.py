"""A training run so small that a test can afford several: 16 wide, one block, rows of 32 tokens."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from configs.paths import TOKENIZER_DIR
from configs.schema import ModelConfig
from dataset.tokenizer import RustBPETokenizer
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import read_made, read_weights
from trainer import (
    train_distill_reason,
    train_distillation,
    train_dpo,
    train_full_sft,
    train_lora,
    train_pretrain,
    train_reward,
)
from trainer.loop import Outcome, Run
from trainer.resume import saved_states

TRAINERS: dict[str, Callable[[Sequence[str]], int]] = {
    "pretrain": train_pretrain.main,
    "sft": train_full_sft.main,
    "dpo": train_dpo.main,
    "lora": train_lora.main,
    "reason": train_distill_reason.main,
    "distill": train_distillation.main,
    "reward": train_reward.main,
}
"""Stage -> its trainer, called with flags in this process."""
WEIGHTS = {
    "pretrain": "pretrain_16.pth",
    "sft": "full_sft_16.pth",
    "dpo": "rlhf_16.pth",
    "lora": "lora/lora_identity_16.pth",
    "reason": "reason_16.pth",
    "distill": "full_dist_16.pth",
    "reward": "reward_16.pth",
}
"""Stage -> its weight file."""
RECORDS = {"distill": "sft", "reward": "dpo"}
"""Stage -> the stage whose records it trains on, if these are not its own."""
SHAPE = [
    "--hidden_size=16", "--num_hidden_layers=1", "--num_attention_heads=2", "--num_key_value_heads=1",
    "--intermediate_size=32",
]  # fmt: skip
"""Flags of the shape."""
LOOP = [
    "--profile=smoke", "--max_seq_len=32", "--batch_size=2", "--accumulation_steps=2", "--max_steps=6",
    "--save_interval=2", "--num_workers=1", "--log_interval=1",
]  # fmt: skip
"""Flags of the training: six steps, a resume state after every second one."""

DENSE = ModelConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
).resolve()
"""Shape of a small dense model, whose tokens need no tokenizer."""
MOE = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    use_moe=True,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
).resolve()
"""The same shape as a mixture of experts."""


def chat(question: str, answer: str) -> list[dict[str, str]]:
    """A conversation of two turns."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def sum_record(a: int, b: int, **fields: str) -> dict[str, Any]:
    """A sum as a chat record."""
    return {"conversations": chat(f"{a}+{b}等于多少？", f"{a}+{b}={a + b}。"), "category": "math", **fields}


def pair_record(a: int, b: int, **fields: str) -> dict[str, Any]:
    """A sum as a pair: the right answer is chosen, a wrong one rejected."""
    question = f"{a}+{b}等于多少？"
    right, wrong = chat(question, f"{a + b}。"), chat(question, f"不知道，也许{a + b + 1}吧。")
    return {"chosen": right, "rejected": wrong, **fields}


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records, a line each."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def write_records(folder: Path) -> None:
    """Write `STAGE.jsonl` and `STAGE_heldout.jsonl` of the three stages.

    Half of the held-out records are for validation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    halves = [{"split": "validation"}, {"split": "test"}]
    texts = [
        f"第{number}天，小明读了{number * 7}页书，{'很高兴' if number % 2 else '有点累'}。" for number in range(60)
    ]
    write_jsonl(folder / "pretrain.jsonl", [{"text": text} for text in texts])
    write_jsonl(folder / "pretrain_heldout.jsonl", [{"text": f"新的一天{n}。", **halves[n % 2]} for n in range(10)])
    write_jsonl(folder / "sft.jsonl", [sum_record(n, n % 7) for n in range(60)])
    write_jsonl(folder / "sft_heldout.jsonl", [sum_record(n, 9, **halves[n % 2]) for n in range(10)])
    write_jsonl(folder / "dpo.jsonl", [pair_record(n, n % 7) for n in range(40)])
    write_jsonl(folder / "dpo_heldout.jsonl", [pair_record(n, 9, **halves[n % 2]) for n in range(10)])


class Killed(BaseException):
    """Stands for `kill -9`: no code catches it, and nothing is saved."""


@contextmanager
def killed_in_step(number: int) -> Iterator[None]:
    """Let the trainer inside die in this step (1 is the first).

    The step is computed by then, and neither logged nor saved.
    """
    after_step = Run.after_step

    def dying(self: Run, outcome: Outcome, *arguments: Any) -> None:
        if outcome.step == number:
            raise Killed
        after_step(self, outcome, *arguments)

    with mock.patch.object(Run, "after_step", dying):
        try:
            yield
        except Killed:
            return
    raise AssertionError(f"the run ended before step {number}")


@contextmanager
def kept_signal_handlers() -> Iterator[None]:
    """Put the signal handlers back afterwards: entry points set some, which must not stay."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class TinyRun:
    """Trainers called in this process, on the records of one folder, writing to another."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out, self.tf_dir = data, out, out / "tf"

    def flags(self, stage: str, *words: str) -> list[str]:
        """A trainer's command line. `words` come last, so they replace flags of the same name."""
        return [
            *LOOP, *(SHAPE if stage == "pretrain" else ()),
            "--data_path", str(self.data / f"{RECORDS.get(stage, stage)}.jsonl"),
            "--tokenizer_dir", str(TOKENIZER_DIR), "--out_dir", str(self.out), "--tf_dir", str(self.tf_dir), *words,
        ]  # fmt: skip

    def train(self, stage: str, *words: str) -> int:
        """Run a trainer. Returns: its exit code."""
        with kept_signal_handlers():
            return TRAINERS[stage](self.flags(stage, *words))

    def path(self, stage: str) -> Path:
        """A stage's weight file."""
        return self.out / WEIGHTS[stage]

    def states(self, stage: str) -> list[Path]:
        """A stage's resume states, the newest first."""
        return saved_states(self.out / "checkpoints" / stage)

    def weights(self, stage: str) -> dict[str, Tensor]:
        """A stage's weights."""
        return read_weights(self.path(stage))[0]

    def manifest(self, stage: str) -> WeightsManifest:
        """A stage's manifest."""
        return read_made(self.path(stage))

    def metric(self, stage: str, name: str = "loss") -> dict[int, float]:
        """Step -> value, of the newest metrics file of a stage."""
        files = (self.tf_dir / "metrics").glob(f"{stage}_*.jsonl")
        newest = max(files, key=lambda path: path.stat().st_mtime_ns)
        lines = [json.loads(line) for line in newest.read_text().splitlines()]
        return {line["step"]: line[name] for line in lines if name in line}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lively(model: MiniLLM, seed: int = 1) -> MiniLLM:
    """Add noise to the weights, so that every part of the network matters: some start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def shipped_tokenizer() -> RustBPETokenizer:
    """The tokenizer in `model/`."""
    return RustBPETokenizer.from_directory(TOKENIZER_DIR)
