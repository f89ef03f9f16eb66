"""The arm that ours is compared with: pretraining as tutorials do it, at its best.

    python benchmarks/training/baseline.py --corpus DIR --model 256x4 --seconds 60 --out weights.pt

transformers' Qwen3 of the same shape with SDPA, fused AdamW, float32 (on a GPU bfloat16 under
autocast), one document a row, cut or padded to 340 tokens. The padding stands on the right, where
no real token looks. So no attention mask is given: the result is the same, and the step some 5%
faster. AdamW has betas 0.9 and 0.95 and a decay of 0.1 of the matrices; gradients are clipped at 1.
The rate climbs over the first 5% of the budget and falls linearly to nothing at its end.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    import configs  # noqa: F401  sets how OpenMP's threads wait, which torch reads when it is loaded

import numpy as np
import torch
from torch import nn

from benchmarks.training.corpus import CutDocuments
from configs.cli import Parser, run
from configs.paths import TOKENIZER_DIR
from configs.schema import ModelConfig, UserError, preset
from dataset.tokenizer import RustBPETokenizer
from model.device import DTYPES, choose_device, seed_everything

WARMUP_SHARE = 0.05
SAVE_SECONDS = 1.0
"""Seconds of a budget that are kept back for writing the weights and leaving."""
LOG_STEPS = {"cpu": 1, "cuda": 10}
"""Steps between two looks at the loss. Each look waits for a GPU, but not for a CPU."""


def shape_of(model: str, vocab_size: int) -> ModelConfig:
    """The shape that a preset, or `256x4`, means. Raises: UserError."""
    return ModelConfig(**preset(model), vocab_size=vocab_size).resolve()


def qwen3_settings(shape: ModelConfig) -> dict[str, Any]:
    """Arguments of transformers' Qwen3Config. Raises: UserError for a mixture of experts."""
    if shape.use_moe:
        raise UserError("the baseline is dense. Give a dense --model, or --arms minillm.")
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,  # its place in transformers 4; the next line is the one in 5
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }


def build_model(shape: ModelConfig) -> nn.Module:
    """The network with fresh weights, float32. Raises: UserError when transformers is missing."""
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError:
        raise UserError(
            'the baseline is built from transformers, which is missing. pip install "transformers>=4.51"'
        ) from None
    model: nn.Module = Qwen3ForCausalLM(Qwen3Config(**qwen3_settings(shape)))
    return model


def build_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, norms do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    rest = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def rate_share(progress: float) -> float:
    """The learning rate as a share of its peak, after a share `progress` of the budget."""
    if progress < WARMUP_SHARE:
        return progress / WARMUP_SHARE
    return max(0.0, (1 - progress) / (1 - WARMUP_SHARE))


def row_numbers(num_rows: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of each step, (batch_size,), epoch after epoch without end.

    What an epoch leaves over begins the next one.
    """
    rng = np.random.default_rng(seed)
    waiting = np.empty(0, np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(num_rows)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


class Clock:
    """How much of the budget is used.

    A budget is a number of steps, or of seconds since a moment before this process was started.
    """

    def __init__(self, max_steps: int, seconds: float, started: float) -> None:
        self.max_steps, self.deadline = max_steps, started + seconds - SAVE_SECONDS
        self.first = self.last = 0.0
        self.steps = 0

    def next_step(self) -> float | None:
        """Progress from 0 to 1 in the middle of the next step; None where no more fits."""
        if self.max_steps:
            if self.steps == self.max_steps:
                return None
            progress = (self.steps + 0.5) / self.max_steps
        else:
            now = time.time()
            if not self.steps:
                self.first = self.last = now
            step, self.last = now - self.last, now  # seconds that the last step took
            if self.steps and now + step > self.deadline:
                return None
            # The middle of the step to take, if it is as long as the last one.
            progress = (now + step / 2 - self.first) / max(self.deadline - self.first, 1e-9)
        self.steps += 1
        return min(progress, 1.0)


def to_device(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """A batch where it is wanted; a GPU fetches it while it still works on the last."""
    tensor = torch.from_numpy(rows)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def train(
    shape: ModelConfig,
    rows: CutDocuments,
    clock: Clock,
    *,
    learning_rate: float,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    metrics: Path = Path(os.devnull),
) -> nn.Module:
    """Train until the budget is used.

    Lines of `metrics`: step, targets, seconds since the loop began, loss.
    """
    seed_everything(seed)
    model = build_model(shape).to(device).train()
    optimizer = build_optimizer(model, learning_rate)
    numbers = row_numbers(len(rows), batch_size, seed)
    started, targets, step = time.perf_counter(), 0, 0
    log_steps = LOG_STEPS[device.type]

    def note() -> None:
        line = {"step": step, "loss": loss.item(), "targets": targets, "seconds": time.perf_counter() - started}
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    with metrics.open("w", encoding="utf-8") as lines:
        while (progress := clock.next_step()) is not None:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate_share(progress)
            ids, labels = rows.batch(next(numbers))
            targets += int((labels[:, 1:] != -100).sum())  # nothing comes before a row's first token
            batch = {"input_ids": to_device(ids, device), "labels": to_device(labels, device)}
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % log_steps == 0:
                note()
        if step % log_steps:  # the last step
            note()
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Train one model and write its weights."""
    parser = Parser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="folder that --prepare made 语料目录")
    parser.add_argument("--model", required=True, metavar="NAME", help="preset, or width x depth: 256x4 模型结构")
    parser.add_argument("--learning_rate", type=float, default=1e-3, metavar="LR", help="peak 峰值学习率 (%(default)s)")
    parser.add_argument(
        "--batch_size", type=int, default=4, metavar="N", help="documents a step 每步文档数 (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="budget, all included 总时间")
    parser.add_argument("--max_steps", type=int, default=0, metavar="N", help="budget in steps instead 总步数")
    parser.add_argument("--started", type=float, metavar="T", help="moment from which the seconds count 计时起点 (now)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda 设备 (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="arithmetic 精度 (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of order and weights 随机种子 (%(default)s)")
    parser.add_argument(
        "--metrics", type=Path, default=Path(os.devnull), metavar="FILE", help="a JSON line a step 每步指标"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="state dict 权重")
    args = parser.parse_args(argv)
    if (args.seconds > 0) == (args.max_steps > 0):
        raise UserError("give either --seconds or --max_steps, above 0.")
    clock = Clock(args.max_steps, args.seconds, time.time() if args.started is None else args.started)
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    rows = CutDocuments(args.corpus, tokenizer.end_of_text_id)
    model = train(
        shape_of(args.model, tokenizer.get_vocab_size()),
        rows,
        clock,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        device=choose_device(args.device),
        dtype=DTYPES[args.dtype],
        seed=args.seed,
        metrics=args.metrics,
    )
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, args.out)
    return 0


if __name__ == "__main__":
    run(main)
