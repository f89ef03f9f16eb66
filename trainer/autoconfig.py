"""What a run chooses for itself where neither profile nor flag says it: the size of a step, the learning rate, the
micro-batch and whether to compile. Chosen once, before the first step, and kept with the resume state.

Symbols: B tokens of a step, D tokens of the whole run, M what a step costs besides, in tokens, C hidden size.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from configs.hardware import memory
from configs.schema import ModelConfig, TrainConfig, UserError
from configs.stage_table import STAGE_TABLE
from dataset.tensors import data_kind
from model.device import dtype_name
from trainer.flops import newton_schulz_flops, training_flops
from trainer.runtime import Runtime

CHOSEN = ("batch_size", "accumulation_steps", "learning_rate", "embedding_lr_ratio", "use_compile")
"""Fields of TrainConfig that are chosen here, and stored so that a resumed run repeats them."""

STEP_TOKENS_SCALE = 60.0
"""B^2 / (M sqrt(D)) at the best step found by experiment (docs/lab_log.md)."""
UPDATE_TOKENS = 100
"""What a step costs besides its tokens and Muon's products: a pass over all weights and moments, in tokens of training."""
MIN_STEP_TOKENS, MAX_STEP_TOKENS = 1024, 1 << 20
LEARNING_RATE, LEARNING_RATE_WIDTH = 1.0e-2, 192
"""Muon's best peak rate, and the hidden size at which it was found (docs/lab_log.md)."""
ADAMW_SHARE = 0.1
"""AdamW's best rate as a share of Muon's."""
FRESH_EMBEDDING_RATIO = {"muon": 20.0, "adamw": 60.0}
"""Of the embedding's rate to the others' while it is learnt from nothing: better than 5, 10 and 40 over 340 steps at 192 x 4,
than 5 over 2,500, than 5 and 10 over 73 at 512 x 8; with AdamW for all better than 5, 20 and 200 over 678 steps
(docs/lab_log.md)."""

MICRO_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65536}
"""Tokens of a micro-batch beyond which a step gets no faster. On a CPU the weights are read once for so many tokens, and
what a block leaves for the next one is still near; the figures of cuda and mps are not measured."""
MEMORY_SHARE = 0.7
"""Of the free memory, what a micro-batch may take by the estimate below."""
COMPILE_FLOPS = {"cpu": 2e14, "cuda": 2e16}
"""Operations of a run from which compiling pays. A CPU: it costs 15 to 45 seconds and saves up to 10% (docs/lab_log.md);
a GPU: assumed, not measured."""


# --- the size of a step and the rate ----------------------------------------------------------------------------------


def step_tokens(shape: ModelConfig, run_tokens: float, optimizer: str) -> int:
    """Tokens of one step, a power of two: B = sqrt(scale * M * sqrt(D)).

    To reach a loss takes S (1 + K / B) steps, K being the critical size (arXiv:1812.06162, eq. 2.7), which grows about
    as sqrt(D) (arXiv:2505.13738). A step costs as much as B + M tokens do. The product of both is least at
    B = sqrt(K M): with Muon, whose products make M large, steps are larger than with AdamW.
    """
    products = newton_schulz_flops(hidden_matrices(shape)) if optimizer == "muon" else 0
    other_tokens = products / training_flops(shape, 0) + UPDATE_TOKENS
    best = math.sqrt(STEP_TOKENS_SCALE * other_tokens * math.sqrt(run_tokens))
    return 2 ** round(math.log2(min(max(best, MIN_STEP_TOKENS), MAX_STEP_TOKENS)))


