"""One call of a trainer: its flags, and how flags and profile become its settings.

Imports no torch.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.cli import Parser, add_switch
from configs.flags import SHARED, add_knobs, add_shared, given_knobs
from configs.knobs import knobs_of
from configs.load import load_profile
from configs.paths import DATA_DIR, OUT_DIR, TF_DIR, default_tokenizer_dir, env_path, find_model_folder
from configs.schema import PRESETS, ModelConfig, TrainConfig, UserError, preset
from configs.stage_table import STAGE_TABLE, tensor_folder

LOG_AND_SAVE = ("log_interval", "save_interval", "eval_interval", "use_wandb")
"""Fields of TrainConfig whose flags have their own group in `--help`."""
HASHED_BEFORE = {stage: {"beta": 0.1, "sft_loss_weight": 0.0} for stage in ("pretrain", "sft")}
"""Settings that every stage had in older versions, with the values that they had in the stages that
did not use them. Fingerprints still cover them, so that finished work stays finished."""
ADDED_SINCE = {"sft": ("replay_share", "replay_without")}
"""Settings that older versions of a stage did not have. For the same reason fingerprints cover them
only where they differ from their defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRun:
    """One call of a trainer: what it trains, on which data, from which weights, in which
    folders."""

    stage: str
    profile: str
    model: ModelConfig
    """The shape that profile and flags ask for. A stage that starts from weights takes their shape,
    and no flag may contradict it."""
    shape_flags: dict[str, Any]
    """The part of the shape that was given as flags."""
    train: TrainConfig
    data_path: Path
    tokenizer_dir: Path
    from_weight: str
    """A path (of a Hugging Face folder too), the beginning of a weight file's name (`pretrain`,
    `full_sft`), or `none`."""
    from_resume: bool
    out_dir: Path
    tf_dir: Path
    words: tuple[str, ...] = ()
    """The flags as they were given. Further processes of this run get the same flags."""


def build_parser(stage: str, description: str) -> Parser:
    """The parser of one trainer: a flag for each of its settings, and the flags of all programs."""
    parser, settings = Parser(description=description), STAGE_TABLE[stage].settings
    paths = parser.add_argument_group("data and weights 数据与权重")
    add_shared(paths, "profile")
    paths.add_argument(
        "--data_path",
        type=Path,
        metavar="PATH",
        help="token tensors, a JSONL file, or the name of a bundled set 张量目录、JSONL 文件或自带数据集的名字",
    )
    add_shared(paths, "tokenizer_dir")
    paths.add_argument("--out_dir", "--save_dir", **SHARED["out_dir"])  # other projects use the second name
    add_shared(paths, "tf_dir")
    starts = paths.add_mutually_exclusive_group()
    starts.add_argument(
        "--from_weight",
        default=STAGE_TABLE[stage].start,
        metavar="NAME|PATH",
        help="weights to start from, or none 起始权重 (%(default)s)",
    )
    add_shared(starts, "load_from")
    add_switch(paths, "--from_resume", default=True, help="resume where the same run was interrupted 从中断处继续 (1)")
    add_shape_flags(parser)
    common = [name for name in knobs_of(TrainConfig) if name not in LOG_AND_SAVE]
    add_knobs(parser.add_argument_group("training 训练 (default: the profile 默认取自配置)"), settings, *common)
    if own := [name for name in knobs_of(settings) if name not in knobs_of(TrainConfig)]:
        add_knobs(
            parser.add_argument_group("this stage alone 仅此阶段 (default: the profile 默认取自配置)"), settings, *own
        )
    add_knobs(parser.add_argument_group("log and save 日志与保存"), settings, *LOG_AND_SAVE)
    return parser


def add_shape_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the model's shape."""
    shape = parser.add_argument_group("model shape 模型结构 (default: the profile 默认取自配置)")
    shape.add_argument(
        "--preset", metavar="NAME", help=f"{', '.join(PRESETS)}, or WIDTHxDEPTH; flags change it further 预设结构"
    )
    add_knobs(shape, ModelConfig)


def resolve_run(stage: str, arguments: argparse.Namespace) -> TrainRun:
    """The settings of a run: a flag overrides the profile, which overrides the schema's default.

    Raises: UserError for a value out of range.
    """
    profile, spec = load_profile(arguments.profile), STAGE_TABLE[stage]
    shape, shape_flags = profile.model, {}
    if arguments.preset is not None:
        shape = replace(shape, head_dim=0, intermediate_size=0)  # to be computed from the preset's widths
        shape_flags = preset(arguments.preset)
    shape_flags |= given_knobs(arguments, ModelConfig)
    out_dir = arguments.out_dir or env_path("OUT_DIR", OUT_DIR)
    data_dir = env_path("DATA_DIR", DATA_DIR)
    if arguments.load_from and arguments.tokenizer_dir:
        raise UserError(
            "--tokenizer_dir: a model given by --load_from has its own tokenizer. Leave one of the two out.",
            "--load_from 的模型自带分词器：请去掉其中一个",
        )
    from_weight, tokenizer_dir = arguments.from_weight, arguments.tokenizer_dir or default_tokenizer_dir(out_dir)
    if arguments.load_from:
        tokenizer_dir = find_model_folder(arguments.load_from).resolve()
        from_weight = str(tokenizer_dir)
    return TrainRun(
        stage=stage,
        profile=profile.profile,
        model=replace(shape, **shape_flags).resolve(),
        shape_flags=shape_flags,
        train=replace(profile.stages[stage], **given_knobs(arguments, spec.settings)),
        data_path=arguments.data_path or Path(spec.data_set or data_dir / tensor_folder(spec.data)),
        tokenizer_dir=tokenizer_dir,
        from_weight=from_weight,
        from_resume=arguments.from_resume,
        out_dir=out_dir,
        tf_dir=arguments.tf_dir or env_path("TF_DIR", TF_DIR),
    )


def parse_run(stage: str, description: str, argv: Sequence[str] | None = None) -> TrainRun:
    """The run that a trainer's command line asks for. Raises: UserError."""
    words = tuple(sys.argv[1:] if argv is None else argv)
    return replace(resolve_run(stage, build_parser(stage, description).parse_args(words)), words=words)


def run_settings(run: TrainRun) -> dict[str, Any]:
    """The settings that a stage's result depends on, as plain data."""
    knobs = knobs_of(type(run.train))
    train = {name: value for name, value in asdict(run.train).items() if knobs[name].changes_result}
    return {"stage": run.stage, "model": asdict(run.model), "train": train, "from_weight": run.from_weight}


def hashed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What fingerprints cover: all settings of a stage, with those of HASHED_BEFORE, and without
    those of ADDED_SINCE that nobody has set."""
    stage, train = settings["stage"], settings["train"]
    default = STAGE_TABLE[stage].settings()
    unset = {name for name in ADDED_SINCE.get(stage, ()) if train.get(name) == getattr(default, name)}
    kept = {name: value for name, value in train.items() if name not in unset}
    return settings | {"train": HASHED_BEFORE.get(stage, {}) | kept}
