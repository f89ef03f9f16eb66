"""Collects and checks what a trainer needs before its first step: data, weights, model shape."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.artifacts import fingerprint
from configs.paths import DATA_DIR, display, env_path, find_dataset, kept_tokenizer_dir, latest_weights
from configs.schema import ModelConfig, TrainConfig, UserError
from configs.stage_settings import PolicyConfig
from configs.stage_table import DATA_STEMS, PROMPTS, RECIPE_VERSION, tensor_folder, weight_file
from configs.train_run import TrainRun, hashed_settings, run_settings
from dataset.prompts import prompt_manifest
from dataset.records.files import bare_name
from dataset.samples.sets import SAMPLE_SETS, write_set
from dataset.tensors import Manifest, check_contents, read_manifest, require_kind
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.build import ensure_tensors
from inference.loading import tokenizer_of
from model.device import choose_device
from model.manifest import TrainingFile, WeightsManifest
from model.weights import read_weights, weights_fingerprint
from trainer.autoconfig import DataFacts, require_memory, resolved_values
from trainer.processes import Group, start_group
from trainer.resume import ResumeState
from trainer.runtime import Runtime

LENGTH_SETTINGS = ("epochs", "max_steps")
"""Settings that decide how long a run is. If a run stopped before its warm-down, you can increase
these settings and resume it as a longer run."""
SAMPLE_PROMPTS = ", ".join(name for name in SAMPLE_SETS if name.startswith(PROMPTS))
"""The bundled sets of prompts, for a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The weights that a run starts from.

    All of this is read before the first step, because somebody may replace the file before the run
    ends.
    """

    path: Path
    sha256: str
    """Hash of the file's content."""
    shape: ModelConfig
    manifest: WeightsManifest
    """What these weights are made from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Everything that is known and fixed before the first step."""

    run: TrainRun
    """The settings of this call: the flags, and the profile where there is no flag."""
    group: Group | None
    """The processes that this run started on a CPU. None: there is one process, or torchrun started
    them."""
    runtime: Runtime
    """Device, dtype, and this process's place among the others."""
    config: TrainConfig
    """The given settings, but `accumulation_steps` counts only the micro-batches of this process.
    Settings without a value still have none: `begin` in trainer/recipe.py fills them in."""
    tokenizer: RustBPETokenizer
    tensors_path: Path
    """Folder of the token tensors; of a stage that learns from rewards: the file of prompts."""
    data: Manifest
    """The manifest of the tensors: rows, tokens, length, kind, fingerprint."""
    start: Start | None
    """None: random weights."""
    shape: ModelConfig
    settings: dict[str, Any]
    """The settings that change the result, as plain data."""
    resolved: dict[str, float]
    """Learning rates and size of a step. Where no value was given, the rules give one. The values
    are the same on every machine."""
    fingerprint: str
    """Hash of everything that the result depends on. If a weights file has this fingerprint, it is
    the result of this run."""
    state: ResumeState
    """Where the resume state of this run is saved. The file may not exist yet."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What else the result depends on (`depending_on`): name -> SHA-256."""
    also_seen: tuple[TrainingFile, ...] = ()
    """The record files that the model sees through these inputs."""
    replay_share: float = 0.0
    """Share of old rows in each step (trainer/replay.py)."""

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch: all new ones, and the old ones that come with them."""
        return with_replayed(self.data.rows, self.replay_share)

    @property
    def weights_path(self) -> Path:
        """Where the weights will be written."""
        return self.run.out_dir / weight_file(self.run.stage, self.shape, self.run.train)

    def say(self, text: str) -> None:
        """Print a line from the main process."""
        if self.runtime.is_main:
            print(text, file=sys.stderr, flush=True)


def gather(run: TrainRun) -> Facts:
    """Join the other processes, find or make what the run needs, and check that all parts fit.

    Raises: UserError if data, tokenizer, starting weights and flags do not fit together.
    """
    # Start all processes first, because the others must wait while one process makes the tensors.
    group = start_group(run, choose_device(run.train.device))
    runtime = Runtime.start(run.train.device, run.train.dtype, deterministic=run.train.deterministic, group=group)
    # Read the starting weights. If there are some, they decide the shape of the model.
    start = find_start(run)
    if start is not None and runtime.is_main and not _is_path(run.from_weight):
        print(f"starting from {display(start.path)}", file=sys.stderr, flush=True)
    # Read the data. Tensors hold the ids of one tokenizer, so read this tokenizer before them.
    tokenizer, start = tokenizer_and_start(run, start)
    if run.data == PROMPTS:
        tensors_path = find_prompts(run, runtime)
        data = prompt_manifest(
            tensors_path, tokenizer, max_length=run.train.max_seq_len, longest=longest_prompt(run.train)
        )
    else:
        tensors_path = find_or_make_tensors(run, tokenizer, runtime)
        data = checked_manifest(tensors_path, run, tokenizer, runtime)
    shape = shape_of(run, tokenizer, start)
    require_memory(shape)
    # Collect all that the result depends on, and compute the hash of it.
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


def depending_on(facts: Facts, name: str, sha256: str, *seen: TrainingFile) -> Facts:
    """The same facts, where the result depends on one thing more: a teacher, rows of another set.

    So a run with another teacher is another run, with another resume state. Call it before
    `is_done`.
    Args: name, sha256: what it is, and the hash of its content. seen: record files that the model
    sees through it.
    """
    whole = fingerprint([facts.fingerprint, name, sha256])
    family = fingerprint([facts.state.family, name, sha256])
    return replace(
        facts,
        fingerprint=whole,
        state=ResumeState(facts.state.stage_folder, whole, family),
        inputs={**facts.inputs, name: sha256},
        also_seen=(*facts.also_seen, *seen),
    )


def with_replayed(rows: int, share: float) -> int:
    """How many rows an epoch has, if `share` of them come in addition to its own `rows`."""
    return round(rows / (1 - share))


# --- data -----------------------------------------------------------------------------------------


def find_or_make_tensors(run: TrainRun, tokenizer: RustBPETokenizer, runtime: Runtime) -> Path:
    """The folder of tensors that `--data_path` means.

    The name of a bundled set (dataset/samples/sets.py) stands for its records, which are written to
    DATA_DIR. If it is a JSONL file, we first make tensors from it, in a folder beside the file.
    This may take minutes. Later runs use the same tensors.
    Raises: UserError if there is no such file or folder.
    """
    path, data = written_set(run.data_path, runtime), run.data
    # If the tensors exist, the JSONL file is not needed. The user may have deleted it.
    if path.suffix != ".jsonl" or not tensors_beside(path, data).is_dir():
        path = find_dataset(path)
    if path.is_dir():
        return path
    output, train = tensors_beside(path, data), run.train
    # One process writes the tensors, and the others wait. If the tensors are up to date, nothing is
    # written.
    if runtime.is_main:
        ensure_tensors(data, path, output, tokenizer, max_length=train.max_seq_len, num_workers=train.num_workers)
    runtime.barrier()
    return output


def written_set(path: Path, runtime: Runtime) -> Path:
    """The records of a bundled set, if the path is the name of one; else the path as it is."""
    if str(path) not in SAMPLE_SETS:
        return path
    if runtime.is_main:
        write_set(str(path), env_path("DATA_DIR", DATA_DIR))
    runtime.barrier()
    return env_path("DATA_DIR", DATA_DIR) / f"{path}.jsonl"


def find_prompts(run: TrainRun, runtime: Runtime) -> Path:
    """The file of prompts that `--data_path` means: a JSONL file, or the name of a bundled set.

    Raises: UserError if there is none, or if it is a folder.
    """
    path = find_dataset(written_set(run.data_path, runtime))
    if path.is_dir():
        raise UserError(
            f"{display(path)}: a folder. Give a JSONL file of conversations, or {SAMPLE_PROMPTS}.",
            "这是目录：请给出对话的 JSONL 文件，或自带的提示集",
        )
    return path


def longest_prompt(config: TrainConfig) -> int:
    """Tokens of the longest prompt that leaves room for an answer."""
    assert isinstance(config, PolicyConfig)
    return config.max_seq_len - config.max_gen_len


def tensors_beside(records: Path, data: str) -> Path:
    """Where the tensors of a JSONL file lie: `my_chats.jsonl` -> `my_chats_sft_tokens/`."""
    return records.with_name(f"{Path(bare_name(records)).stem}_{tensor_folder(data)}")


def checked_manifest(path: Path, run: TrainRun, tokenizer: RustBPETokenizer, runtime: Runtime) -> Manifest:
    """The manifest of the tensors, after all checks.

    Raises: UserError if the tensors were changed, or if their kind of data, tokenizer or length
    does not fit this run.
    """
    manifest, where = read_manifest(path), display(path)
    data = run.data
    export = f"python scripts/export_embeddings.py {DATA_STEMS[data]}"
    if runtime.is_main:  # this may read every byte, so only one process does it
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

    The name can be a path. It can also be the beginning of a file name (`full_sft`). In this case
    the newest weights file is taken that fits the shape flags.
    Raises: UserError if there is no such file, or if it is damaged.
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
    shape = replace(shape, rope_scaling_factor=1.0)  # YaRN is for inference; a folder may ask for it
    return Start(path=path, sha256=sha256, shape=shape, manifest=manifest)


def tokenizer_and_start(run: TrainRun, start: Start | None) -> tuple[RustBPETokenizer, Start | None]:
    """The tokenizer of a run, and its start with the fingerprint of this tokenizer.

    Weights of another model bring their tokenizer: it is in their folder, or kept beside them.
    Raises: UserError if it is missing or damaged.
    """
    if start is not None and (start.path.is_dir() or has_kept_tokenizer(start)):
        tokenizer, manifest = tokenizer_of(start.path, start.manifest, start.shape)
        return tokenizer, replace(start, manifest=manifest)
    return RustBPETokenizer.from_directory(run.tokenizer_dir), start


def has_kept_tokenizer(start: Start) -> bool:
    """Whether weights were trained from those of another model: its tokenizer lies beside them."""
    return kept_tokenizer_dir(start.path.parent, start.manifest.tokenizer_sha256).is_dir()


def _is_path(name: str) -> bool:
    return name.endswith(".pth") or os.sep in name


def shape_of(run: TrainRun, tokenizer: RustBPETokenizer, start: Start | None) -> ModelConfig:
    """The model's shape: that of the starting weights, or without them the shape in the settings.

    Raises: UserError if a flag contradicts the starting weights, or if a flag wants a smaller
    vocabulary than the tokenizer has.
    """
    if start is None:
        # The tokenizer decides the size of the vocabulary. The longest row decides the positions.
        longest, size = run.train.max_seq_len, _vocab_size(run, tokenizer)
        return replace(run.model, vocab_size=size, original_max_position_embeddings=longest).resolve()
    # Dropout has no weights, so it is the only part of the shape that a flag may change.
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

    In the given settings, `accumulation_steps` counts the micro-batches of all processes together.
    Each process takes an equal part of them. So a step always has the same rows, even if the number
    of processes changes. (Under torchrun there is no group. There each process has
    `accumulation_steps` micro-batches, as users of torchrun expect.)
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

    The second hash is the family of a run. A stopped run may be resumed as a longer run of the same
    family.
    """
    # The result depends on the number of processes: each process draws its own dropout, and sums
    # are rounded in another way.
    inputs = [RECIPE_VERSION[stage], data.fingerprint, start.sha256 if start else "", world_size]
    settings = hashed_settings(settings)
    # The family does not contain `tokens_per_step`, because its rule depends on the run's length.
    train = {name: value for name, value in settings["train"].items() if name not in LENGTH_SETTINGS}
    of_any_length = {name: value for name, value in resolved.items() if name != "tokens_per_step"}
    family = fingerprint([*inputs, settings | {"train": train}, of_any_length])
    return fingerprint([*inputs, settings, resolved]), family


def ask_rules(run: TrainRun, start: Path | None) -> dict[str, float]:
    """The values that the rules give for a stage that has not started yet.

    `run.sh` needs these values to compute fingerprints. If the tensors are not made yet, or are
    damaged, the size of a step stays open.

    Args: start: the weights that the stage will start from. They may not exist yet.
    Raises: UserError if the weights alone need more than all memory.
    """
    shape = read_weights(start)[1] if start is not None and start.exists() else run.model
    require_memory(shape)
    data = None
    with suppress(UserError):
        data = DataFacts.of(read_manifest(run.data_path))
    return resolved_values(run.train, run.stage, shape, data, fresh=start is None and run.from_weight == "none")
