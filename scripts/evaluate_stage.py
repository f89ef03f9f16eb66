"""Evaluate a checkpoint on held-out records and append one JSON line of metrics.
在留出数据上评估一个阶段。

python scripts/evaluate_stage.py --stage sft
python scripts/evaluate_stage.py --stage pretrain --checkpoint out/pretrain_512.pth \\
    --data_path my_heldout.jsonl
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.artifacts import append_line, atomic_write, fingerprint, require_writable, sha256_file
from configs.cli import Parser, run
from configs.flags import add_knobs, add_shared, given_knobs
from configs.load import load_profile
from configs.messages import SMOKE_NOTE, SMOKE_PROFILE, both
from configs.paths import (
    DANGER_PROMPTS,
    DATA_DIR,
    FIRST_MINUTES,
    OUT_DIR,
    TF_DIR,
    default_tokenizer_dir,
    display,
    env_path,
    find_dataset,
    latest_weights,
    trainer_command,
)
from configs.schema import EvalConfig, UserError
from configs.stage_table import STAGE_TABLE, continues_text, heldout_file
from dataset.tokenizer import RustBPETokenizer
from evaluation.baselines import training_examples
from evaluation.danger import DangerPrompt, load_danger_prompts
from evaluation.first_minutes import HALVES as PROMPT_HALVES
from evaluation.first_minutes import KINDS_OF_ANY_MODEL, Prompt, load_prompts
from evaluation.heldout import HALVES, read_heldout, without_few
from evaluation.intervals import Metric
from evaluation.provenance import is_bundled, is_held_out_by_a_mix, mixture_of, names_of, trained_on
from evaluation.report import tables, wrong_answers
from evaluation.results import read_results, require_ours
from evaluation.stage import Evaluation
from model.device import choose_device, seed_everything
from model.weights import check_tokenizer, load_model

UNNAMED = "\ufffc"
"""Stands in a prompt's rule for a name that nobody knows."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=STAGE_TABLE, help="what the checkpoint is 阶段")
    add_shared(parser, "profile")
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="weights 权重 (newest of the stage 默认最新)")
    parser.add_argument(
        "--reference", type=Path, metavar="PATH", help="DPO: the very weights it started from DPO 的起始权重"
    )
    parser.add_argument("--data_path", type=Path, metavar="FILE", help="held-out JSONL 留出数据")
    parser.add_argument("--sft_data_path", type=Path, metavar="FILE", help="DPO: held-out chats 留出对话")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Checkpoint + held-out file -> a table, three answers, one line in the results file."""
    started = time.perf_counter()
    arguments = build_parser().parse_args(argv)
    stage, profile = arguments.stage, load_profile(arguments.profile)
    data = STAGE_TABLE[stage].data
    for name in ("reference", "sft_data_path"):
        if data != "pairs" and getattr(arguments, name) is not None:
            raise UserError(f"--{name}: only for --stage dpo. Leave it out.", "只用于 --stage dpo：请去掉")
    settings = asdict(replace(profile.evaluate, **given_knobs(arguments, EvalConfig)))
    seed = settings.pop("seed")
    out_dir = arguments.out_dir or env_path("OUT_DIR", OUT_DIR)
    results = arguments.results_file or env_path("TF_DIR", TF_DIR) / "eval_results.jsonl"
    if arguments.run_id and already_recorded(results, arguments.run_id, stage):
        print(f"{display(results)}: run {arguments.run_id} has its {stage} line already")
        return 0
    require_writable(results.parent)
    require_ours(results, "metrics", "--results_file")
    if arguments.answers_file:
        require_ours(arguments.answers_file, "metric", "--answers_file")
    path = (
        find_dataset(arguments.checkpoint)
        if arguments.checkpoint
        else latest_weights(STAGE_TABLE[stage].weights, out_dir)
    )
    data_path = arguments.data_path or env_path("DATA_DIR", DATA_DIR) / heldout_file(data)
    device = choose_device(arguments.device)
    seed_everything(seed)

    tokenizer_dir = arguments.tokenizer_dir or default_tokenizer_dir(path.parent)
    tokenizer = RustBPETokenizer.from_directory(tokenizer_dir)
    model, manifest = load_model(path, device=device)
    model.eval()
    check_tokenizer(path, manifest, tokenizer.sha256, display(tokenizer_dir))
    if manifest.get("stage") != stage:
        raise UserError(
            f"{display(path)}: weights of stage {manifest.get('stage')}, not {stage}. Give another --checkpoint.",
            "权重不属于该阶段：请换 --checkpoint 或 --stage",
        )
    require_parts(path, manifest, stage)
    sources = manifest["training_data"]
    examples = training_examples(sources, seed, with_texts=data == "documents")
    trained = trained_on(sources, examples, path.parent, with_texts=data == "documents")
    heldout = read_heldout(data_path, stage, trained, settings["max_samples"], seed)
    folders = [heldout.path.parent, *(Path(source["path"]).parent for source in sources)]
    mixture = next(filter(None, (mixture_of(folder, sources) for folder in folders)), None)
    names = names_of(mixture, (profile.mix.name, profile.mix.author))
    prompts, unnamed = choose_prompts(
        arguments.first_minutes, stage, arguments.half, names, everything=is_bundled(mixture)
    )
    danger = choose_danger_prompts(arguments.danger_prompts, stage)
    length = manifest["settings"]["train"]["max_seq_len"]
    evaluation = Evaluation(model, tokenizer, names, settings, length, examples)
    evaluation.notes += [*heldout.notes, *unnamed]
    counts = heldout.counts

    if data == "documents":
        metrics = evaluation.of_texts(heldout.records) if heldout.records else {}
    elif data == "conversations":
        metrics = evaluation.of_chats(heldout.records) if heldout.records else {}
    else:
        start, _ = load_model(reference_path(arguments.reference, path, manifest), device=device)
        beta = manifest["settings"]["train"]["beta"]
        metrics = evaluation.of_pairs(heldout.records, start.eval(), beta) if heldout.records else {}
        chats = arguments.sft_data_path or sibling(heldout.path)
        if chats is not None:
            heldout_chats = read_heldout(chats, "sft", trained, settings["max_samples"], seed)
            evaluation.notes += heldout_chats.notes
            counts |= heldout_chats.counts
            metrics |= evaluation.of_chats(heldout_chats.records) if heldout_chats.records else {}
    metrics = without_few(metrics, counts, evaluation.notes)
    if prompts:
        metrics |= evaluation.of_prompts(prompts)
        settings["first_minutes"] = {"half": arguments.half, "kinds": sorted({prompt.kind for prompt in prompts})}
    if danger:
        metrics |= evaluation.of_danger(danger)
        settings["danger_prompts"] = len(danger)
    if not metrics and heldout.records and not is_held_out_by_a_mix(heldout.path):
        reasons = "; ".join(note.partition(" | ")[0] for note in evaluation.notes)
        raise UserError(
            f"{display(heldout.path)}: nothing to evaluate on ({reasons}). Give another --data_path.",
            "没有可评测的记录：请换 --data_path",
        )

    require_numbers(path, stage, metrics)
    line = {
        "run_id": arguments.run_id or fingerprint([str(path), time.time_ns()])[:12],
        "stage": stage,
        "profile": manifest["profile"],
        "checkpoint": display(path),
        "checkpoint_sha256": sha256_file(path),
        "tokenizer_sha256": tokenizer.sha256,
        "data_path": display(heldout.path),
        "data_sha256": heldout.sha256,
        "split": heldout.split,
        "seed": seed,
        "device": str(device),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "settings": settings,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.perf_counter() - started, 2),
        "metrics": {name: metric.as_json() for name, metric in metrics.items()},
    }
    append_line(results, line)
    if arguments.answers_file:
        with atomic_write(arguments.answers_file) as file:
            file.writelines(json.dumps(one.as_json(), ensure_ascii=False) + "\n" for one in evaluation.verdicts)
    print(f"{stage}: {display(heldout.path)}, split {heldout.split} ({HALVES.get(heldout.split, 'all records')})")
    evaluation.notes += [SMOKE_NOTE] if manifest["profile"] == SMOKE_PROFILE else []
    show(evaluation, metrics, arguments.show_wrong)
    print(f"-> {display(results)}")
    return 0


def require_numbers(path: Path, stage: str, metrics: Mapping[str, Metric]) -> None:
    """Raises: UserError where a score is NaN or infinite."""
    if broken := [name for name, m in metrics.items() if not all(map(math.isfinite, (m.value, m.low, m.high)))]:
        raise UserError(
            f"{display(path)}: {', '.join(broken)} can't be told in numbers: the weights are damaged. Train them again: "
            f"{trainer_command(STAGE_TABLE[stage].weights)}.",
            "得分不是有限的数：权重已损坏，请重新训练",
        )


def show(evaluation: Evaluation, metrics: Mapping[str, Metric], num_wrong: int) -> None:
    """Print the tables, the notes, three answers, and as many wrong ones a metric as were asked for."""
    print("\n".join([*tables(metrics), *(f"  {note}" for note in evaluation.notes)]))
    for label, asked, said, verdict in evaluation.samples:
        answered = "续写" if label == "开头" else "答"
        text = " ".join(f"{label}: {asked}  {answered}: {said.text}".split("\n"))  # a line each
        print(f"  {text}{'' if said.ended else ' …'} {verdict}".rstrip())
    print("\n".join(wrong_answers(evaluation.verdicts, num_wrong)), end="\n" * bool(num_wrong))


def require_parts(path: Path, manifest: Mapping[str, Any], stage: str) -> None:
    """Raises: UserError where weights don't say what an evaluation must know of them."""
    try:
        pairs = STAGE_TABLE[stage].data == "pairs"
        hashed = [*manifest["training_data"], *([manifest["start"]] if pairs else [])]
        named = [part[name] for part in hashed for name in ("path", "sha256")] + [manifest["profile"]]
        train = manifest["settings"]["train"]
        if (
            not all(isinstance(text, str) for text in named)
            or not train["max_seq_len"] > 0
            or (pairs and not train["beta"] > 0)
        ):
            raise TypeError("a part is of another type")
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{display(path)}: its manifest doesn't say how it was trained ({error}). Give another --checkpoint, or "
            f"train it again: {trainer_command(STAGE_TABLE[stage].weights)}.",
            "权重缺少训练信息：请重新训练或换 --checkpoint",
        ) from None


