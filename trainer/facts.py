"""Collects and checks what a trainer needs before its first step: data, weights, model shape."""

import os
import sys
from contextlib import suppress
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
from trainer.autoconfig import DataFacts, require_memory, resolved_values
from trainer.processes import Group, start_group
from trainer.resume import ResumeState
from trainer.runtime import Runtime

LENGTH_SETTINGS = ("epochs", "max_steps")
"""Settings that give a run its length. A run that is stopped before its warm-down may resume with
larger ones, as a longer run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The weights that a run starts from.

    All of this is read before the first step. When the run ends, hours later, the file may have
    been replaced.
    """

    path: Path
    sha256: str
    """Hash of the file's content."""
    shape: ModelConfig
    manifest: dict[str, Any]
    """What these weights are made from; see `weights_manifest` in trainer/recipe.py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that is settled before the first step."""

    run: TrainRun
    """The call: its flags over the profile."""
    group: Group | None
    """The processes that this run started on a CPU. None: one process alone, or torchrun's."""
    runtime: Runtime
    """Device, dtype, and this process's place among the others."""
    config: TrainConfig
    """The settings as given, but `accumulation_steps` is the share of this process. What was left
    open is still open here: `begin` in trainer/recipe.py fills it in."""
    tokenizer: RustBPETokenizer
    tensors_path: Path
    """Folder of the token tensors."""
    data: Manifest
    """What the tensors say of themselves: rows, tokens, length, kind, fingerprint."""
    start: Start | None
    """None: random weights."""
    shape: ModelConfig
    settings: dict[str, Any]
    """The settings that change the result, as plain data."""
    resolved: dict[str, float]
    """Learning rates and size of a step, by the rules where they were left open. They are the same
    on every machine."""
    fingerprint: str
    """Hash of all that the result depends on. Weights with this fingerprint are the result."""
    state: ResumeState
    """Where the resume state of this run lies; perhaps there is none yet."""

    @property
    def weights_path(self) -> Path:
        """Where the weights will be written."""
        return self.run.out_dir / weight_file(self.run.stage, self.shape)

    def say(self, text: str) -> None:
        """Print a line from the main process."""
        if self.runtime.is_main:
            print(text, file=sys.stderr, flush=True)


def gather(run: TrainRun) -> Facts:
    """Join the other processes, find or make what the run needs, and check that it fits together.

    Raises: UserError where data, tokenizer, starting weights and flags do not belong together.
    """
    # The processes come first: they must all be there when one makes tensors for the others.
    group = start_group(run, choose_device(run.train.device))
    runtime = Runtime.start(run.train.device, run.train.dtype, deterministic=run.train.deterministic, group=group)
    # The data. Tensors hold ids of one tokenizer, so the tokenizer is read before them.
    tokenizer = RustBPETokenizer.from_directory(run.tokenizer_dir)
    tensors_path = find_or_make_tensors(run, tokenizer, runtime)
    data = checked_manifest(tensors_path, run, tokenizer, runtime)
    # The start, and the shape, which comes with it.
    start = find_start(run)
    if start is not None and runtime.is_main and not _is_path(run.from_weight):
        print(f"starting from {display(start.path)}", file=sys.stderr, flush=True)
    shape = shape_of(run, tokenizer, start)
    require_memory(shape)
    # What the result depends on, and its hash.
    settings = run_settings(replace(run, model=shape))
    del settings["from_weight"]  # the content of the starting weights counts, not their name
    resolved = resolved_values(run.train, run.stage, shape, DataFacts.of(data), fresh=start is None)
    whole, family = fingerprints(run.stage, data, start, runtime.world_size, settings, resolved)
    return Facts(
        run=run,
        group=group,
        runtime=runtime,
        config=share_of_step(run.train, group),
        tokenizer=tokenizer,
        tensors_path=tensors_path,
        data=data,
        start=start,
        shape=shape,
        settings=settings,
        resolved=resolved,
        fingerprint=whole,
        state=ResumeState(run.out_dir / "checkpoints" / run.stage, whole, family),
    )


# --- data -----------------------------------------------------------------------------------------


def find_or_make_tensors(run: TrainRun, tokenizer: RustBPETokenizer, runtime: Runtime) -> Path:
    """The folder of tensors that `--data_path` means.

    A JSONL file is turned into tensors beside it first, which may take minutes; later runs use
    them again.
    Raises: UserError where there are no such data.
    """
    path, data = run.data_path, STAGE_TABLE[run.stage].data
    # A JSONL whose tensors exist may have been deleted, so it is not looked for.
    if path.suffix != ".jsonl" or not tensors_beside(path, data).is_dir():
        path = find_dataset(path)
    if path.is_dir():
        return path
    output, train = tensors_beside(path, data), run.train
    # One process writes, the others wait. Where the tensors are up to date, nothing is written.
    if runtime.is_main:
        ensure_tensors(data, path, output, tokenizer, max_length=train.max_seq_len, num_workers=train.num_workers)
    runtime.barrier()
    return output


def tensors_beside(records: Path, data: str) -> Path:
    """Where the tensors of a JSONL file lie: `my_chats.jsonl` -> `my_chats_sft_tokens/`."""
    return records.with_name(f"{Path(bare_name(records)).stem}_{tensor_folder(data)}")


