"""What a run settles where a setting is left open: step, learning rate, micro-batch, compiler.

Some values follow from rules and are the same on every machine (`resolved_values`). Others depend
on the machine (micro-batch, compiler). All are settled once, before the first step, and kept with
the resume state.

Symbols: B tokens of a step, D tokens of the whole run, C hidden size. M: what a step costs in
addition to its tokens, given as the number of tokens that cost as much.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from configs.hardware import memory
from configs.schema import ModelConfig, TrainConfig, UserError
from configs.stage_table import STAGE_TABLE
from dataset.tensors import Manifest
from model.device import dtype_name
from trainer.flops import newton_schulz_flops, training_flops
from trainer.runtime import Runtime

CHOSEN = ("batch_size", "accumulation_steps", "learning_rate", "embedding_lr_ratio", "use_compile")
"""Fields of TrainConfig that are settled here, and saved so that a resumed run repeats them."""

STEP_TOKENS_SCALE = 60.0
"""B^2 / (M sqrt(D)) where the step was best in experiments (docs/lab_log.md, 2026-11-21)."""
UPDATE_TOKENS = 100
"""The part of M without Muon's products: reading and writing all weights and moments, in tokens."""
MIN_STEP_TOKENS, MAX_STEP_TOKENS = 1024, 1 << 20
"""Limits of a step's size, in tokens."""
LEARNING_RATE, LEARNING_RATE_WIDTH = 1.0e-2, 192
"""Muon's best peak rate, and the hidden size at which it was found (docs/lab_log.md)."""
ADAMW_SHARE = 0.1
"""AdamW's best rate as a share of Muon's."""
FRESH_EMBEDDING_RATIO = {"muon": 20.0, "adamw": 60.0}
"""Rate of the embedding, as a multiple of the rate of the others, while a model is trained from
scratch (docs/lab_log.md, 2026-11-21 and 2026-11-22)."""

MICRO_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65536}
"""Tokens of a micro-batch beyond which a step gets no faster. On a CPU, reading the weights costs
little beside so many tokens, and what one block writes is still in a cache when the next block
reads it. The figures of cuda and mps are not measured."""
MEMORY_SHARE = 0.7
"""Share of the free memory that weights, moments and a micro-batch may take, by our estimate."""
COMPILE_FLOPS = {"cpu": 2e14, "cuda": 2e16}
"""Operations of a run from which on compiling saves more time than it costs. CPU: by experiment
(docs/lab_log.md). GPU: assumed, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What the rules look at in a stage's tensors."""

    kind: str
    """Documents, conversations or pairs."""
    rows: int
    """Rows, or pairs."""
    row_tokens: int
    """Tokens of a row. For pairs: of both sides together, on average."""

    @classmethod
    def of(cls, manifest: Manifest) -> "DataFacts":
        """Those of a tensor folder."""
        if manifest.data == "pairs":
            row_tokens = max(1, round(manifest.num_tokens / max(1, manifest.rows)))
        else:
            row_tokens = manifest.max_length
        return cls(kind=manifest.data, rows=manifest.rows, row_tokens=row_tokens)


# --- the size of a step and the rate --------------------------------------------------------------


def step_tokens(shape: ModelConfig, run_tokens: float, optimizer: str) -> int:
    """Tokens of one step, a power of two: B = sqrt(scale * M * sqrt(D)).

    A loss is reached after S (1 + K / B) steps, where K is the critical size of a step
    (arXiv:1812.06162, eq. 2.7). K grows about as sqrt(D) (arXiv:2505.13738). One step costs as much
    as B + M tokens. So the whole run costs S (B + M + K + K M / B), which is least at
    B = sqrt(K M). Muon's products make M large, so its steps are larger than AdamW's.
    Args: run_tokens: D. optimizer: `muon` or `adamw`.
    """
    # M: Muon's products in tokens of training, and the pass over weights and moments.
    products = newton_schulz_flops(hidden_matrices(shape)) if optimizer == "muon" else 0
    other_tokens = products / training_flops(shape, 0) + UPDATE_TOKENS
    best = math.sqrt(STEP_TOKENS_SCALE * other_tokens * math.sqrt(run_tokens))
    return 2 ** round(math.log2(min(max(best, MIN_STEP_TOKENS), MAX_STEP_TOKENS)))


