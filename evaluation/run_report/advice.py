"""Warnings in words, and what to try next: rules over the facts of a run, no opinion of anybody.

Each rule says what it has seen, with the numbers, and never guesses at a cause that the files do
not show. Several warnings may ask for the same remedy, which is named once.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from configs.messages import SMOKE_PROFILE
from configs.stage_table import continues_text
from evaluation.run_report.curves import rounded
from evaluation.run_report.facts import Facts
from evaluation.run_report.words import metric_names

RISE = 1.02
"""Validation this many times above its lowest value counts as rising."""
SPIKE = 1.5
"""A loss this many times the median of its ten neighbours before counts as a jump."""
SLOW = 0.6
"""A speed below this share of the run's median, over a tenth of the run, counts as slowed down."""
MANY_DROPPED, MANY_ROUNDS = 0.3, 3.0
"""Share of a file's records that were dropped, and repetition of a category, to warn about."""
ALL_RIGHT = 0.999
"""A baseline from here on leaves no room: the table shows such scores, and no rule judges them."""
FEW_CLUSTERS = 30
"""Below so many distinct facts an interval is too wide to choose by."""
USUAL_TOKENS = 20
"""Training tokens a parameter, as Hoffmann et al. 2022 (arXiv:2203.15556, table 3) find best for a
fixed amount of computing. Small models are often trained on many more."""
STILL_FALLING = 0.05
"""Share by which validation fell between its last two values: then more steps would still help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A warning or a piece of advice, in both languages."""

    rule: str
    stage: str
    chinese: str
    english: str
    remedy: str = ""
    """The key of REMEDIES that helps."""


REMEDIES = {
    "overfit": (
        "减少轮数（--epochs），或在 data/chinese/ 里增加不同的数据；也可以调大 weight_decay。",
        "Train fewer epochs (--epochs), or add more varied data to data/chinese/; a larger weight_decay helps too.",
    ),
    "lower_rate": (
        "把该阶段的 --learning_rate 减半再试，或调大 warmup_ratio。",
        "Try half the --learning_rate for this stage, or a larger warmup_ratio.",
    ),
    "damage": (
        "后训练损伤了已学会的内容：把 --learning_rate 减半，DPO 可调大 --beta 或 --sft_loss_weight。",
        "Post-training damaged what was learnt: halve its --learning_rate; for DPO raise --beta or --sft_loss_weight.",
    ),
    "more_wordings": (
        "得分未超过基线的类别：为每个事实增加几种不同的问法，而不是重复同一种。",
        "Categories no better than a baseline: add several wordings of each fact instead of repeating one.",
    ),
    "more_text": (
        "预训练词元偏少：在 data/chinese/ 里加入更多原始文本，或换更小的模型。",
        "Few pretraining tokens: add raw text to data/chinese/, or take a smaller model.",
    ),
    "more_steps": (
        "训练还不够：增加 --epochs（或 --max_steps），或增加数据。",
        "Trained too little: more --epochs (or --max_steps), or more data.",
    ),
    "resume": (
        "再次运行同一条命令，从中断处继续。",
        "Run the same command again: it resumes where it stopped.",
    ),
    "evaluate": (
        "运行 python scripts/evaluate_stage.py --stage NAME，补上这次评测。",
        "Run python scripts/evaluate_stage.py --stage NAME to get the missing scores.",
    ),
    "more_heldout": (
        "区间太宽、难以比较：把 --heldout_share 调大，或增加该类数据。",
        "Intervals too wide to compare by: raise --heldout_share, or add records of that kind.",
    ),
    "clean": (
        "查看 DATA_DIR/rejects.jsonl 里写明的原因，改正来源文件后重跑。",
        "Read the reasons in DATA_DIR/rejects.jsonl, fix the source files, and run again.",
    ),
    "quiet": (
        "训练时关闭其他占用处理器的程序。",
        "Close other programs that use the processor while it trains.",
    ),
}  # fmt: skip
"""Key -> what to try, in Chinese and English; the most important first."""


