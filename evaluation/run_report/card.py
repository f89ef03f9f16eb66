"""model_card.md beside the weights: the card of an export, with the facts of a run."""

import torch

from evaluation.run_report.advice import best_baseline
from evaluation.run_report.facts import Facts, RunFolders, shape_of, weights_of
from evaluation.run_report.page import shown
from evaluation.run_report.report import judged_stages
from evaluation.run_report.words import METRICS, STAGES, is_share
from model.manifest import WeightsManifest
from model.model_card import model_card
from model.model_minillm import MiniLLM
from model.weights import read_checkpoint

USE = """\
```bash
python eval_model.py --weight {file}
python scripts/convert_model.py --input {file} --to hf --output FOLDER
```
"""
"""How one uses a weight file of ours."""


def main_stage(facts: Facts) -> str | None:
    """The stage that the card is about: the last of those that always run and have weights."""
    order = [stage for stage in ("pretrain", "sft", "dpo") if (facts["stages"].get(stage) or {}).get("weights")]
    others = [stage for stage, one in facts["stages"].items() if one["weights"] and one["weights"]["shape"]]
    return (order or others or [None])[-1]


def run_card(folders: RunFolders, facts: Facts) -> str | None:
    """The text of the card; None without weights."""
    stage = main_stage(facts)
    path = weights_of(folders.out, stage) if stage else None
    if path is None:
        return None
    content = read_checkpoint(path, "")
    with torch.device("meta"):
        model = MiniLLM(shape_of(content["config"]))
    sections = [section for section in (data_section(facts), training_section(facts), scores_section(facts)) if section]
    manifest = WeightsManifest.from_plain(content["manifest"])
    return model_card(model, manifest, use=USE.format(file=path.name), sections=sections)


def data_section(facts: Facts) -> str:
    """Where the records come from."""
    rows = [
        f"| {source['file']} | {source['category']} | {shown(source['kept'], '')} | {shown(source['heldout'], '')} |"
        for source in facts["mix"].get("sources", [])
    ]
    if not rows:
        return ""
    return "\n".join(
        ["Records 记录:", "", "| source 来源 | category 类别 | kept 采用 | held out 留出 |", "|---|---|--:|--:|", *rows]
    )


def training_section(facts: Facts) -> str:
    """What each stage took."""
    rows = []
    for stage, one in facts["stages"].items():
        machine = (one["weights"] or {}).get("machine", {})
        time = shown(one["train_seconds"], "time") if one["train_seconds"] is not None else "–"
        tokens = shown(one["tokens"], "") if one["tokens"] is not None else "–"
        where = f"{machine.get('device', '–')}, {machine.get('dtype', '–')}"
        rows.append(f"| {stage} {STAGES[stage][0]} | {tokens} | {time} | {where} |")
    return "\n".join(
        ["Training 训练:", "", "| stage 阶段 | tokens 词元 | time 用时 | device 设备 |", "|---|--:|--:|---|", *rows]
    )


def scores_section(facts: Facts) -> str:
    """The main scores of all stages, on held-out records."""
    judged = judged_stages(facts)
    metrics = {stage: facts["stages"][stage]["evaluation"]["metrics"] for stage in judged}
    names = [name for name in METRICS if any(name in metrics[stage] for stage in judged)]
    if not names:
        return ""
    rows = []
    for name in names:
        chinese, english = METRICS[name]
        title = chinese if chinese == english else f"{english} {chinese}"
        rows.append(f"| {title} | {' | '.join(score_cell(name, metrics[stage].get(name)) for stage in judged)} |")
    head = [
        "Scores on held-out records, with 95% intervals; in brackets the best baseline without a model 留出数据得分、",
        "95% 区间，方括号内为不用模型的最好基线:",
        "",
        f"| | {' | '.join(judged)} |",
        f"|---|{'--:|' * len(judged)}",
    ]
    return "\n".join([*head, *rows])


def score_cell(name: str, metric: Facts | None) -> str:
    """A score with its interval and baseline."""
    if metric is None:
        return "–"
    kind = "share" if is_share(name) else ""
    low, high = (shown(bound, kind) for bound in metric["ci95"])
    baseline = best_baseline(metric)
    beside = f" [{shown(baseline, 'share')}]" if baseline is not None else ""
    return f"{shown(metric['value'], kind)} ({low} to {high}){beside}"
