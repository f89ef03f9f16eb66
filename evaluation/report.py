"""What an evaluation prints: metrics as tables of 100 columns, wrong answers, sample answers.

The results file has more about each metric: `n`, `clusters`, topics.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from evaluation.intervals import Metric
from evaluation.stage import Sample, Verdict

_NOT_SHARES = ("loss", "perplexity", "bits_per_byte", "reward_margin", "reward_mean")
_BEFORE = "_before"
_PREFERENCE, _PER_TOKEN = "preference_accuracy", "preference_accuracy_length_normalized"
_ACCURACY, _FIRST = "accuracy", "first_minutes"
WIDTH = 100
"""Most columns of a line."""


def tables(metrics: Mapping[str, Metric]) -> list[str]:
    """The lines of all tables: text, answers with their baselines, pairs with theirs, topics."""
    # A share that has baselines is a score. A share without baselines is a condition, such as how
    # many answers end properly.
    shares = {name: metric for name, metric in metrics.items() if not name.startswith((_PREFERENCE, *_NOT_SHARES))}
    rated = {name: metric for name, metric in shares.items() if metric.baselines}
    first = {name: metric for name, metric in rated.items() if name.startswith(_FIRST)}
    others = {name: metric for name, metric in rated.items() if name not in first}
    conditions = {name: metric for name, metric in shares.items() if name not in rated}
    right = [*_answers(_FIRST, first), *_conditions(conditions)]
    return [
        *_text(metrics),
        *_beside([_answers(_ACCURACY, others), right]),
        *_pairs(metrics),
        *_reasons(metrics),
        *_topics(metrics),
    ]


def _text(metrics: Mapping[str, Metric]) -> list[str]:
    """Loss, perplexity, bits per byte and reward margin, with intervals: as many a line as fit."""
    # Print the reward margin last. `sorted` is stable, so all other metrics keep their order.
    cells = [
        f"{name} {metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"
        for name, metric in sorted(metrics.items(), key=lambda item: item[0] == "reward_margin")
        if name.startswith(_NOT_SHARES)
    ]
    lines: list[str] = []
    for cell in cells:
        if lines and len(lines[-1]) + len(cell) + 3 <= WIDTH:
            lines[-1] += f"   {cell}"
        else:
            lines.append(f"  {cell}")
    return lines


def _answers(prefix: str, part: Mapping[str, Metric]) -> list[str]:
    """A row for each metric: its share, and the shares of the two baselines."""
    if not part:
        return []
    rows = [[prefix, "right", "95%", "const", "near"]]
    for name, metric in part.items():
        short = name.removeprefix(prefix).removeprefix("_") or "all"
        rows.append([short, *_share(metric), _baseline(metric, "constant"), _baseline(metric, "nearest")])
    return _aligned(rows)


def _conditions(part: Mapping[str, Metric]) -> list[str]:
    """Shares without a baseline."""
    return _aligned([[name, *_share(metric)] for name, metric in part.items()])


def _pairs(metrics: Mapping[str, Metric]) -> list[str]:
    """A row for all pairs and for each kind, half of the rows beside the other half.

    Its columns: the gain over the reference; in how many pairs the chosen answer is likelier a
    token, after and before DPO; two baselines.
    """
    if _PREFERENCE not in metrics:
        return []
    head = ["pairs", "gain", "95%", "token", "was", "long", "near"]
    rows = []
    for kind in _kinds(metrics):
        metric, before = metrics[f"{_PREFERENCE}{kind}"], metrics.get(f"{_PER_TOKEN}{kind}{_BEFORE}")
        row = [kind.removeprefix("_") or "all", *_share(metric, digits=0)]
        row += [_percent(metrics[f"{_PER_TOKEN}{kind}"].value), _percent(before.value) if before else "-"]
        row += [_baseline(metric, "length"), _baseline(metric, "nearest")]
        rows.append(row)
    half = (len(rows) + 1) // 2  # the left table is the longer one
    lines = _beside([_aligned([head, *part], gap=1) for part in (rows[:half], rows[half:]) if part])
    lines.append("  gain: over the reference; token: likelier a token; was: before DPO; long: the longer or shorter")
    name = f"{_PREFERENCE}_no_reference"
    if plain := metrics.get(name):
        before = metrics.get(f"{name}{_BEFORE}")
        lines.append(
            f"  {name} {' '.join(_share(plain))}{f', was {_percent(before.value, 1)}' if before else ''}; "
            f"long {_baseline(plain, 'length')}, near {_baseline(plain, 'nearest')}"
        )
    return lines


def _kinds(metrics: Mapping[str, Metric]) -> list[str]:
    """Ends of the names of preference metrics: empty for all pairs, then `_hard`, then `_KIND`."""
    ends = [name.removeprefix(_PER_TOKEN) for name in metrics if name.startswith(_PER_TOKEN)]
    kinds = [end for end in ends if not end.endswith(_BEFORE)]
    return sorted(kinds, key=lambda kind: (kind != "", kind != "_hard"))


def _reasons(metrics: Mapping[str, Metric]) -> Iterator[str]:
    """A line that says what "const" and "near" are, or lines why there is no nearest example."""
    reasons = {str(m.baselines["reason"]) for m in metrics.values() if m.baselines and "reason" in m.baselines}
    if reasons:
        yield from (f"  no nearest training example: {reason}" for reason in sorted(reasons))
    elif any(metric.baselines for metric in metrics.values()):
        yield "  const: one answer to everything; near: that of the nearest training example; the JSON has n, clusters"


def _topics(metrics: Mapping[str, Metric]) -> Iterator[str]:
    """A line for each score that has topics: the lowest of them, as many as fit."""
    for name, metric in metrics.items():
        if metric.by_topic:
            line = f"  {name}, lowest of {len(metric.by_topic)} topics:"
            for topic, part in sorted(metric.by_topic.items(), key=lambda item: item[1]["value"]):
                cell = f" {topic} {_percent(part['value'])} of {part['n']},"
                if len(line) + len(cell) > WIDTH:
                    break
                line += cell
            yield line.removesuffix(",")


# --- layout ---------------------------------------------------------------------------------------


def _share(metric: Metric, digits: int = 1) -> list[str]:
    """Value and interval of a share as two cells, in percent."""
    return [_percent(metric.value, digits), f"{100 * metric.low:.0f}-{100 * metric.high:.0f}"]


def _percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}%"


def _baseline(metric: Metric, column: str) -> str:
    """A baseline as a cell; `-` if the metric has none."""
    value = (metric.baselines or {}).get(column)
    return _percent(value) if isinstance(value, float | int) else "-"


def _aligned(rows: Sequence[Sequence[str]], gap: int = 2) -> list[str]:
    """Rows of a table as lines: the first column to the left, all others to the right."""
    if not rows:
        return []
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append((" " * gap).join(["  " + row[0].ljust(widths[0]), *cells]).rstrip())
    return lines


def _beside(blocks: Sequence[Sequence[str]]) -> list[str]:
    """Blocks of lines side by side if they fit, else one below the other."""
    blocks = [block for block in blocks if block]
    # One space between blocks: a line is as wide as the widest lines of both and the space.
    widths = [max(map(len, block)) for block in blocks]
    if len(blocks) < 2 or sum(widths) + 1 > WIDTH:
        return [line for block in blocks for line in block]
    return [
        " ".join(line.ljust(width) for line, width in zip(row, widths, strict=True)).rstrip()
        for row in zip_longest(*blocks, fillvalue="")
    ]


def wrong_answers(verdicts: Sequence[Verdict], limit: int) -> list[str]:
    """Up to `limit` wrong answers of each metric: what is wrong, the question, the answer, and what
    was expected."""
    lines: list[str] = []
    counts: dict[str, int] = {}
    for verdict in verdicts:
        if not verdict.broken or counts.get(verdict.metric, 0) >= limit:
            continue
        counts[verdict.metric] = counts.get(verdict.metric, 0) + 1
        expected = " / ".join(verdict.expected[:3])
        lines.append(f"  {verdict.metric}: {verdict.broken}")
        lines.append(f"    问: {' | '.join(verdict.turns)}")
        lines.append(f"    答: {verdict.answer.text}{'' if verdict.answer.ended else ' …'}")
        lines += [f"    对: {expected}"] if expected else []
    return lines


def sample_lines(samples: Sequence[Sample]) -> list[str]:
    """A line for each sample: what was asked, the answer, and whether it is right."""
    lines = []
    for sample in samples:
        answered = "续写" if sample.label == "开头" else "答"
        text = " ".join(f"{sample.label}: {sample.given}  {answered}: {sample.answer.text}".split("\n"))
        lines.append(f"  {text}{'' if sample.answer.ended else ' …'} {sample.mark}".rstrip())
    return lines
