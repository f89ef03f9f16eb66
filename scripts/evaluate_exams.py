"""Score a model on public Chinese benchmarks, beside baselines that know nothing.
在公开的中文基准上评测，旁边列出“什么都不懂”的对照。

python scripts/evaluate_exams.py --tasks zhoblimp,xcopa_zh
python scripts/evaluate_exams.py --weight out/full_sft_512.pth --tasks cmmlu,cmath --fast
python scripts/evaluate_exams.py --load_from ~/Qwen3-0.6B --tasks cmmlu --shots 5 --form cloze
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from configs.artifacts import append_line, atomic_write, require_writable
from configs.cli import Parser, add_switch, run
from configs.flags import add_shared
from configs.paths import DATA_DIR, ROOT, TF_DIR, display, env_path, find_model_folder
from configs.schema import UserError
from evaluation.benchmarks.contamination import Contamination, contamination
from evaluation.benchmarks.prompts import FORMS
from evaluation.benchmarks.sitting import FAST_LIMIT, Outcome, Sitting, is_on, result_of, sit
from evaluation.benchmarks.table import lines_of
from evaluation.benchmarks.tasks import TASKS, Task
from evaluation.benchmarks.training_text import TrainingText, training_text
from evaluation.results import require_ours
from inference.loading import OpenModel, open_model, weights_to_talk_to
from model.device import choose_device, dtype_name, seed_everything
from model.weights import weights_sha256

DEFAULT_DATA = ROOT / "data" / "benchmarks"


def main(argv: Sequence[str] | None = None) -> int:
    """Weights + benchmark files -> a table and a line in the results file for each task."""
    arguments = build_parser().parse_args(argv)
    tasks, results_file = tasks_of(arguments.tasks), results_of(arguments)
    require_places(arguments, results_file)
    model = open_weights(arguments)
    seed_everything(arguments.seed)
    mix = training_text(arguments.mix_dir or env_path("DATA_DIR", DATA_DIR), model.manifest.training_data)
    bigram = mix.bigram(model.manifest.training_data) if mix else None
    facts = facts_of(arguments, model)
    if mix is None:
        print(
            "no mix: without bigram and contamination (--mix_dir) | 没有配比：不含二元模型和污染检查", file=sys.stderr
        )
    sat: list[tuple[Sitting, Outcome, float]] = []
    for task in tasks:
        started = time.perf_counter()
        sitting = sitting_of(arguments, task, model)
        outcome = sit(sitting, model, bigram)
        outcome.notes += mix.notes if mix else ()
        sat.append((sitting, outcome, time.perf_counter() - started))
    # All tasks are looked for in one pass over the training text.
    found = looked_for(mix, [outcome for _, outcome, _ in sat])
    for (sitting, outcome, seconds), contaminated in zip(sat, found, strict=True):
        line = line_of(sitting, outcome, contaminated, facts, seconds)
        append_line(results_file, line)
        print("\n".join(lines_of(line)))
    if arguments.save_answers:
        save_answers(arguments.save_answers, sat, found)
    print(f"-> {display(results_file)}")
    return 0


# --- what was asked for ---------------------------------------------------------------------------


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weight", type=Path, metavar="PATH", help="weights 权重 (newest of the last stage 默认最新)")
    add_shared(weights, "load_from")
    parser.add_argument(
        "--tasks", default=",".join(TASKS), metavar="NAMES", help="comma between them 基准，逗号分隔 (%(default)s)"
    )
    parser.add_argument(
        "--data_dir", type=Path, default=DEFAULT_DATA, metavar="DIR", help="original files 原始文件 (data/benchmarks)"
    )
    parser.add_argument("--split", default="", metavar="NAME", help="part to score 评测哪一部分 (that of each task)")
    parser.add_argument(
        "--shots", type=int, default=0, metavar="N", help="examples before a question 示例数 (%(default)s)"
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        default=FORMS[0],
        help="compare the letters, or the options' texts 比较选项字母还是选项文本 (%(default)s)",
    )
    parser.add_argument(
        "--chat_template",
        choices=("auto", "on", "off"),
        default="auto",
        help="auto: on for answers that chat weights generate 对话模板 (%(default)s)",
    )
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="items of each task, drawn 每项抽取的题数 (0: all)"
    )
    add_switch(parser, "--fast", help=f"{FAST_LIMIT} items of each task 每项只评 {FAST_LIMIT} 题")
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=128,
        metavar="N",
        help="longest generated answer 生成的最大长度 (%(default)s)",
    )
    parser.add_argument(
        "--mix_dir", type=Path, metavar="DIR", help="mix for bigram and contamination 训练所用配比的目录 (DATA_DIR)"
    )
    parser.add_argument("--results_file", type=Path, metavar="FILE", help="结果文件 (tf_dir/benchmark_results.jsonl)")
    parser.add_argument("--save_answers", type=Path, metavar="FILE", help="write all answers there, JSONL 写出全部回答")
    parser.add_argument(
        "--seed", type=int, default=42, metavar="N", help="of --limit and random weights 随机种子 (%(default)s)"
    )
    add_shared(parser, "tokenizer_dir", "out_dir", "device")
    return parser


def tasks_of(names: str) -> list[Task]:
    """The tasks of the flag. Raises: UserError for an unknown one, or none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in TASKS:
            raise UserError(f"--tasks {name}: unknown. There are {', '.join(TASKS)}.", "没有这个基准：请从所列的选")
    if not wanted:
        raise UserError(f"--tasks: names none. There are {', '.join(TASKS)}.", "没有给出基准：请从所列的选")
    return [TASKS[name] for name in dict.fromkeys(wanted)]