def already_recorded(results: Path, run_id: str, stage: str) -> bool:
    """Whether this run's line of this stage stands in the results file."""
    lines = read_results(results, smoke=True)
    return any(line.get("run_id") == run_id and line.get("stage") == stage for line in lines)


def choose_prompts(
    given: str, stage: str, half: str, names: tuple[str, str], *, everything: bool
) -> tuple[list[Prompt], list[str]]:
    """The first prompts to ask after SFT and every later stage: of `unseen` one half, of `core`
    all; only what any model can be asked unless its general talk and its knowledge are the bundled
    ones. With them a line about those left out, since nobody knows the name that they ask for.
    Raises: UserError."""
    if given == "none" or continues_text(stage) or (not given and not FIRST_MINUTES.exists()):
        return [], []
    filled = (names[0] or UNNAMED, names[1] or UNNAMED)
    prompts = load_prompts(find_dataset(Path(given)) if given else FIRST_MINUTES, filled)
    chosen = [
        prompt for prompt in prompts
        if (prompt.is_core or prompt.half == half) and (everything or prompt.kind in KINDS_OF_ANY_MODEL)
    ]  # fmt: skip
    named = [prompt for prompt in chosen if not _asks_for_unknown_name(prompt)]
    if len(named) == len(chosen):
        return chosen, []
    note = both(
        f"{len(chosen) - len(named)} first prompts left out: your identity records tell no name to ask for. Pass --name and "
        "--author to build_chinese_mix.py, or set them in configs/mixture.yaml",
        "不知道模型叫什么，相关问题不评：请在 configs/mixture.yaml 中设置 name 和 author",
    )
    return named, [note]


