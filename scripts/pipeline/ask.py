"""What `run.sh` asks about its stages: which are done, and with which commands the others run.
查询流水线各阶段的状态。

python scripts/pipeline/ask.py --profile cpu begin pretrain
python scripts/pipeline/ask.py --profile cpu command pretrain train
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.cli import Parser, run
from configs.messages import SMOKE_NOTE, SMOKE_PROFILE, both
from configs.paths import OUT_DIR, ROOT, display
from configs.schema import UserError
from configs.stage_table import OPTIONAL_STAGES, STAGE_TABLE, STAGES
from scripts.pipeline.book import StageBook
from scripts.pipeline.plan import (
    PIPELINE,
    Pipeline,
    evaluate_command,
    export_command,
    mix_command,
    pipeline_from_environment,
    tokenizer_command,
    train_command,
)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--profile", required=True, metavar="NAME", help="configs/NAME.yaml 配置")
    parser.add_argument("--gpus_found", type=int, default=0, metavar="N", help="GPUs of this machine 找到的显卡数 (0)")
    parser.add_argument("--with", dest="optional", default="", metavar="A,B", help="optional stages 另加的阶段")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("check", help="check the profile, PRETRAIN_ARGS, SFT_ARGS ... 检查设置")
    redo = verbs.add_parser("redo-from", help="let a stage and all after it start over 从某阶段起重做")
    redo.add_argument("stage", choices=PIPELINE)
    begin = verbs.add_parser("begin", help="print `run` or `up to date` 是否需要运行")
    begin.add_argument("stage", choices=PIPELINE)
    finish = verbs.add_parser("finish", help="mark a stage as done 标记完成")
    finish.add_argument("stage", choices=PIPELINE)
    finish.add_argument("--seconds", type=int, required=True, metavar="N", help="how long it took 用时（秒）")
    command = verbs.add_parser("command", help="print a stage's command, an argument a line 打印该阶段的命令")
    command.add_argument("stage", choices=PIPELINE)
    command.add_argument("step", nargs="?", default="", choices=("", *STAGES, "train", "evaluate"))
    verbs.add_parser("report", help="print where the weights are and how to chat 打印结果位置")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Answer one question."""
    arguments = build_parser().parse_args(argv)
    pipeline = pipeline_from_environment(arguments.profile, arguments.gpus_found, optional_stages(arguments.optional))
    if (stage := getattr(arguments, "stage", "mix")) not in pipeline.stages:
        raise UserError(f"stage {stage}: an optional one. Add --with {stage}.", f"可选阶段，请加 --with {stage}")
    book = StageBook(pipeline)
    match arguments.verb:
        case "redo-from":
            book.redo_from(arguments.stage)
        case "begin":
            print("run" if book.begin(arguments.stage) else "up to date")
        case "finish":
            book.finish(arguments.stage, arguments.seconds)
        case "command":
            print("\n".join(command_of(pipeline, book, arguments.stage, arguments.step)))
        case "report":
            report(pipeline)
    book.hashes.save()
    return 0


def optional_stages(text: str) -> list[str]:
    """The names in `--with`. Raises: UserError on one that is no optional stage."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OPTIONAL_STAGES:
            raise UserError(
                f"--with {name}: must be among {', '.join(OPTIONAL_STAGES)}.", "没有这个阶段：请用列出的名称"
            )
    return names


def command_of(pipeline: Pipeline, book: StageBook, stage: str, step: str) -> list[str]:
    """The arguments that the environment's Python is given for a stage, or for one step of it."""
    if stage == "mix":
        return mix_command(pipeline)
    if stage == "tokenizer":
        return tokenizer_command(pipeline)
    if stage == "export":
        return export_command(pipeline, step)
    if step == "train":
        afresh = ["--from_resume", "0"] if book.must_start_over(stage) else []
        return [*train_command(pipeline, stage), *afresh]
    return evaluate_command(pipeline, stage, book.run_id(stage))


def report(pipeline: Pipeline) -> None:
    """Where everything is, and the commands to talk to the model and to serve it."""
    print(both("Weights:", "权重："))
    for stage in pipeline.runs:
        print(f"  {display(pipeline.weights(stage))}")
    print(both("Scores:", "评测结果："), f"  {display(pipeline.tf_dir / 'eval_results.jsonl')}", sep="\n")
    if pipeline.profile.profile == SMOKE_PROFILE:
        print(f"  {SMOKE_NOTE}")
    python = Path(sys.executable)  # not resolved: an environment's Python is a link to another one
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    folder = "" if pipeline.out_dir == OUT_DIR else f" --out_dir {display(pipeline.out_dir)}"
    print(
        both("Talk to it:", "和它对话："),
        f"  {python} {display(ROOT / 'eval_model.py')} --model_mode 2{folder}",
        sep="\n",
    )
    for stage in pipeline.runs:
        if flags := talk_flags(pipeline, stage):
            print(f"  {python} {display(ROOT / 'eval_model.py')} {flags}")
    venv = "" if Path(sys.prefix) == ROOT / ".venv" else f"VENV_DIR={display(Path(sys.prefix))} "
    print(
        both("Web page and API:", "网页与接口："),
        f"  {venv}bash {display(ROOT / 'scripts' / 'serve.sh')}{folder}",
        sep="\n",
    )


def talk_flags(pipeline: Pipeline, stage: str) -> str:
    """How one talks to the weights of an optional stage; "" for those that always run, and for
    weights that only judge."""
    weights, spec = pipeline.weights(stage), STAGE_TABLE[stage]
    if not spec.optional or not spec.talks:
        return ""
    if spec.folder:
        base = pipeline.start(stage)
        return f"--weight {display(base)} --lora_name {display(weights)}" if base else ""
    return f"--weight {display(weights)}"


if __name__ == "__main__":
    run(main)