def hidden_matrices(shape: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of each matrix that Muon updates, in all blocks."""
    C, D = shape.hidden_size, shape.head_dim
    heads, kv_heads = shape.num_attention_heads * D, shape.num_key_value_heads * D
    block = [(heads, C), (kv_heads, C), (kv_heads, C), (C, heads)]  # q, k, v, output
    if shape.use_moe:  # an expert has gate and up in one matrix; routers are AdamW's
        block += [(2 * shape.moe_intermediate_size, C), (C, shape.moe_intermediate_size)] * shape.num_experts
    else:
        block += [(shape.intermediate_size, C)] * 2 + [(C, shape.intermediate_size)]
    return block * shape.num_hidden_layers


def learning_rate(shape: ModelConfig, stage: str, optimizer: str) -> float:
    """Peak learning rate, to two digits: it falls as 1 / sqrt(C).

    Muon's update has the spectral norm 0.2 lr sqrt(C) (for a square matrix). That norm should be
    the same at every width (arXiv:2310.17813). Later stages take a share of the rate: they must not
    lose what earlier ones taught.
    """
    # Two digits are precise enough, and people can read and type them.
    rate = LEARNING_RATE * math.sqrt(LEARNING_RATE_WIDTH / shape.hidden_size) * STAGE_TABLE[stage].rate_share
    return float(f"{rate * (ADAMW_SHARE if optimizer == 'adamw' else 1.0):.2g}")


def resolved_values(
    config: TrainConfig, stage: str, shape: ModelConfig, data: DataFacts | None, *, fresh: bool
) -> dict[str, float]:
    """Learning rate, ratio of the embedding's rate, size of a step: by the rules where left open.

    These values are the same on every machine, and are part of a stage's fingerprint. What depends
    on the machine (its memory, its compiler) is not among them. So finished weights that are copied
    to another machine are not trained again there.
    Args: data: None: not known yet, and the size of a step stays open. fresh: whether the run
    starts from random weights.
    Returns: values of the fields learning_rate, embedding_lr_ratio and tokens_per_step.
    """
    # Only an embedding of random numbers needs the higher rate.
    rate = config.learning_rate or learning_rate(shape, stage, config.optimizer)
    ratio = config.embedding_lr_ratio or (FRESH_EMBEDDING_RATIO[config.optimizer] if fresh else 1.0)
    tokens = config.tokens_per_step
    if not tokens and data is not None and not (config.batch_size and config.accumulation_steps):
        tokens = _step_tokens_of_run(config, shape, data.rows * data.row_tokens)
    return {"learning_rate": rate, "embedding_lr_ratio": ratio, "tokens_per_step": tokens}


# --- the micro-batch ------------------------------------------------------------------------------


def row_bytes(shape: ModelConfig, row_tokens: int, *, keeps_scores: bool, checkpointing: bool) -> int:
    """About how many bytes a row's forward pass keeps for the backward pass.

    At 512 x 8 it is 45 kB for each token and block, without the attention's probabilities.
    Args: keeps_scores: whether attention keeps its probabilities, as it does on a CPU.
    checkpointing: whether a block keeps only its input and computes the rest again.
    """
    # Bytes of a token in one block: vectors of the width of the model, vectors of the width of the
    # SwiGLU, and the probabilities of each head. With checkpointing, one block at a time has them,
    # and the others keep only their input, a float32 vector. Embedding and loss add 40 C.
    width = shape.moe_intermediate_size * shape.num_experts_per_tok if shape.use_moe else shape.intermediate_size
    block = 60 * shape.hidden_size + 10 * width + (2 * shape.num_attention_heads * row_tokens if keeps_scores else 0)
    kept = 4 * shape.hidden_size * shape.num_hidden_layers + block if checkpointing else block * shape.num_hidden_layers
    return row_tokens * (kept + 40 * shape.hidden_size)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    ours = memory()
    return ours.free if ours else None


def num_weights(shape: ModelConfig) -> int:
    """How many numbers the embedding and the matrices hold; norms are too small to count."""
    block = sum(map(math.prod, hidden_matrices(replace(shape, num_hidden_layers=1))))
    return shape.vocab_size * shape.hidden_size + block * shape.num_hidden_layers


def require_memory(shape: ModelConfig) -> None:
    """Refuse a model that this machine can't hold, before anybody tries to build it.

    Raises: UserError where the weights alone, in float32, take more than all memory.
    """
    ours, needed = memory(), 4 * num_weights(shape)
    if ours is not None and needed > ours.total:
        raise UserError(
            f"hidden_size = {shape.hidden_size}, num_hidden_layers = {shape.num_hidden_layers}: the weights alone are "
            f"{needed / 1e9:.1f} GB, this machine has {ours.total / 1e9:.1f} GB. Take a smaller model.",
            "模型太大，内存放不下权重：请减小模型",
        )


def fitting_rows(shape: ModelConfig, row_tokens: int, device: torch.device, *, checkpointing: bool) -> int:
    """The largest useful number of rows in a micro-batch, at least 1.

    It is MICRO_TOKENS, or fewer where the free memory holds fewer.
    """
    most = max(1, MICRO_TOKENS[device.type] // row_tokens)
    if (free := free_memory(device)) is not None:
        # What is free now must hold the weights and all that belongs to them, then the rows.
        training = 16 * num_weights(shape)  # weight, gradient and two moments in float32
        each = row_bytes(shape, row_tokens, keeps_scores=device.type == "cpu", checkpointing=checkpointing)
        most = min(most, max(1, int(MEMORY_SHARE * free - training) // each))
    return most


def split_rows(rows: int, most: int) -> tuple[int, int]:
    """Split a step of `rows` rows into micro-batches of `most` rows at most.

    Returns: rows of a micro-batch, and how many micro-batches make a step. Their product is `rows`
    where a divisor of it is at least half of `most`. Else the step grows by a few rows: 41 rows, of
    which 10 fit, become 5 x 9, since 41 x 1 would be slow.
    """
    most = min(most, rows)
    # The largest divisor keeps the step as it is. Where that is small (41 has only 1 and 41), half
    # of the memory would lie idle. Then as few parts as possible, all of the same size, are better.
    size = max(part for part in range(1, most + 1) if rows % part == 0)
    if 2 * size < most:
        size = math.ceil(rows / math.ceil(rows / most))
    return size, math.ceil(rows / size)


# --- all of it ------------------------------------------------------------------------------------


def fill_in(
    config: TrainConfig, stage: str, shape: ModelConfig, data: DataFacts, runtime: Runtime, *, fresh: bool
) -> TrainConfig:
    """A copy of `config` in which nothing is left open.

    Args: fresh: whether the run starts from random weights.
    Raises: UserError where tokens_per_step, batch_size and accumulation_steps contradict each
    other, or where accumulation_steps is given without a batch_size.
    """
    rows, row_tokens = data.rows, data.row_tokens
    if config.tokens_per_step and config.batch_size and config.accumulation_steps:
        raise UserError(
            f"tokens_per_step = {config.tokens_per_step} beside batch_size and accumulation_steps: they already say how large "
            "a step is. Pass --accumulation_steps 0, or leave tokens_per_step out.",
            "与 batch_size、accumulation_steps 重复：请去掉其一",
        )
    resolved = resolved_values(config, stage, shape, data, fresh=fresh)
    config = replace(config, learning_rate=resolved["learning_rate"], embedding_lr_ratio=resolved["embedding_lr_ratio"])
    if not (config.batch_size and config.accumulation_steps):
        config = _fill_in_batch(config, shape, round(resolved["tokens_per_step"]), row_tokens, runtime)
    # Compiling takes a fixed time and saves a share of the run, so it pays only in a long run.
    if config.use_compile is None:
        steps = config.max_steps or math.inf
        trained = min(config.epochs * rows, steps * config.batch_size * config.accumulation_steps * runtime.world_size)
        flops = trained * row_tokens * training_flops(shape, row_tokens)
        least = COMPILE_FLOPS.get(runtime.device.type, math.inf)
        # A batch of pairs is as long as its longest one, and each length would be compiled anew.
        one_length = data.kind != "pairs"
        config = replace(config, use_compile=one_length and flops >= least)
    return config


def _fill_in_batch(
    config: TrainConfig, shape: ModelConfig, tokens: int, row_tokens: int, runtime: Runtime
) -> TrainConfig:
    """Settle batch_size and accumulation_steps for a step of `tokens` tokens in all processes.

    Raises: UserError where accumulation_steps is given without a batch_size.
    """
    if config.accumulation_steps and not config.batch_size:
        raise UserError(
            f"accumulation_steps = {config.accumulation_steps} without a batch_size: give both, or tokens_per_step alone.",
            "缺少 batch_size：请两者都给，或只给 tokens_per_step",
        )
    # A step in tokens becomes a step in rows, divided among the processes.
    each = max(1, round(tokens / row_tokens / runtime.world_size))  # rows of a step in one process
    if config.batch_size:
        return replace(config, accumulation_steps=math.ceil(each / config.batch_size))
    most = fitting_rows(shape, row_tokens, runtime.device, checkpointing=config.gradient_checkpointing)
    # All processes take the same size: that of the one with the least memory.
    size, parts = split_rows(each, runtime.least_over_ranks(most))
    return replace(config, batch_size=size, accumulation_steps=parts)


def _step_tokens_of_run(config: TrainConfig, shape: ModelConfig, epoch_tokens: int) -> int:
    """Tokens of a step by the rule.

    Where max_steps ends the run before its epochs, the tokens of the run depend on the size of a
    step, and that size on the tokens of the run. The loop starts with all epochs, and makes the
    step smaller until both agree.
    """
    tokens = step_tokens(shape, config.epochs * epoch_tokens, config.optimizer)
    while config.max_steps and config.max_steps * tokens < config.epochs * epoch_tokens:
        fewer = step_tokens(shape, config.max_steps * tokens, config.optimizer)
        if fewer >= tokens:
            break
        tokens = fewer
    return tokens


def eval_steps(num_steps: int, interval: int) -> Iterator[int]:
    """The steps after which the validation loss is computed.

    Args: interval: compute the loss every `interval` steps. 0: five times in the whole run, at
    equal distances.
    Yields: numbers of steps. The last step is always among them.
    """
    if interval:
        yield from range(interval, num_steps, interval)
    else:
        yield from (round(num_steps * part / 5) for part in range(1, 5))
    yield num_steps


# --- what a resumed run repeats -------------------------------------------------------------------


def chosen_values(config: TrainConfig, runtime: Runtime) -> dict[str, Any]:
    """What a resumed run repeats so that its arithmetic is the same, as plain data."""
    return {
        "device": runtime.device.type,
        "machine": runtime.machine,
        "dtype": dtype_name(runtime.dtype),
        "threads": torch.get_num_threads(),
        "world_size": runtime.world_size,
        **{name: getattr(config, name) for name in CHOSEN},
    }


def with_chosen(config: TrainConfig, chosen: dict[str, Any]) -> TrainConfig:
    """The same settings, with what an interrupted run had settled in the fields of CHOSEN."""
    return replace(config, **{name: chosen[name] for name in CHOSEN})