def hidden_matrices(shape: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of the matrices that Muon turns."""
    C, D = shape.hidden_size, shape.head_dim
    heads, kv_heads = shape.num_attention_heads * D, shape.num_key_value_heads * D
    block = [(heads, C), (kv_heads, C), (kv_heads, C), (C, heads)]
    if shape.use_moe:
        block += [(2 * shape.moe_intermediate_size, C), (C, shape.moe_intermediate_size)] * shape.num_experts
    else:
        block += [(shape.intermediate_size, C)] * 2 + [(C, shape.intermediate_size)]
    return block * shape.num_hidden_layers


def learning_rate(shape: ModelConfig, stage: str, optimizer: str) -> float:
    """Peak learning rate: a width's best falls as 1 / sqrt(C).

    Muon's update has the spectral norm 0.2 lr sqrt(C), and it is that which must not grow with the width
    (arXiv:2310.17813).
    """
    rate = LEARNING_RATE * math.sqrt(LEARNING_RATE_WIDTH / shape.hidden_size) * STAGE_TABLE[stage].rate_share
    return float(f"{rate * (ADAMW_SHARE if optimizer == 'adamw' else 1.0):.2g}")


def resolved_values(
    config: TrainConfig, stage: str, shape: ModelConfig, data: dict[str, Any] | None, *, fresh: bool
) -> dict[str, float]:
    """What the rules give for what is left open, as fields of TrainConfig; what is given stays as it is.

    They are the same on every machine and belong into a stage's fingerprint. What a machine's memory, compiler or
    instructions decide is not among them: finished weights that are copied elsewhere are not trained again.
    Args: data: the manifest of the stage's tensors; None: not known yet, which leaves the size of a step open.
    """
    rate = config.learning_rate or learning_rate(shape, stage, config.optimizer)
    ratio = config.embedding_lr_ratio or (FRESH_EMBEDDING_RATIO[config.optimizer] if fresh else 1.0)
    tokens = config.tokens_per_step
    if not tokens and data is not None and not (config.batch_size and config.accumulation_steps):
        tokens = _step_tokens_of_run(config, shape, data["rows"] * row_length(data))
    return {"learning_rate": rate, "embedding_lr_ratio": ratio, "tokens_per_step": tokens}


# --- the micro-batch --------------------------------------------------------------------------------------------------


def row_bytes(shape: ModelConfig, row_tokens: int, *, keeps_scores: bool, checkpointing: bool) -> int:
    """What a row's forward pass keeps for the backward pass, in bytes, about: 45 kB a token and block at 512 x 8 on a CPU.

    Args: keeps_scores: whether attention keeps its probabilities, as that on a CPU does.
    """
    width = shape.moe_intermediate_size * shape.num_experts_per_tok if shape.use_moe else shape.intermediate_size
    block = 60 * shape.hidden_size + 10 * width + (2 * shape.num_attention_heads * row_tokens if keeps_scores else 0)
    kept = 4 * shape.hidden_size * shape.num_hidden_layers + block if checkpointing else block * shape.num_hidden_layers
    return row_tokens * (kept + 40 * shape.hidden_size)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    ours = memory()
    return ours.free if ours else None


def num_weights(shape: ModelConfig) -> int:
    """Numbers in the embedding and the matrices."""
    block = sum(map(math.prod, hidden_matrices(replace(shape, num_hidden_layers=1))))
    return shape.vocab_size * shape.hidden_size + block * shape.num_hidden_layers


def require_memory(shape: ModelConfig) -> None:
    """Raises: UserError where the weights alone, in float32, are more than all memory of this machine."""
    ours, needed = memory(), 4 * num_weights(shape)
    if ours is not None and needed > ours.total:
        raise UserError(
            f"hidden_size = {shape.hidden_size}, num_hidden_layers = {shape.num_hidden_layers}: the weights alone are "
            f"{needed / 1e9:.1f} GB, this machine has {ours.total / 1e9:.1f} GB. Take a smaller model.",
            "模型太大，内存放不下权重：请减小模型",
        )


def fitting_rows(shape: ModelConfig, row_tokens: int, device: torch.device, *, checkpointing: bool) -> int:
    """Rows of a micro-batch beyond which nothing is gained, or that just fit the free memory; at least 1."""
    most = max(1, MICRO_TOKENS[device.type] // row_tokens)
    if (free := free_memory(device)) is not None:
        training = 16 * num_weights(shape)  # weight, gradient and two moments in float32
        each = row_bytes(shape, row_tokens, keeps_scores=device.type == "cpu", checkpointing=checkpointing)
        most = min(most, max(1, int(MEMORY_SHARE * free - training) // each))
    return most


def split_rows(rows: int, most: int) -> tuple[int, int]:
    """Rows of a micro-batch, `most` at most, and how many of these make a step of `rows`.

    Equal parts where there are some of at least half of `most`; else, as with 41 rows of which 10 fit, a few rows more.
    """
    most = min(most, rows)
    size = max(part for part in range(1, most + 1) if rows % part == 0)
    if 2 * size < most:
        size = math.ceil(rows / math.ceil(rows / most))
    return size, math.ceil(rows / size)


# --- all of it --------------------------------------------------------------------------------------------------------


def fill_in(
    config: TrainConfig, stage: str, shape: ModelConfig, data: dict[str, Any], runtime: Runtime, *, fresh: bool
) -> TrainConfig:
    """A copy of `config` in which nothing is left to choose.

    Args: data: the manifest of the stage's tensors. fresh: whether the weights are random yet. Raises: UserError where
    tokens_per_step, batch_size and accumulation_steps contradict each other or leave no way to tell.
    """
    rows, row_tokens = data["rows"], row_length(data)
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
    if config.use_compile is None:
        steps = config.max_steps or math.inf
        trained = min(config.epochs * rows, steps * config.batch_size * config.accumulation_steps * runtime.world_size)
        flops = trained * row_tokens * training_flops(shape, row_tokens)
        least = COMPILE_FLOPS.get(runtime.device.type, math.inf)
        one_length = (
            data_kind(data) != "pairs"
        )  # a batch of pairs is as long as its longest, and each length is compiled anew
        config = replace(config, use_compile=one_length and flops >= least)
    return config


def row_length(data: dict[str, Any]) -> int:
    """Tokens of a row; of a pair the mean of both sides together."""
    if data_kind(data) == "pairs":
        return max(1, round(data["num_tokens"] / max(1, data["rows"])))
    return int(data["max_length"])


def _fill_in_batch(
    config: TrainConfig, shape: ModelConfig, tokens: int, row_tokens: int, runtime: Runtime
) -> TrainConfig:
    """The rows of a step of so many tokens, as micro-batches."""
    if config.accumulation_steps and not config.batch_size:
        raise UserError(
            f"accumulation_steps = {config.accumulation_steps} without a batch_size: give both, or tokens_per_step alone.",
            "缺少 batch_size：请两者都给，或只给 tokens_per_step",
        )
    each = max(1, round(tokens / row_tokens / runtime.world_size))  # rows of a step in one process
    if config.batch_size:
        return replace(config, accumulation_steps=math.ceil(each / config.batch_size))
    most = fitting_rows(shape, row_tokens, runtime.device, checkpointing=config.gradient_checkpointing)
    size, parts = split_rows(each, runtime.least_over_ranks(most))
    return replace(config, batch_size=size, accumulation_steps=parts)


def _step_tokens_of_run(config: TrainConfig, shape: ModelConfig, epoch_tokens: int) -> int:
    """By the rule; where max_steps ends the run sooner, its tokens depend on the step, so both are found together."""
    tokens = step_tokens(shape, config.epochs * epoch_tokens, config.optimizer)
    while config.max_steps and config.max_steps * tokens < config.epochs * epoch_tokens:
        fewer = step_tokens(shape, config.max_steps * tokens, config.optimizer)
        if fewer >= tokens:
            break
        tokens = fewer
    return tokens


# --- what a resumed run repeats ---------------------------------------------------------------------------------------


def chosen_values(config: TrainConfig, runtime: Runtime) -> dict[str, Any]:
    """What was chosen, as plain data: a run that resumes on such a machine repeats it, so that its arithmetic is the same."""
    return {
        "device": runtime.device.type,
        "machine": runtime.machine,
        "dtype": dtype_name(runtime.dtype),
        "threads": torch.get_num_threads(),
        "world_size": runtime.world_size,
        **{name: getattr(config, name) for name in CHOSEN},
    }


def with_chosen(config: TrainConfig, chosen: dict[str, Any]) -> TrainConfig:
    """The same settings with what an interrupted run had chosen."""
    return replace(config, **{name: chosen[name] for name in CHOSEN})
