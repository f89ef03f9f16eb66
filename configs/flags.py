"""The trainers' flags, and how they resolve with the profile into one run. Imports no torch."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from configs.cli import Parser, add_switch
from configs.load import load_profile
from configs.paths import DATA_DIR, OUT_DIR, TF_DIR, TOKENIZER_DIR
from configs.schema import (
    DEVICES,
    DTYPES,
    OPTIMIZERS,
    PRESETS,
    SCHEDULES,
    ModelConfig,
    TrainConfig,
    as_dict,
    preset,
)
from configs.stage_table import STAGE_TABLE, tensor_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRun:
    """One call of a trainer: what to train, on what, from where, to where."""

    stage: str
    profile: str
    model: ModelConfig
    """Shape asked for; a stage that starts from weights takes theirs and refuses a contradicting flag."""
    shape_flags: dict[str, Any]
    """The shape as far as flags gave it."""
    train: TrainConfig
    data_path: Path
    tokenizer_dir: Path
    from_weight: str
    """A path, a stage's weight name (`pretrain`, `full_sft`), or `none`."""
    from_resume: bool
    out_dir: Path
    tf_dir: Path
    words: tuple[str, ...] = ()
    """The flags as they were given: a helper process of this run is given the same."""


def default_tokenizer_dir(out_dir: Path) -> Path:
    """The tokenizer trained in this run where there is one (`OUT_DIR/tokenizer`), else the one that ships."""
    trained = out_dir / "tokenizer"
    return trained if (trained / "tokenizer.pkl").exists() else TOKENIZER_DIR


def env_path(variable: str, default: Path) -> Path:
    """A folder from the environment (`DATA_DIR`, `OUT_DIR`, `TF_DIR`), else the default."""
    value = os.environ.get(variable)
    return Path(value) if value else default


def add_shape_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the model's shape."""
    shape = parser.add_argument_group("model shape 模型结构 (default: the profile 默认取自配置)")
    shape.add_argument(
        "--preset", metavar="NAME", help=f"{', '.join(PRESETS)}, or WIDTHxDEPTH; flags change it further 预设结构"
    )
    shape.add_argument("--vocab_size", type=int, metavar="N", help="tokens in the vocabulary 词表大小")
    shape.add_argument("--hidden_size", type=int, metavar="N", help="width of the network 隐藏层宽度")
    shape.add_argument("--num_hidden_layers", type=int, metavar="N", help="number of blocks 层数")
    shape.add_argument("--num_attention_heads", type=int, metavar="N", help="query heads 查询头数")
    shape.add_argument("--num_key_value_heads", type=int, metavar="N", help="key and value heads 键值头数")
    shape.add_argument("--intermediate_size", type=int, metavar="N", help="width of the SwiGLU 前馈层宽度")
    shape.add_argument("--dropout", type=float, metavar="P", help="share of residual outputs dropped 丢弃率")
    add_switch(shape, "--use_moe", help="mixture of experts 混合专家模型")
    shape.add_argument("--num_experts", type=int, metavar="N", help="experts in a block 专家数")
    shape.add_argument("--num_experts_per_tok", type=int, metavar="N", help="experts a token 每个词元用的专家数")
    shape.add_argument("--moe_intermediate_size", type=int, metavar="N", help="width of an expert 专家宽度")


def build_parser(stage: str, description: str) -> Parser:
    """The parser of one trainer."""
    parser = Parser(description=description)
    paths = parser.add_argument_group("data and weights 数据与权重")
    paths.add_argument(
        "--profile", default=None, metavar="NAME", help="configs/NAME.yaml, or a YAML file 配置 (default)"
    )
    paths.add_argument(
        "--data_path", type=Path, metavar="PATH", help="token tensors or a JSONL file 张量目录或 JSONL 文件"
    )
    paths.add_argument("--tokenizer_dir", type=Path, metavar="DIR", help="tokenizer folder 分词器目录")
    paths.add_argument(
        "--out_dir", "--save_dir", dest="out_dir", type=Path, metavar="DIR", help="where weights go 权重输出目录 (out)"
    )
    paths.add_argument("--tf_dir", type=Path, metavar="DIR", help="where metrics go 指标输出目录 (tf_dir)")
    paths.add_argument(
        "--from_weight",
        default=STAGE_TABLE[stage].start,
        metavar="NAME|PATH",
        help="weights to start from, or none 起始权重 (%(default)s)",
    )
    add_switch(
        paths,
        "--from_resume",
        default=True,
        help="go on where the same run was interrupted 从中断处继续 (1)",
    )
    add_shape_flags(parser)
    add_train_flags(parser, stage)
    return parser