def results_of(arguments: Namespace) -> Path:
    """The results file."""
    return arguments.results_file or env_path("TF_DIR", TF_DIR) / "benchmark_results.jsonl"


def require_places(arguments: Namespace, results_file: Path) -> None:
    """Raises: UserError if results can't be written, a file holds something else, or a number is
    out of range."""
    for name, lowest in (("limit", 0), ("max_new_tokens", 1), ("seed", 0)):
        if getattr(arguments, name) < lowest:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be {lowest} or more.", f"不能小于 {lowest}")
    require_writable(results_file.parent)
    require_ours(results_file, "metrics", "--results_file")
    if arguments.save_answers:
        require_ours(arguments.save_answers, "task", "--save_answers")


def open_weights(arguments: Namespace) -> OpenModel:
    """The model. Raises: UserError if there is none."""
    if arguments.load_from:
        path = find_model_folder(arguments.load_from)
    else:
        path = weights_to_talk_to(arguments.weight, mode=None, out_dir=arguments.out_dir)
    return open_model(path, device=choose_device(arguments.device), tokenizer_dir=arguments.tokenizer_dir)


def sitting_of(arguments: Namespace, task: Task, model: OpenModel) -> Sitting:
    """The flags as they apply to a task."""
    limits = [limit for limit in (arguments.limit, FAST_LIMIT if arguments.fast else 0) if limit]
    return Sitting(
        task=task,
        data_dir=arguments.data_dir,
        split=arguments.split or next(iter(task.splits)),
        form=arguments.form,
        shots=arguments.shots,
        limit=min(limits, default=0),
        chat=is_on(arguments.chat_template, task, model),
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )


# --- what is kept ---------------------------------------------------------------------------------


def looked_for(mix: TrainingText | None, outcomes: Sequence[Outcome]) -> list[Contamination | None]:
    """What of each task stands in the training text; None without one."""
    if mix is None:
        return [None] * len(outcomes)
    everything = contamination([item for outcome in outcomes for item in outcome.items], mix.texts())
    parts, start = [], 0
    for outcome in outcomes:
        end = start + len(outcome.items)
        parts.append(Contamination(everything.found[start:end], everything.checkable[start:end]))
        start = end
    return list(parts)


def facts_of(arguments: Namespace, model: OpenModel) -> dict[str, Any]:
    """What the lines of all tasks have in common."""
    return {
        "weight": display(model.path),
        "stage": model.manifest.stage,
        "num_parameters": model.num_parameters,
        "model_sha256": weights_sha256(model.path),
        "tokenizer_sha256": model.tokenizer.sha256,
        "seed": arguments.seed,
        "device": str(model.model.device),
        "dtype": dtype_name(next(model.model.parameters()).dtype),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def line_of(
    sitting: Sitting, outcome: Outcome, contaminated: Contamination | None, facts: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The line of a task in the results file."""
    reading = outcome.reading
    return {
        "task": sitting.task.name,
        "form": sitting.form if sitting.task.kind == "choice" else sitting.task.kind,
        "shots": sitting.shots,
        "chat_template": sitting.chat,
        "split": sitting.split,
        "limit": sitting.limit,
        **result_of(outcome, contaminated),
        **facts,
        "data_sha256": outcome.sha256,
        "tokens_read": reading.tokens,
        "tokens_without_sharing": reading.tokens_alone,
        "tokens_per_second": round(reading.tokens / reading.seconds) if reading.seconds else 0,
        "seconds": round(seconds, 2),
        "notes": outcome.notes,
    }


def save_answers(
    path: Path, sat: Sequence[tuple[Sitting, Outcome, float]], found: Sequence[Contamination | None]
) -> None:
    """A line for each item: what was asked, what the model chose or said, whether it is right."""
    with atomic_write(path) as file:
        for (sitting, outcome, _), contaminated in zip(sat, found, strict=True):
            for number, (item, answer) in enumerate(zip(outcome.items, outcome.answers, strict=True)):
                line = {
                    "task": sitting.task.name,
                    "group": item.group,
                    "question": item.asked,
                    "options": item.options,
                    "answer": item.answer if item.options else item.golden,
                    **answer,
                    "right": {name: values[number] for name, values in outcome.outcomes.items()},
                    "contaminated": None if contaminated is None else contaminated.found[number],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
