"""What a trainer knows before its first step: the data, the starting weights, the shape, and the hash of all of it."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.artifacts import fingerprint
from configs.paths import display, find_dataset, latest_weights
from configs.schema import ModelConfig, TrainConfig, UserError
from configs.stage_table import DATA_STEMS, RECIPE_VERSION, STAGE_TABLE, tensor_folder, weight_file
from configs.train_run import TrainRun, hashed_settings, run_settings
from dataset.records.files import bare_name
from dataset.tensors import Manifest, check_contents, read_manifest, require_kind
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.build import ensure_tensors
from model.device import choose_device
from model.weights import read_weights, weights_fingerprint
from trainer.autoconfig import require_memory, resolved_values
from trainer.processes import Group, start_group
from trainer.resume import ResumeState
from trainer.runtime import Runtime

LENGTH_SETTINGS = ("epochs", "max_steps")
"""What may be raised while a run is stopped, before its warm-down has begun: it resumes as a longer run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The weights that a run starts from, as they are now: hours later, at the end, the file may be another one."""

    path: Path
    sha256: str
    shape: ModelConfig
    manifest: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that is settled before the first step."""

    run: TrainRun
    group: Group | None
    """The processes of this run on a CPU; None where this one works alone, or under torchrun."""
    runtime: Runtime
    config: TrainConfig
    """The settings as they were given, in which this process's share of a step may be all that is left."""
    tokenizer: RustBPETokenizer
    tensors_path: Path
    data: Manifest
    start: Start | None
    """None: random weights."""
    shape: ModelConfig
    settings: dict[str, Any]
    """What the result depends on, as plain data."""
    resolved: dict[str, float]
    """What the rules give for the settings that were left open."""
    fingerprint: str
    """Hash of settings, rules, data and start: weights of the same fingerprint need not be trained again."""
    state: ResumeState

    @property
    def weights_path(self) -> Path:
        """Where the weights will be written."""
        return self.run.out_dir / weight_file(self.run.stage, self.shape)

    def say(self, text: str) -> None:
        """Print a line from the main process."""
        if self.runtime.is_main:
            print(text, file=sys.stderr, flush=True)


def gather(run: TrainRun) -> Facts:
    """Join the other processes, make the tensors where a JSONL file was given, and settle the rest.

    Raises: UserError where data, tokenizer, starting weights and flags do not belong together.
    """
    group = start_group(run, choose_device(run.train.device))
    runtime = Runtime.start(run.train.device, run.train.dtype, deterministic=run.train.deterministic, group=group)
    tokenizer = RustBPETokenizer.from_directory(run.tokenizer_dir)
    tensors_path = find_or_make_tensors(run, tokenizer, runtime)
    data = checked_manifest(tensors_path, run, tokenizer, runtime)
    start = find_start(run)
    if start is not None and runtime.is_main and not _is_path(run.from_weight):
        print(f"starting from {display(start.path)}", file=sys.stderr, flush=True)
    shape = shape_of(run, tokenizer, start)
    require_memory(shape)
    settings = run_settings(replace(run, model=shape))
    del settings["from_weight"]  # what counts is the content of the starting weights, not their name
    resolved = resolved_values(run.train, run.stage, shape, data, fresh=start is None)
    whole, family = fingerprints(run.stage, data, start, runtime.world_size, settings, resolved)
    return Facts(
        run=run, group=group, runtime=runtime, config=share_of_step(run.train, group), tokenizer=tokenizer,
        tensors_path=tensors_path, data=data, start=start, shape=shape, settings=settings, resolved=resolved,
        fingerprint=whole, state=ResumeState(run.out_dir / "checkpoints" / run.stage, whole, family),
    )  # fmt: skip


# --- data -------------------------------------------------------------------------------------------------------------


def find_or_make_tensors(run: TrainRun, tokenizer: RustBPETokenizer, runtime: Runtime) -> Path:
    """The tensors of the data path; a JSONL file is turned into tensors beside it first, which may take minutes."""
    path, data = run.data_path, STAGE_TABLE[run.stage].data
    if path.suffix != ".jsonl" or not tensors_beside(path, data).is_dir():
        path = find_dataset(path)  # a JSONL whose tensors exist may be gone
    if path.is_dir():
        return path
    output, train = tensors_beside(path, data), run.train
    if runtime.is_main:
        ensure_tensors(data, path, output, tokenizer, max_length=train.max_seq_len, num_workers=train.num_workers)
    runtime.barrier()
    return output


def tensors_beside(records: Path, data: str) -> Path:
    """The tensor folder of a record file that was given in place of one."""
    return records.with_name(f"{Path(bare_name(records)).stem}_{tensor_folder(data)}")


