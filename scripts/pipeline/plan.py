"""What a run consists of: its stages, its files and folders, and the command of each step.

Imports no torch: `run.sh` asks often.
"""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from configs.cli import split_words
from configs.load import Profile, load_profile
from configs.paths import (
    DATA_DIR,
    OUT_DIR,
    ROOT,
    TF_DIR,
    default_tokenizer_dir,
    env_path,
    find_dataset,
    heldout_beside,
    latest_weights,
)
from configs.schema import UserError
from configs.stage_table import (
    OPTIONAL_STAGES,
    STAGE_TABLE,
    STAGES,
    heldout_file,
    record_file,
    tensor_folder,
    weight_file,
    weight_file_after,
)
from configs.train_run import TrainRun, build_parser, resolve_run
from dataset.samples.sets import SAMPLE_SETS

BEFORE_TRAINING = ("mix", "tokenizer", "export")
PIPELINE = (*BEFORE_TRAINING, *STAGES, *OPTIONAL_STAGES)
"""The stages that have a record, in the order in which they run; `env` is marked in the environment
itself."""
OWN_FLAGS = {
    "profile": "bash scripts/run.sh --profile",
    "out_dir": "OUT_DIR",
    "tf_dir": "TF_DIR",
    "tokenizer_dir": "ENABLE_RUSTBPE=1 (or leave it out)",
}
"""Trainer flags that belong to the whole run, and what to use in their place."""
WEIGHT_SETTINGS = ("teacher", "reward_model_path")
"""Settings that name weights which a stage reads besides those that it starts from."""
MIX_OUTPUTS = (
    *(name(STAGE_TABLE[stage].data) for stage in STAGES for name in (record_file, heldout_file)),
    "rejects.jsonl",
    "mix_manifest.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """One call of `run.sh`: its profile, its folders, and the user's flags of its trainers."""

    profile_name: str
    profile: Profile
    data_dir: Path
    out_dir: Path
    tf_dir: Path
    train_tokenizer: bool
    """Whether the tokenizer is trained here (`ENABLE_RUSTBPE=1`); else the one that ships is
    taken."""
    num_gpus: int
    """Processes asked for; 0: one a GPU that is found."""
    gpus_found: int
    extra: Mapping[str, tuple[str, ...]]
    runs: Mapping[str, TrainRun]
    """Stage -> its settings, for the stages that this call trains, in their order."""

    @property
    def stages(self) -> tuple[str, ...]:
        """All its stages: an optional one only if `--with` names it."""
        return (*BEFORE_TRAINING, *self.runs)

    @property
    def tokenizer_dir(self) -> Path:
        """The tokenizer of all stages."""
        return self.out_dir / "tokenizer" if self.train_tokenizer else default_tokenizer_dir(self.out_dir)

    def tokens(self, stage: str) -> Path:
        """The tensors of the mix that are of the stage's kind."""
        return self.data_dir / tensor_folder(STAGE_TABLE[stage].data)

    def texts(self) -> list[Path]:
        """The mixed training records of all kinds."""
        return [self.data_dir / record_file(STAGE_TABLE[stage].data) for stage in STAGES]

    def sample_set(self, stage: str) -> str:
        """The bundled set outside the mix that a stage trains on; "": it trains on other data."""
        name = str(self.runs[stage].data_path)
        return name if name in SAMPLE_SETS else ""

    def heldout(self, stage: str) -> Path:
        """The held-out records of a stage."""
        if stage in STAGES:
            return self.data_dir / heldout_file(STAGE_TABLE[stage].data)
        if name := self.sample_set(stage):
            return self.data_dir / f"{name}_heldout.jsonl"
        path = self.runs[stage].data_path
        for other in STAGES:
            if path == self.tokens(other):
                return self.heldout(other)
        return heldout_beside(found(path)) or path.with_name(f"{path.stem}_heldout.jsonl")

    def start(self, stage: str) -> Path | None:
        """The weights that a trainer starts from; None if there are none, or if the trainer finds
        them by itself."""
        return self._weights_named(self.runs[stage].from_weight, stage)

    def also_read(self, stage: str) -> dict[str, Path]:
        """Setting -> the weights that it names, such as a teacher's: a file, or the folder of
        another model. Those that the trainer finds by itself are left out."""
        settings, paths = self.runs[stage].train, {}
        for setting in WEIGHT_SETTINGS:
            if name := getattr(settings, setting, ""):
                folder = found(Path(name))
                paths[setting] = folder if folder.is_dir() else self._weights_named(name, stage)
        return {setting: path for setting, path in paths.items() if path is not None}

    def _weights_named(self, name: str, stage: str) -> Path | None:
        """The weights that a setting of a stage names, by path or by how their name begins."""
        trained = list(self.runs)
        earlier = {STAGE_TABLE[other].weights: other for other in trained[: trained.index(stage)]}
        if name in earlier:
            return self.weights(earlier[name])
        if any(name == STAGE_TABLE[other].weights for other in OPTIONAL_STAGES if other not in trained):
            with suppress(UserError):  # an earlier call may have trained them; if none did, the trainer says so
                return latest_weights(name, self.out_dir)
        return found(Path(name)) if name.endswith(".pth") else None

    def weights(self, stage: str) -> Path:
        """The weights that a stage writes; their name ends in the shape of those it starts from.

        A student without a shape of its own is as wide as its teacher.
        """
        run = self.runs[stage]
        wide_as = self.start(stage) or (None if run.shape_flags else self.also_read(stage).get("teacher"))
        name = weight_file_after(stage, wide_as.name, run.train) if wide_as else None
        return self.out_dir / (name or weight_file(stage, run.model, run.train))

    def processes(self, stage: str) -> int:
        """How many processes train a stage: as many as the user asks for, else one a GPU unless it
        runs elsewhere."""
        on_all_gpus = self.runs[stage].train.device in {"auto", "cuda"}
        return self.num_gpus or (max(1, self.gpus_found) if on_all_gpus else 1)


def found(path: Path) -> Path:
    """The file or folder that a trainer will take for this name; the name itself if there is none
    yet."""
    try:
        return find_dataset(path)
    except UserError:
        return path  # not there yet, or wrong: then the trainer says so


# --- as the user asked for it ---------------------------------------------------------------------


def pipeline_from_environment(profile_name: str, gpus_found: int, optional: Sequence[str] = ()) -> Pipeline:
    """The pipeline as `run.sh` passes it on. Args: optional: the stages that `--with` names.

    Raises: UserError on a variable or an extra flag that can't be.
    """
    profile = load_profile(profile_name)
    stages = (*STAGES, *(stage for stage in OPTIONAL_STAGES if stage in optional))
    extra = {stage: _split_arguments(STAGE_TABLE[stage].arguments) for stage in stages}
    return Pipeline(
        profile_name=profile_name,
        profile=profile,
        data_dir=env_path("DATA_DIR", DATA_DIR),
        out_dir=env_path("OUT_DIR", OUT_DIR),
        tf_dir=env_path("TF_DIR", TF_DIR),
        train_tokenizer=_switch("ENABLE_RUSTBPE"),
        num_gpus=_count("NUM_GPUS"),
        gpus_found=gpus_found,
        extra=extra,
        runs={stage: _resolve(stage, profile_name, extra[stage]) for stage in stages},
    )


def _split_arguments(variable: str) -> tuple[str, ...]:
    """The words of a variable, each on one line, as run.sh reads them line by line."""
    words = split_words(variable, os.environ.get(variable, ""))
    if any("\n" in word for word in words):
        raise UserError(f"{variable}: a word holds a line break. Take it out.", "参数中有换行：请删去")
    return words


def _switch(variable: str) -> bool:
    value = os.environ.get(variable) or "0"
    if value not in {"0", "1"}:
        raise UserError(f"{variable}={value}: must be 0 or 1.", "只能是 0 或 1")
    return value == "1"


def _count(variable: str) -> int:
    value = os.environ.get(variable, "")
    if value and (not value.isdecimal() or int(value) < 1):
        raise UserError(
            f"{variable}={value}: must be 1 or more. To train on the CPU, set CUDA_VISIBLE_DEVICES to nothing.",
            "必须是不小于 1 的整数；用 CPU 训练请把 CUDA_VISIBLE_DEVICES 设为空",
        )
    return int(value or 0)


def _resolve(stage: str, profile_name: str, words: Iterable[str]) -> TrainRun:
    """A trainer's settings under the user's extra flags; wrong ones are reported under the
    variable's name."""
    variable = STAGE_TABLE[stage].arguments
    parser = build_parser(stage, f"Flags that {variable} may hold.")
    parser.prog, parser.usage = variable, f'{variable}="--flag value ..." bash scripts/run.sh'
    try:
        arguments = parser.parse_args(list(words))
    except SystemExit as stop:
        raise SystemExit(stop.code or 2) from None  # --help is an answer here, not the end of a good run
    for name, instead in OWN_FLAGS.items():
        if getattr(arguments, name) is not None:
            raise UserError(
                f"{variable}: --{name} belongs to the whole run. Use {instead}.",
                "该参数由整个流程统一设置：请改用所列写法",
            )
    arguments.profile = profile_name
    try:
        return resolve_run(stage, argparse.Namespace(**vars(arguments)))
    except UserError as error:
        raise UserError(f"profile {profile_name}, {variable}: {error}", error.chinese) from None


# --- the commands, as arguments of the environment's Python ---------------------------------------


def mix_command(pipeline: Pipeline) -> list[str]:
    """Sources -> mixed records."""
    return [
        str(ROOT / "scripts" / "build_chinese_mix.py"),
        *("--profile", pipeline.profile_name),
        *("--output_dir", str(pipeline.data_dir)),
    ]


def tokenizer_command(pipeline: Pipeline) -> list[str]:
    """Mixed text -> tokenizer folder."""
    return [
        str(ROOT / "scripts" / "train_rustbpe_tokenizer.py"),
        *("--input", *map(str, pipeline.texts())),
        *("--output", str(pipeline.tokenizer_dir)),
        *("--vocab_size", str(pipeline.profile.model.vocab_size)),
    ]


def export_command(pipeline: Pipeline, stage: str) -> list[str]:
    """Mixed records -> token tensors of one stage."""
    train = pipeline.runs[stage].train
    return [
        *(str(ROOT / "scripts" / "export_embeddings.py"), stage),
        *("--input", str(pipeline.data_dir / f"{stage}_chinese.jsonl")),
        *("--output", str(pipeline.tokens(stage))),
        *("--tokenizer_dir", str(pipeline.tokenizer_dir)),
        *("--max-length", str(train.max_seq_len)),
        *("--num-workers", str(train.num_workers)),
    ]


def train_command(pipeline: Pipeline, stage: str) -> list[str]:
    """Tensors and starting weights -> weights; the user's flags come later, so that they win."""
    start, processes = pipeline.start(stage), pipeline.processes(stage)
    data_path = pipeline.tokens(stage) if stage in STAGES else pipeline.runs[stage].data_path
    launcher = [str(ROOT / "trainer" / "torchrun.py"), "--standalone", "--nproc_per_node", str(processes)]
    return [
        *(launcher if processes > 1 else []),
        str(ROOT / "trainer" / STAGE_TABLE[stage].trainer),
        *("--profile", pipeline.profile_name),
        *("--data_path", str(data_path)),
        *("--out_dir", str(pipeline.out_dir)),
        *("--tf_dir", str(pipeline.tf_dir)),
        *("--tokenizer_dir", str(pipeline.tokenizer_dir)),
        *pipeline.extra[stage],
        # The files that names stand for in this run.
        *(word for name, path in pipeline.also_read(stage).items() for word in (f"--{name}", str(path))),
        *(("--from_weight", str(start)) if start else ()),
    ]


def evaluate_command(pipeline: Pipeline, stage: str, run_id: str) -> list[str]:
    """Weights and held-out records -> one line in the results file."""
    start, spec = pipeline.start(stage), STAGE_TABLE[stage]
    is_compared = spec.data == "pairs" or spec.named_by  # with its start; an adapter stands on it
    return [
        *(str(ROOT / "scripts" / "evaluate_stage.py"), "--stage", stage),
        *("--profile", pipeline.profile_name),
        *("--checkpoint", str(pipeline.weights(stage))),
        *(("--reference", str(start)) if is_compared and start else ()),
        *("--data_path", str(pipeline.heldout(stage))),
        *("--results_file", str(pipeline.tf_dir / "eval_results.jsonl")),
        *("--tokenizer_dir", str(pipeline.tokenizer_dir)),
        *("--device", pipeline.runs[stage].train.device),
        *("--run_id", run_id),
    ]
