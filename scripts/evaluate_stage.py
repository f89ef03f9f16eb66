"""Evaluate a checkpoint on held-out records and append one JSON line of metrics.
在留出数据上评估一个阶段。

python scripts/evaluate_stage.py --stage sft
python scripts/evaluate_stage.py --stage lora --lora_name lora_identity
python scripts/evaluate_stage.py --stage pretrain --checkpoint out/pretrain_512.pth \\
    --data_path my_heldout.jsonl
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from configs.artifacts import append_line, atomic_write, fingerprint, require_writable
from configs.cli import Parser, run
from configs.flags import add_knobs, add_shared, given_knobs
from configs.load import load_profile
from configs.messages import SMOKE_NOTE, SMOKE_PROFILE
from configs.paths import (
    OUT_DIR,
    TF_DIR,
    display,
    env_path,
)
from configs.schema import EvalConfig, UserError
from configs.stage_table import STAGE_TABLE
from evaluation.exam import (
    BESIDE_CHATS,
    START_MATTERS,
    Exam,
    Request,
    evaluation_of,
    heldout_of_mix,
    open_checkpoint,
    set_exam,
    take_exam,
    with_data_of,
)
from evaluation.first_minutes import HALVES as PROMPT_HALVES
from evaluation.heldout import HALVES
from evaluation.intervals import Metric
from evaluation.report import sample_lines, tables, wrong_answers
from evaluation.results import is_recorded, require_numbers, require_ours
from evaluation.stage import Evaluation
from inference.loading import OpenModel
from model.device import choose_device
from model.quantize import KINDS, NONE
from model.weights import weights_sha256


def main(argv: Sequence[str] | None = None) -> int:
    """Checkpoint + held-out file -> a table, three answers, one line in the results file."""
    started = time.perf_counter()
    request = request_of(build_parser().parse_args(argv))
    if request.run_id and is_recorded(request.results_file, request.run_id, request.stage):
        print(f"{display(request.results_file)}: run {request.run_id} has its {request.stage} line already")
        return 0
    require_places(request)
    checkpoint = open_checkpoint(request)
    request = with_data_of(checkpoint, request)
    exam = set_exam(request, checkpoint)
    evaluation = evaluation_of(request, checkpoint, exam)
    metrics = take_exam(request, checkpoint, exam, evaluation)
    require_numbers(checkpoint.path, request.stage, metrics)

    append_line(request.results_file, result_line(request, checkpoint, exam, metrics, started))
    if request.answers_file:
        with atomic_write(request.answers_file) as file:
            file.writelines(json.dumps(one.as_json(), ensure_ascii=False) + "\n" for one in evaluation.verdicts)
    show(request, checkpoint, exam, evaluation, metrics)
    return 0


# --- what was asked for ---------------------------------------------------------------------------


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=STAGE_TABLE, help="what the checkpoint is 阶段")
    add_shared(parser, "profile")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", type=Path, metavar="PATH", help="weights 权重 (newest of the stage 默认最新)")
    add_shared(weights, "load_from")
    parser.add_argument(
        "--quantize",
        choices=(NONE, *KINDS),
        default=NONE,
        help="keep the weights in less memory, on a CPU 量化权重后再评测，只用于 CPU (%(default)s)",
    )
    parser.add_argument(
        "--reference", type=Path, metavar="PATH", help="DPO, LoRA: the weights it started from 起始权重"
    )
    parser.add_argument("--lora_name", default="", metavar="NAME", help="LoRA: which adapter 适配器的名字")
    parser.add_argument("--data_path", type=Path, metavar="FILE", help="held-out JSONL 留出数据")
    parser.add_argument(
        "--sft_data_path", type=Path, metavar="FILE", help="held-out chats beside it 同时评测的留出对话"
    )
    parser.add_argument(
        "--first_minutes",
        default="",
        metavar="FILE",
        help="prompts that a person types first, or none 人们最先输入的话，none 为不评 (dataset/first_minutes.jsonl)",
    )
    parser.add_argument(
        "--danger_prompts",
        default="",
        metavar="FILE",
        help="prompts about a life in danger, or none 有人有生命危险时的话，none 为不评 (dataset/danger_prompts.jsonl)",
    )
    parser.add_argument(
        "--half", default="report", choices=PROMPT_HALVES, help="which of its halves 用其中哪一半 (%(default)s)"
    )
    parser.add_argument(
        "--results_file",
        type=Path,
        metavar="FILE",
        help="where the line goes 结果写入的文件 (tf_dir/eval_results.jsonl)",
    )
    add_shared(parser, "tokenizer_dir", "out_dir", "device")
    add_knobs(parser, EvalConfig)
    parser.add_argument(
        "--show_wrong", type=int, default=0, metavar="N", help="print N wrong answers a metric 打印错误回答"
    )
    parser.add_argument("--answers_file", type=Path, metavar="FILE", help="write all answers there, JSONL 写出全部回答")
    parser.add_argument("--run_id", default="", metavar="ID", help="name of this run; recorded once a stage 运行编号")
    return parser


def request_of(arguments: Namespace) -> Request:
    """The flags, resolved. Raises: UserError if one belongs to another stage or is out of range."""
    stage, profile = arguments.stage, load_profile(arguments.profile)
    data = STAGE_TABLE[stage].data
    for name, stages in (("reference", START_MATTERS), ("sft_data_path", BESIDE_CHATS), ("lora_name", ("lora",))):
        if stage not in stages and getattr(arguments, name):
            only = " or ".join(stages)
            raise UserError(f"--{name}: only for --stage {only}. Leave it out.", f"只用于 --stage {only}：请去掉")
    default = None if STAGE_TABLE[stage].data_set else heldout_of_mix(data)
    as_given = (
        "checkpoint", "load_from", "quantize", "tokenizer_dir", "reference", "lora_name", "sft_data_path", "first_minutes",
        "danger_prompts", "half", "answers_file", "run_id", "show_wrong",
    )  # fmt: skip
    return Request(
        stage=stage,
        profile=profile,
        settings=replace(profile.evaluate, **given_knobs(arguments, EvalConfig)),
        out_dir=arguments.out_dir or env_path("OUT_DIR", OUT_DIR),
        data=data,
        data_path=arguments.data_path or default,
        results_file=arguments.results_file or env_path("TF_DIR", TF_DIR) / "eval_results.jsonl",
        device=choose_device(arguments.device),
        **{name: getattr(arguments, name) for name in as_given},
    )


def require_places(request: Request) -> None:
    """Raises: UserError if results can't be written, or if a file holds something else."""
    require_writable(request.results_file.parent)
    require_ours(request.results_file, "metrics", "--results_file")
    if request.answers_file:
        require_ours(request.answers_file, "metric", "--answers_file")


