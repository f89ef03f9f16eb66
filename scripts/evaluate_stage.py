"""Evaluate a checkpoint on held-out records and append one JSON line of metrics.
在留出数据上评估一个阶段。

python scripts/evaluate_stage.py --stage sft
python scripts/evaluate_stage.py --stage pretrain --checkpoint out/pretrain_512.pth \\
    --data_path my_heldout.jsonl
"""

import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.artifacts import append_line, atomic_write, fingerprint, require_writable, sha256_file
from configs.cli import Parser, run
from configs.flags import STAGE_BEFORE, WEIGHT_NAMES, default_tokenizer_dir, env_path, latest_weights
from configs.load import load_profile
from configs.paths import DANGER_PROMPTS, DATA_DIR, FIRST_MINUTES, OUT_DIR, TF_DIR, display, find_dataset
from configs.schema import STAGES, UserError, as_dict
from dataset.mix import FEW_HELDOUT, MANIFEST_FILE, OUTPUTS
from dataset.records import read_records, split_of
from dataset.tokenizer import RustBPETokenizer
from evaluation.baselines import training_examples
from evaluation.danger import DangerPrompt, load_danger_prompts
from evaluation.first_minutes import HALVES as PROMPT_HALVES
from evaluation.first_minutes import KINDS_OF_ANY_MODEL, Prompt, load_prompts
from evaluation.intervals import Metric
from evaluation.provenance import is_bundled, mixture_of, names_of, not_trained_on
from evaluation.report import tables, wrong_answers
from evaluation.stage import Evaluation
from trainer.checkpoint import check_tokenizer, load_model
from trainer.runtime import choose_device, seed_everything

HALVES = {
    "test": "the half that no trainer reads and no validation curve is drawn from",
    "validation": "the half that settings may have been chosen by; no test half in this file",
}
"""Value of `split` -> what is said about it; the first that a file has is evaluated on."""