def notes_of(facts: Facts) -> Facts:
    """The warnings about a run, and what to try next, as plain data."""
    warnings = [*of_profile(facts), *of_mix(facts)]
    is_smoke = facts["profile"] == SMOKE_PROFILE  # whose scores mean nothing
    for stage, one in facts["stages"].items():
        warnings += [*of_stage(stage, one), *of_curves(stage, one)]
        warnings += [] if is_smoke else of_scores(stage, one)
    warnings += [] if is_smoke else [*of_changes(facts), *of_answers(facts)]
    advice = [*warnings, *of_budget(facts), *of_endings(facts)]
    wanted: dict[str, list[str]] = {}
    for note in advice:
        if note.remedy and note.stage not in wanted.setdefault(note.remedy, []):
            wanted[note.remedy].append(note.stage)
    return {
        "warnings": [asdict(note) for note in warnings],
        "next": [
            {"remedy": name, "stages": wanted[name], "chinese": chinese, "english": english}
            for name, (chinese, english) in REMEDIES.items()
            if name in wanted
        ],
        "reasons": [asdict(note) for note in advice[len(warnings) :]],
    }


# --- one rule each --------------------------------------------------------------------------------


def of_profile(facts: Facts) -> Iterator[Note]:
    """A smoke test's scores mean nothing."""
    if facts["profile"] == SMOKE_PROFILE:
        yield Note(
            rule="smoke",
            stage="",
            chinese="这是冒烟测试：只说明流程能跑通，分数没有意义。",
            english="This is a smoke test: it shows that everything runs, and its scores mean nothing.",
        )


def of_mix(facts: Facts) -> Iterator[Note]:
    """Rejected lines, records that were dropped, and categories that are repeated often."""
    mix = facts["mix"]
    if rejected := sum(mix.get("rejects", {}).values()):
        yield Note(
            rule="rejects",
            stage="",
            remedy="clean",
            chinese=f"数据来源中有 {rejected} 行无法读取，已跳过。",
            english=f"{rejected} lines of the sources could not be read and were left out.",
        )
    for source in mix.get("sources", []):
        # Records beyond a target are dropped on purpose.
        dropped = sum(count for reason, count in (source["dropped"] or {}).items() if reason != "not sampled")
        if source["read"] and dropped / source["read"] > MANY_DROPPED:
            share = round(100 * dropped / source["read"])
            yield Note(
                rule="dropped",
                stage="",
                remedy="clean",
                chinese=f"{source['file']}：{share}% 的记录被丢弃（重复，或与留出题相同）。",
                english=f"{source['file']}: {share}% of its records were dropped (duplicates, or held-out questions).",
            )
    for name, category in mix.get("categories", {}).items():
        if category.get("repetition", 1) > MANY_ROUNDS:
            times = f"{category['repetition']:.1f}"
            yield Note(
                rule="repetition",
                stage="",
                remedy="overfit",
                chinese=f"类别 {name} 的每条记录平均重复 {times} 次。",
                english=f"Each record of the category {name} is repeated {times} times.",
            )


def of_stage(stage: str, one: Facts) -> Iterator[Note]:
    """A stage that was stopped, and one without a score."""
    if one["state"] != "done":
        steps = one["steps"]
        where = (f"，最后一条记录在第 {steps} 步", f"; its last line is of step {steps}") if steps else ("", "")
        yield Note(
            rule="unfinished",
            stage=stage,
            remedy="resume",
            chinese=f"{stage} 没有训练完{where[0]}。",
            english=f"{stage} did not end{where[1]}.",
        )
    elif one["evaluation"] is None:
        yield Note(
            rule="not_evaluated",
            stage=stage,
            remedy="evaluate",
            chinese=f"{stage} 没有评测结果。",
            english=f"{stage} has no evaluation.",
        )