def _asks_for_unknown_name(prompt: Prompt) -> bool:
    texts = (*prompt.turns, *prompt.accept, *prompt.all_of, *prompt.forbid)
    return any(UNNAMED in text for text in texts)


def choose_danger_prompts(given: str, stage: str) -> list[DangerPrompt]:
    """All prompts about a life in danger, after SFT and every later stage: whatever a model was
    taught, people will write these to it. Raises: UserError."""
    if given == "none" or continues_text(stage) or (not given and not DANGER_PROMPTS.exists()):
        return []
    return load_danger_prompts(find_dataset(Path(given)) if given else DANGER_PROMPTS)


def reference_path(given: Path | None, checkpoint: Path, manifest: dict[str, Any]) -> Path:
    """The very weights that a DPO checkpoint started from: those that were given, else those beside
    it. Against any others its margins mean nothing. Raises: UserError."""
    start = manifest["start"]
    path = find_dataset(given) if given else checkpoint.parent / start["path"]
    if not path.exists() or sha256_file(path) != start["sha256"]:
        raise UserError(
            f"{display(path)}: not the weights that {display(checkpoint)} started from ({start['path']}, SHA-256 "
            f"{start['sha256'][:8]}). Give those with --reference, or train anew: python trainer/train_dpo.py.",
            "不是 DPO 训练的起始权重：请用 --reference 指定，或重新训练",
        )
    return path


def sibling(path: Path) -> Path | None:
    """The held-out chats beside held-out pairs, to see what preference training did to the
    answers."""
    chats = path.with_name(path.name.replace("dpo", "sft"))
    return chats if chats != path and chats.exists() else None


if __name__ == "__main__":
    run(main)