@dataclass(frozen=True)
class Heldout:
    """Held-out records of one file."""

    path: Path
    sha256: str
    split: str
    records: list[dict[str, Any]]
    notes: list[str]
    """What was left out, and why."""
    counts: Counter[str]
    """Held-out records of each category in the file, both halves."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=STAGES, help="what the checkpoint is 阶段")
    parser.add_argument("--profile", default="default", metavar="NAME", help="configs/NAME.yaml 配置 (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="weights 权重 (newest of the stage 默认最新)")
    parser.add_argument("--reference", type=Path, metavar="PATH", help="DPO: weights it started from DPO 的参考权重")
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
    parser.add_argument("--tokenizer_dir", type=Path, metavar="DIR", help="tokenizer folder 分词器目录")
    parser.add_argument("--out_dir", type=Path, metavar="DIR", help="where the weights are 权重所在目录 (out)")
    parser.add_argument("--max_samples", type=int, metavar="N", help="records a category; 0: all 每类最多条数")
    parser.add_argument("--batch_size", type=int, metavar="N", help="answers side by side 并行生成条数")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps 设备 (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the choice of samples 随机种子")
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
    flags = {name: getattr(arguments, name) for name in ("max_samples", "batch_size", "seed")}
    settings = as_dict(replace(profile.evaluate, **{name: n for name, n in flags.items() if n is not None}))
    seed = settings.pop("seed")
    out_dir = arguments.out_dir or env_path("OUT_DIR", OUT_DIR)
    results = arguments.results_file or env_path("TF_DIR", TF_DIR) / "eval_results.jsonl"
    if arguments.run_id and already_recorded(results, arguments.run_id, stage):
        print(f"{display(results)}: run {arguments.run_id} has its {stage} line already")
        return 0
    require_writable(results.parent)
    path = find_dataset(arguments.checkpoint) if arguments.checkpoint else latest_weights(WEIGHT_NAMES[stage], out_dir)
    data_path = arguments.data_path or env_path("DATA_DIR", DATA_DIR) / f"{stage}_chinese_heldout.jsonl"
    device = choose_device(arguments.device)
    seed_everything(seed)

    tokenizer_dir = arguments.tokenizer_dir or default_tokenizer_dir(path.parent)
    tokenizer = RustBPETokenizer.from_directory(tokenizer_dir)
    model, manifest = load_model(path, device=device)
    model.eval()
    check_tokenizer(path, manifest, tokenizer.sha256, display(tokenizer_dir))
    if manifest["stage"] != stage:
        raise UserError(
            f"{display(path)}: weights of stage {manifest['stage']}, not {stage}. Give another --checkpoint."
        )
    examples = training_examples(manifest["training_data"], seed, with_texts=stage == "pretrain")
    heldout = read_heldout(data_path, manifest, examples.seen, settings["max_samples"], seed)
    mixture = mixture_of(heldout.path.parent, manifest["training_data"])
    names = names_of(mixture, (profile.mix.name, profile.mix.author))
    prompts = choose_prompts(arguments.first_minutes, stage, arguments.half, names, everything=is_bundled(mixture))
    danger = choose_danger_prompts(arguments.danger_prompts, stage)
    length = manifest["settings"]["train"]["max_seq_len"]
    evaluation = Evaluation(model, tokenizer, names, settings, length, examples)
    evaluation.notes += heldout.notes
    counts = heldout.counts

    if stage == "pretrain":
        metrics = evaluation.of_texts(heldout.records) if heldout.records else {}
    elif stage == "sft":
        metrics = evaluation.of_chats(heldout.records) if heldout.records else {}
    else:
        reference = arguments.reference or reference_path(path, manifest)
        start, _ = load_model(reference, device=device)
        beta = manifest["settings"]["train"]["beta"]
        metrics = evaluation.of_pairs(heldout.records, start.eval(), beta) if heldout.records else {}
        chats = arguments.sft_data_path or sibling(heldout.path)
        if chats is not None:
            heldout_chats = read_heldout(chats, manifest, examples.seen, settings["max_samples"], seed)
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
    if not metrics and heldout.records:
        reasons = "; ".join(evaluation.notes)
        raise UserError(f"{display(heldout.path)}: nothing to evaluate on ({reasons}). Give another --data_path.")

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
    print("\n".join([*tables(metrics), *(f"  {note}" for note in evaluation.notes)]))
    for label, asked, said, verdict in evaluation.samples:
        answered = "续写" if label == "开头" else "答"
        text = " ".join(f"{label}: {asked}  {answered}: {said.text}".split("\n"))  # a line each
        print(f"  {text}{'' if said.ended else ' …'} {verdict}".rstrip())
    print("\n".join(wrong_answers(evaluation.verdicts, arguments.show_wrong)), end="\n" * bool(arguments.show_wrong))
    print(f"-> {display(results)}")
    return 0


def already_recorded(results: Path, run_id: str, stage: str) -> bool:
    """Whether this run's line of this stage stands in the results file."""
    if not results.exists():
        return False
    for number, text in enumerate(results.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            raise UserError(f"{display(results)}:{number}: not a JSON line. Mend or remove that line.") from None
        if line.get("run_id") == run_id and line.get("stage") == stage:
            return True
    return False


def read_heldout(path: Path, manifest: dict[str, Any], seen: set[bytes], max_samples: int, seed: int) -> Heldout:
    """Records to evaluate on: the `test` ones where the file has a split, at most `max_samples` a
    category and kind.

    Those that were trained on (`seen`: hashes of the training's questions and texts) are left out.
    Raises: UserError when the file is training data of the checkpoint, or has nothing to evaluate
    on.
    """
    path = find_dataset(path)
    digest = sha256_file(path)
    for source in manifest["training_data"]:
        if source["sha256"] == digest:
            raise UserError(
                f"{display(path)}: this checkpoint was trained on this very file, so a score on it means nothing. "
                "Give a held-out file."
            )
    records = list(read_records(path))
    counts = Counter(
        "preference" if "chosen" in record else str(record.get("category", "general")) for record in records
    )
    marked = {split_of(record) for record in records}
    split = next((name for name in HALVES if name in marked), "all")
    if split != "all":
        records = [record for record in records if record.get("split") == split]
    if not records and (path.parent / MANIFEST_FILE).exists() and path.name in OUTPUTS.values():
        note = f"{display(path)}: the mix held no record out: trained on, and not judged | 没有留出记录，不做评测"
        return Heldout(path, digest, split, [], [note], Counter())
    if not records:
        raise UserError(f"{display(path)}: no record to evaluate on. Give another --data_path.")
    notes = []
    unseen = not_trained_on(records, seen)
    if left_out := len(records) - len(unseen):
        notes.append(f"{display(path)}: {left_out} of {len(records)} records left out: the model was trained on them")
    if not unseen:
        raise UserError(
            f"{display(path)}: this checkpoint was trained on every one of its {len(records)} records, so a score on them "
            "means nothing. Give a held-out file."
        )
    records = unseen
    if max_samples:
        by_kind: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for record in records:
            by_kind[str(record.get("category", "")), str(record.get("kind", ""))].append(record)
        choose = random.Random(seed)
        records = [r for kept in by_kind.values() for r in choose.sample(kept, min(max_samples, len(kept)))]
    return Heldout(path, digest, split, records, notes, counts)


def without_few(metrics: dict[str, Metric], counts: Mapping[str, int], notes: list[str]) -> dict[str, Metric]:
    """The metrics without accuracies that stand on fewer than `FEW_HELDOUT` held-out records; a
    note says which."""
    left = dict(metrics)
    for category, count in sorted(counts.items()):
        prefix = "preference_accuracy" if category == "preference" else f"accuracy_{category}"
        gone = [name for name in left if name == prefix or name.startswith(f"{prefix}_")]
        if gone and count < FEW_HELDOUT:
            left = {name: metric for name, metric in left.items() if name not in gone}
            notes.append(
                f"{category}: {count} held-out records here, fewer than {FEW_HELDOUT}: no accuracy is printed "
                f"| 此处只有 {count} 条留出记录，不给出准确率"
            )
    return left


def choose_prompts(given: str, stage: str, half: str, names: tuple[str, str], *, everything: bool) -> list[Prompt]:
    """The first prompts to ask after SFT and every later stage: of `unseen` one half, of `core`
    all; only what any model can be asked unless its general talk and its knowledge are the bundled
    ones. Raises: UserError."""
    if given == "none" or stage == "pretrain" or (not given and not FIRST_MINUTES.exists()):
        return []
    prompts = load_prompts(find_dataset(Path(given)) if given else FIRST_MINUTES, names)
    return [
        prompt for prompt in prompts
        if (prompt.is_core or prompt.half == half) and (everything or prompt.kind in KINDS_OF_ANY_MODEL)
    ]  # fmt: skip


def choose_danger_prompts(given: str, stage: str) -> list[DangerPrompt]:
    """All prompts about a life in danger, after SFT and every later stage: whatever a model was
    taught, people will write these to it. Raises: UserError."""
    if given == "none" or stage == "pretrain" or (not given and not DANGER_PROMPTS.exists()):
        return []
    return load_danger_prompts(find_dataset(Path(given)) if given else DANGER_PROMPTS)


def reference_path(checkpoint: Path, manifest: dict[str, Any]) -> Path:
    """The weights that a DPO checkpoint started from, beside it. Raises: UserError when they are
    others by now."""
    start = manifest["start"]
    path = checkpoint.parent / start["path"]
    if not path.exists() or sha256_file(path) != start["sha256"]:
        raise UserError(
            f"{display(path)}: not the {STAGE_BEFORE['dpo']} weights that {display(checkpoint)} started from. "
            "Give them with --reference."
        )
    return path


def sibling(path: Path) -> Path | None:
    """The held-out chats beside held-out pairs, to see what preference training did to the
    answers."""
    chats = path.with_name(path.name.replace("dpo", "sft"))
    return chats if chats != path and chats.exists() else None


if __name__ == "__main__":
    run(main)