def of_curves(stage: str, one: Facts) -> Iterator[Note]:
    """Overfitting, jumps, gradients that are cut all the time, a machine that was busy."""
    curves = one["curves"]
    validation = curves.get("validation_loss", [])
    if len(validation) >= 3:
        step, lowest = min(validation, key=lambda point: point[1])
        if validation[-1][1] > RISE * lowest:
            now = rounded(validation[-1][1])
            yield Note(
                rule="overfitting",
                stage=stage,
                remedy="overfit",
                chinese=f"{stage}：验证损失从第 {step} 步起上升（{rounded(lowest)} → {now}）：过拟合。",
                english=f"{stage}: validation rises since step {step} ({rounded(lowest)} to {now}): overfitting.",
            )
    if (jump := _jump(curves.get("loss", []))) is not None:
        yield Note(
            rule="jump",
            stage=stage,
            remedy="lower_rate",
            chinese=f"{stage}：训练损失在第 {jump[0]} 步附近突然升高（{jump[1]} → {jump[2]}）。",
            english=f"{stage}: the training loss jumps near step {jump[0]} ({jump[1]} to {jump[2]}).",
        )
    clip = (one["weights"] or {}).get("grad_clip") or 0
    norms = [value for _, value in curves.get("grad_norm", [])]
    second_half = norms[len(norms) // 2 :]
    if clip and len(norms) >= 10 and min(second_half) > clip:
        yield Note(
            rule="clipped",
            stage=stage,
            chinese=f"{stage}：后一半的每一步梯度都被裁剪（最小 {rounded(min(second_half))}，上限 {clip:g}）；"
            "此时学习率决定不了步长的全部。",
            english=f"{stage}: in its second half every gradient is clipped (the smallest is "
            f"{rounded(min(second_half))}, the limit {clip:g}), so the limit sets the size of a step too.",
        )
    yield from _slowed(stage, curves.get("tokens_per_second", []))


def _jump(points: Sequence[Sequence[float]]) -> tuple[int, float, float] | None:
    """Step, usual value before, and value of the largest jump; None without one. The first tenth is
    the warm-up."""
    found: list[tuple[float, int, float, float]] = []
    for place in range(max(10, len(points) // 10), len(points)):
        window = [value for _, value in points[place - 10 : place]]
        before = statistics.median(window)
        step, value = points[place]
        # Losses of few pairs vary by chance: a jump is far outside of how its neighbours vary.
        spread = statistics.median(abs(one - before) for one in window)
        if value > SPIKE * before and value - before > max(8 * spread, 0.1 * points[0][1]):
            found.append((value / before, int(step), rounded(before), rounded(value)))
    return max(found)[1:] if found else None


def _slowed(stage: str, points: Sequence[Sequence[float]]) -> Iterator[Note]:
    """Whether the speed was far below the run's median for a while."""
    speeds = [value for _, value in points]
    if len(speeds) < 20:
        return
    median = statistics.median(speeds)
    slow = sum(speed < SLOW * median for speed in speeds) / len(speeds)
    if slow > 0.1:
        yield Note(
            rule="slow",
            stage=stage,
            remedy="quiet",
            chinese=f"{stage}：{slow:.0%} 的时间点速度不到中位数（{median:,.0f} 词元/秒）的 {SLOW:.0%}，机器可能同时在做别的事。",
            english=f"{stage}: {slow:.0%} of the points are below {SLOW:.0%} of the median speed "
            f"({median:,.0f} tokens/s): the machine may have been busy with something else.",
        )


def best_baseline(metric: Mapping[str, Any]) -> float | None:
    """The best score that a rule without a model reaches; None without any."""
    values = [value for value in (metric.get("baselines") or {}).values() if isinstance(value, int | float)]
    return max(values) if values else None


def beats_its_baselines(metric: Mapping[str, Any]) -> bool | None:
    """Whether even the interval's lower end is above all baselines; None if there are none."""
    baseline = best_baseline(metric)
    return None if baseline is None else bool(metric["ci95"][0] > baseline)


def of_scores(stage: str, one: Facts) -> Iterator[Note]:
    """Scores that a rule without a model reaches, and scores of too few facts."""
    metrics = (one["evaluation"] or {}).get("metrics", {})
    shown = {name: metric for name, metric in metrics.items() if name.startswith(("accuracy_", "first_minutes"))}
    # Where one answer is right for all questions, as for "I don't know", no score can be above it.
    beatable = {name: metric for name, metric in shown.items() if (best_baseline(metric) or 0) < ALL_RIGHT}
    level = [name for name, metric in beatable.items() if beats_its_baselines(metric) is False]
    if level:
        yield Note(
            rule="baseline",
            stage=stage,
            remedy="more_wordings",
            chinese=f"{stage}：{len(level)} 项得分没有明显超过基线（永远答同一句，或照抄最像的训练题）：{_named(level, 0)}。",
            english=f"{stage}: {len(level)} scores are not clearly above a baseline (one answer to everything, or that "
            f"of the nearest training question): {_named(level, 1)}.",
        )
    few = [name for name, metric in shown.items() if metric.get("clusters", FEW_CLUSTERS) < FEW_CLUSTERS]
    if few:
        yield Note(
            rule="few",
            stage=stage,
            remedy="more_heldout",
            chinese=f"{stage}：{len(few)} 项得分所依据的不同事实少于 {FEW_CLUSTERS} 个，区间很宽：{_named(few, 0)}。",
            english=f"{stage}: {len(few)} scores stand on fewer than {FEW_CLUSTERS} distinct facts, so their intervals "
            f"are wide: {_named(few, 1)}.",
        )


def _named(metrics: Sequence[str], language: int) -> str:
    """The first metrics by their names in Chinese (0) or English (1)."""
    names = [metric_names(metric)[language] for metric in metrics[:6]]
    more = len(metrics) > len(names)
    return ("、".join(names) + "等" * more) if language == 0 else ", ".join(names) + ", ..." * more


def stage_before(stages: Mapping[str, Facts], stage: str) -> str | None:
    """The stage whose weights this one started from; None if they are not of this run."""
    start = (stages[stage]["weights"] or {}).get("start_sha256")
    return next((name for name, one in stages.items() if start and (one["weights"] or {}).get("sha256") == start), None)


def comparable(metric: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    """Whether both are about the same questions or tokens, as far as their numbers tell."""
    return before is not None and (metric["n"], metric.get("clusters")) == (before["n"], before.get("clusters"))


def of_changes(facts: Facts) -> Iterator[Note]:
    """Scores that a stage has clearly lowered: the intervals before and after do not meet."""
    stages = facts["stages"]
    for stage, one in stages.items():
        before = stage_before(stages, stage)
        if before is None or not one["evaluation"] or not stages[before]["evaluation"]:
            continue
        earlier = stages[before]["evaluation"]["metrics"]
        lost = [
            f"{name} {100 * earlier[name]['value']:.1f}% → {100 * metric['value']:.1f}%"
            for name, metric in one["evaluation"]["metrics"].items()
            if name.startswith(("accuracy_", "first_minutes", "danger_answered"))
            and comparable(metric, earlier.get(name))
            and metric["ci95"][1] < earlier[name]["ci95"][0]
        ]
        if lost:
            yield Note(
                rule="damage",
                stage=stage,
                remedy="damage",
                chinese=f"{stage} 之后明显变差：{'；'.join(lost[:5])}。",
                english=f"Clearly worse after {stage}: {'; '.join(lost[:5])}.",
            )


def of_answers(facts: Facts) -> Iterator[Note]:
    """Chat stages whose answers mostly do not end by themselves."""
    for stage, said in facts.get("answers", {}).get("columns", {}).items():
        cut = sum(not answer["ended"] for answer in said)
        if not continues_text(stage) and 2 * cut > len(said):
            yield Note(
                rule="endless",
                stage=stage,
                remedy="more_steps",
                chinese=f"{stage}：{len(said)} 个问题中有 {cut} 个回答停不下来，多半是训练太少。",
                english=f"{stage}: {cut} of {len(said)} answers do not end by themselves, mostly a sign of too little "
                "training.",
            )


def of_budget(facts: Facts) -> Iterator[Note]:
    """Few pretraining tokens for the size of the model."""
    one = facts["stages"].get("pretrain")
    if not one or not one["weights"] or not one["tokens"]:
        return
    ratio = one["tokens"] / one["weights"]["parameters"]
    if ratio < USUAL_TOKENS:
        yield Note(
            rule="budget",
            stage="pretrain",
            remedy="more_text",
            chinese=f"预训练每个参数只见过 {ratio:.1f} 个词元；计算量固定时的最优值约为 {USUAL_TOKENS}（Hoffmann 等，2022）。",
            english=f"Pretraining saw {ratio:.1f} tokens a parameter; about {USUAL_TOKENS} are best for a fixed amount of "
            "computing (Hoffmann et al. 2022).",
        )


def of_endings(facts: Facts) -> Iterator[Note]:
    """Stages whose validation was still falling when they ended."""
    for stage, one in facts["stages"].items():
        points = one["curves"].get("validation_loss", [])
        if len(points) >= 3 and points[-1][1] < (1 - STILL_FALLING) * points[-2][1]:
            yield Note(
                rule="falling",
                stage=stage,
                remedy="more_steps",
                chinese=f"{stage}：验证损失在最后一段仍下降（{points[-2][1]} → {points[-1][1]}）。",
                english=f"{stage}: validation still fell in its last part ({points[-2][1]} to {points[-1][1]}).",
            )