def checked_manifest(path: Path, run: TrainRun, tokenizer: RustBPETokenizer, runtime: Runtime) -> Manifest:
    """What the tensors say of themselves. Raises: UserError where they are altered, or don't fit this run."""
    manifest, where = read_manifest(path), display(path)
    data = STAGE_TABLE[run.stage].data
    export = f"python scripts/export_embeddings.py {DATA_STEMS[data]}"
    if runtime.is_main:
        check_contents(path, manifest)
    runtime.barrier()
    require_kind(path, manifest, data)
    if manifest["tokenizer_sha256"] != tokenizer.sha256:
        raise UserError(
            f"{where}: made with another tokenizer ({manifest['tokenizer_sha256'][:8]}) than "
            f"{display(run.tokenizer_dir)} ({tokenizer.sha256[:8]}). Rerun {export}, or pass --tokenizer_dir.",
            "数据用的是另一个分词器：请重新运行该命令，或用 --tokenizer_dir 指定",
        )
    if manifest["max_length"] > run.train.max_seq_len:
        raise UserError(
            f"{where}: rows of {manifest['max_length']} tokens, but --max_seq_len is {run.train.max_seq_len}. "
            f"Rerun {export} --max-length {run.train.max_seq_len}.",
            "数据的行比 --max_seq_len 长：请重新运行该命令",
        )
    return manifest


# --- start and shape --------------------------------------------------------------------------------------------------


def find_start(run: TrainRun) -> Start | None:
    """The weights that `--from_weight` names: a path, or a stage's name in the output folder; None for `none`."""
    name = run.from_weight
    if name == "none":
        return None
    if _is_path(name):
        path = find_dataset(Path(name))
    else:
        flags = run.shape_flags
        path = latest_weights(name, run.out_dir, hidden_size=flags.get("hidden_size"), use_moe=flags.get("use_moe"))
    sha256 = weights_fingerprint(path)
    _, shape, manifest = read_weights(path)
    return Start(path=path, sha256=sha256, shape=shape, manifest=manifest)


def _is_path(name: str) -> bool:
    return name.endswith(".pth") or os.sep in name


def shape_of(run: TrainRun, tokenizer: RustBPETokenizer, start: Start | None) -> ModelConfig:
    """The model's shape: that of the starting weights, which no flag may contradict, else the one asked for."""
    if start is None:
        longest, size = run.train.max_seq_len, _vocab_size(run, tokenizer)
        return replace(run.model, vocab_size=size, original_max_position_embeddings=longest).resolve()
    for key, value in run.shape_flags.items():
        if key != "dropout" and getattr(start.shape, key) != value:
            raise UserError(
                f"--{key} {value}: {display(start.path)} was made with {getattr(start.shape, key)}. "
                "Leave the flag out, or give other weights with --from_weight.",
                "与起始权重的形状不符：请去掉该选项，或换 --from_weight",
            )
    return replace(start.shape, dropout=run.shape_flags.get("dropout", start.shape.dropout))


def _vocab_size(run: TrainRun, tokenizer: RustBPETokenizer) -> int:
    flag, size = run.shape_flags.get("vocab_size"), tokenizer.get_vocab_size()
    if flag is not None and flag < size:
        raise UserError(
            f"--vocab_size {flag}: the tokenizer has {size} tokens. Give {size} or more, or leave it out.",
            f"小于分词器的词元数：请给 {size} 或更大，或去掉该选项",
        )
    return flag or size


# --- settings ---------------------------------------------------------------------------------------------------------


def share_of_step(config: TrainConfig, group: Group | None) -> TrainConfig:
    """The settings of one process of a group: where a step's micro-batches are given, each takes some of them."""
    if group is None or not config.accumulation_steps:
        return config
    return replace(config, accumulation_steps=config.accumulation_steps // group.world_size)


def fingerprints(
    stage: str,
    data: Manifest,
    start: Start | None,
    world_size: int,
    settings: dict[str, Any],
    resolved: dict[str, float],
) -> tuple[str, str]:
    """What the result depends on, as one hash; and the same but for the length of the run."""
    inputs = [RECIPE_VERSION[stage], data["fingerprint"], start.sha256 if start else "", world_size]
    settings = hashed_settings(settings)
    train = {name: value for name, value in settings["train"].items() if name not in LENGTH_SETTINGS}
    of_any_length = {name: value for name, value in resolved.items() if name != "tokens_per_step"}
    family = fingerprint([*inputs, settings | {"train": train}, of_any_length])
    return fingerprint([*inputs, settings, resolved]), family


def ask_rules(run: TrainRun, start: Path | None, data: Manifest | None) -> dict[str, float]:
    """What a stage's rules give, before it is started. Args: start: its weights. data: its tensors' manifest."""
    shape = read_weights(start)[1] if start is not None and start.exists() else run.model
    require_memory(shape)
    return resolved_values(run.train, run.stage, shape, data, fresh=start is None and run.from_weight == "none")