def checked_manifest(path: Path, run: TrainRun, tokenizer: RustBPETokenizer, runtime: Runtime) -> Manifest:
    """The manifest of the tensors, after all checks.

    Raises: UserError where the tensors were altered, or where their kind of data, tokenizer or
    length does not fit this run.
    """
    manifest, where = read_manifest(path), display(path)
    data = STAGE_TABLE[run.stage].data
    export = f"python scripts/export_embeddings.py {DATA_STEMS[data]}"
    if runtime.is_main:  # this may read every byte, so one process does it for all
        check_contents(path, manifest)
    runtime.barrier()
    require_kind(path, manifest, data)
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(
            f"{where}: made with another tokenizer ({manifest.tokenizer_sha256[:8]}) than "
            f"{display(run.tokenizer_dir)} ({tokenizer.sha256[:8]}). Rerun {export}, or pass --tokenizer_dir.",
            "数据用的是另一个分词器：请重新运行该命令，或用 --tokenizer_dir 指定",
        )
    if manifest.max_length > run.train.max_seq_len:
        raise UserError(
            f"{where}: rows of {manifest.max_length} tokens, but --max_seq_len is {run.train.max_seq_len}. "
            f"Rerun {export} --max-length {run.train.max_seq_len}.",
            "数据的行比 --max_seq_len 长：请重新运行该命令",
        )
    return manifest


# --- start and shape ------------------------------------------------------------------------------


def find_start(run: TrainRun) -> Start | None:
    """The weights that `--from_weight` names; None for `none`.

    The name is a path, or how weight files begin (`full_sft`). Then the newest file that fits the
    flags of the shape is taken.
    Raises: UserError where there is no such file, or it is damaged.
    """
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
    """The model's shape: that of the starting weights, else the one asked for.

    Raises: UserError where a flag contradicts the starting weights, or asks for fewer tokens than
    the tokenizer has.
    """
    if start is None:
        # The vocabulary is that of the tokenizer, and positions go as far as the longest row.
        longest, size = run.train.max_seq_len, _vocab_size(run, tokenizer)
        return replace(run.model, vocab_size=size, original_max_position_embeddings=longest).resolve()
    # Dropout has no weights, so it is the one part of a shape that a flag may change.
    for key, value in run.shape_flags.items():
        if key != "dropout" and getattr(start.shape, key) != value:
            raise UserError(
                f"--{key} {value}: {display(start.path)} was made with {getattr(start.shape, key)}. "
                "Leave the flag out, or give other weights with --from_weight.",
                "与起始权重的形状不符：请去掉该选项，或换 --from_weight",
            )
    return replace(start.shape, dropout=run.shape_flags.get("dropout", start.shape.dropout))


def _vocab_size(run: TrainRun, tokenizer: RustBPETokenizer) -> int:
    """Rows of the embedding: one for each token, or more where `--vocab_size` asks for more."""
    flag, size = run.shape_flags.get("vocab_size"), tokenizer.get_vocab_size()
    if flag is not None and flag < size:
        raise UserError(
            f"--vocab_size {flag}: the tokenizer has {size} tokens. Give {size} or more, or leave it out.",
            f"小于分词器的词元数：请给 {size} 或更大，或去掉该选项",
        )
    return flag or size


# --- settings -------------------------------------------------------------------------------------


def share_of_step(config: TrainConfig, group: Group | None) -> TrainConfig:
    """The settings of one process of a group that this run started on a CPU.

    `accumulation_steps` is that of the whole run, and the processes divide a step's micro-batches
    among themselves. So a step has the same rows, however many processes there are. (Under torchrun
    there is no group: each process takes `accumulation_steps`, as users of torchrun expect.)
    """
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
    """Two hashes: of all that the result depends on, and of the same without the run's length.

    The second is the family: a stopped run may resume as a longer one of its family.
    """
    # The number of processes counts: each has a dropout of its own, and sums are rounded otherwise.
    inputs = [RECIPE_VERSION[stage], data.fingerprint, start.sha256 if start else "", world_size]
    settings = hashed_settings(settings)
    # The rule for the size of a step looks at the length of the run, so its value is left out too.
    train = {name: value for name, value in settings["train"].items() if name not in LENGTH_SETTINGS}
    of_any_length = {name: value for name, value in resolved.items() if name != "tokens_per_step"}
    family = fingerprint([*inputs, settings | {"train": train}, of_any_length])
    return fingerprint([*inputs, settings, resolved]), family


def ask_rules(run: TrainRun, start: Path | None) -> dict[str, float]:
    """What the rules give for a stage that has not started. `run.sh` needs it for fingerprints.

    Its tensors may not be made yet, or may be damaged. Then the size of a step stays open.
    Args: start: the weights that it will start from; they may not exist yet.
    Raises: UserError where the model is larger than all memory.
    """
    shape = read_weights(start)[1] if start is not None and start.exists() else run.model
    require_memory(shape)
    data = None
    with suppress(UserError):
        data = DataFacts.of(read_manifest(run.data_path))
    return resolved_values(run.train, run.stage, shape, data, fresh=start is None and run.from_weight == "none")