def add_train_flags(parser: argparse.ArgumentParser, stage: str) -> None:
    """The flags of the loop."""
    loop = parser.add_argument_group("training 训练 (default: the profile 默认取自配置)")
    unit = "pairs 对" if STAGE_TABLE[stage].data == "pairs" else "rows 行"
    loop.add_argument("--epochs", type=int, metavar="N", help="passes over the data 轮数")
    loop.add_argument("--max_steps", type=int, metavar="N", help="stop after N steps; 0: by epochs 最多步数")
    loop.add_argument(
        "--tokens_per_step", type=int, metavar="N", help="tokens in a step; 0: by rule 每步词元数，0 为自动"
    )
    loop.add_argument(
        "--batch_size", type=int, metavar="N", help=f"{unit} in a micro-batch; 0: by memory 微批大小，0 为自动"
    )
    loop.add_argument(
        "--accumulation_steps", type=int, metavar="N", help="micro-batches in a step; 0: by rule 梯度累积，0 为自动"
    )
    loop.add_argument(
        "--cpu_processes", type=int, metavar="N", help="processes on a CPU, a core each at least CPU 上的进程数"
    )
    loop.add_argument("--max_seq_len", type=int, metavar="N", help="tokens in a row 序列长度")
    loop.add_argument(
        "--learning_rate", type=float, metavar="LR", help="peak learning rate; 0: by rule 峰值学习率，0 为自动"
    )
    loop.add_argument("--optimizer", choices=OPTIMIZERS, help="muon or adamw 优化器")
    loop.add_argument("--schedule", choices=SCHEDULES, help="learning rate over time 学习率曲线")
    loop.add_argument(
        "--embedding_lr_ratio",
        type=float,
        metavar="R",
        help="embedding's rate as a multiple of the others'; 0: by rule 词嵌入学习率的倍数，0 为自动",
    )
    loop.add_argument("--warmup_ratio", type=float, metavar="P", help="share of steps to warm up 预热比例")
    loop.add_argument("--warmdown_ratio", type=float, metavar="P", help="share of steps to warm down 衰减比例")
    loop.add_argument(
        "--min_lr_ratio", type=float, metavar="P", help="last rate as a share of the peak 最终学习率占峰值的比例"
    )
    loop.add_argument("--weight_decay", type=float, metavar="W", help="decay of the matrices 权重衰减")
    loop.add_argument("--grad_clip", type=float, metavar="G", help="largest gradient norm; 0: none 梯度裁剪")
    if stage == "dpo":
        loop.add_argument("--beta", type=float, metavar="B", help="pull towards the reference 参考模型约束强度")
        loop.add_argument(
            "--sft_loss_weight", type=float, metavar="W", help="weight of the chosen answer's loss 优选回答的损失权重"
        )
    loop.add_argument("--seed", type=int, metavar="N", help="seed of all randomness 随机种子")
    loop.add_argument("--device", metavar="NAME", help=f"{', '.join(DEVICES)} or cuda:N 设备")
    loop.add_argument("--dtype", choices=DTYPES, help="arithmetic of the products 计算精度")
    add_switch(loop, "--use_compile", help="torch.compile the step (default: in long runs) 编译训练步")
    add_switch(loop, "--deterministic", help="on a GPU: the same bits in each run, slower 显卡上逐位可复现，较慢")
    add_switch(
        loop,
        "--gradient_checkpointing",
        help="keep less and compute it again: less memory, slower 重算激活以节省显存",
    )
    loop.add_argument("--num_workers", type=int, metavar="N", help="processes that tokenize; 0: one a core 分词进程数")
    log = parser.add_argument_group("log and save 日志与保存")
    log.add_argument("--log_interval", type=int, metavar="N", help="steps between log lines 日志间隔")
    log.add_argument("--save_interval", type=int, metavar="N", help="steps between saves 保存间隔")
    log.add_argument("--eval_interval", type=int, metavar="N", help="steps between validations; 0: five 验证间隔")
    add_switch(log, "--use_wandb", help="log to wandb or swanlab 记录到 wandb 或 swanlab")


def resolve_run(stage: str, arguments: argparse.Namespace) -> TrainRun:
    """Flags over profile over schema. Raises: UserError on a value out of range."""
    profile = load_profile(arguments.profile or "default")
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    shape, shape_flags = profile.model, {}
    if arguments.preset is not None:
        shape = replace(shape, head_dim=0, intermediate_size=0)  # widths that follow from those of the preset
        shape_flags = preset(arguments.preset)
    shape_flags |= {f.name: given[f.name] for f in fields(ModelConfig) if f.name in given}
    loop_flags = {f.name: given[f.name] for f in fields(TrainConfig) if f.name in given}
    out_dir = arguments.out_dir or env_path("OUT_DIR", OUT_DIR)
    data_dir = env_path("DATA_DIR", DATA_DIR)
    return TrainRun(
        stage=stage,
        profile=profile.profile,
        model=replace(shape, **shape_flags).resolve(),
        shape_flags=shape_flags,
        train=replace(profile.stage(stage), **loop_flags),
        data_path=arguments.data_path or data_dir / tensor_folder(STAGE_TABLE[stage].data),
        tokenizer_dir=arguments.tokenizer_dir or default_tokenizer_dir(out_dir),
        from_weight=arguments.from_weight,
        from_resume=arguments.from_resume,
        out_dir=out_dir,
        tf_dir=arguments.tf_dir or env_path("TF_DIR", TF_DIR),
    )


def parse_run(stage: str, description: str, argv: Sequence[str] | None = None) -> TrainRun:
    """Parse a trainer's command line."""
    words = tuple(sys.argv[1:] if argv is None else argv)
    return replace(resolve_run(stage, build_parser(stage, description).parse_args(words)), words=words)


def run_settings(run: TrainRun, neutral: frozenset[str]) -> dict[str, Any]:
    """What a stage's result depends on, as plain data."""
    train = {key: value for key, value in as_dict(run.train).items() if key not in neutral}
    return {"stage": run.stage, "model": as_dict(run.model), "train": train, "from_weight": run.from_weight}