# --- what is kept and shown -----------------------------------------------------------------------


def result_line(
    request: Request, checkpoint: OpenModel, exam: Exam, metrics: Mapping[str, Metric], started: float
) -> dict[str, Any]:
    """The line of the results file. Args: started: `time.perf_counter()` when the program began."""
    settings = asdict(request.settings)
    del settings["seed"]  # the line has a field of its own for it
    if exam.prompts:
        settings["first_minutes"] = {"half": request.half, "kinds": sorted({prompt.kind for prompt in exam.prompts})}
    if exam.danger:
        settings["danger_prompts"] = len(exam.danger)
    if checkpoint.quantize != NONE:
        settings["quantize"] = checkpoint.quantize
    dtype = next(checkpoint.model.parameters()).dtype
    return {
        "run_id": request.run_id or fingerprint([str(checkpoint.path), time.time_ns()])[:12],
        "stage": request.stage,
        "profile": checkpoint.manifest.profile,
        "checkpoint": display(checkpoint.path),
        "checkpoint_sha256": weights_sha256(checkpoint.path),
        "tokenizer_sha256": checkpoint.tokenizer.sha256,
        "data_path": display(exam.heldout.path),
        "data_sha256": exam.heldout.sha256,
        "split": exam.heldout.split,
        "seed": request.settings.seed,
        "device": str(request.device),
        "dtype": str(dtype).removeprefix("torch."),
        "settings": settings,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.perf_counter() - started, 2),
        "metrics": {name: metric.as_json() for name, metric in metrics.items()},
    }


def show(
    request: Request, checkpoint: OpenModel, exam: Exam, evaluation: Evaluation, metrics: Mapping[str, Metric]
) -> None:
    """Print tables, notes, three answers, and as many wrong ones a metric as were asked for."""
    split = exam.heldout.split
    print(f"{request.stage}: {display(exam.heldout.path)}, split {split} ({HALVES.get(split, 'all records')})")
    notes = [*evaluation.notes, *([SMOKE_NOTE] if checkpoint.manifest.profile == SMOKE_PROFILE else [])]
    print("\n".join([*tables(metrics), *(f"  {note}" for note in notes), *sample_lines(evaluation.samples)]))
    if request.show_wrong:
        print("\n".join(wrong_answers(evaluation.verdicts, request.show_wrong)))
    print(f"-> {display(request.results_file)}")


if __name__ == "__main__":
    run(main)
