"""Metrics as tables that fit 100 columns, and wrong answers with the rule they broke."""

from collections.abc import Mapping, Sequence

from evaluation.intervals import Metric
from evaluation.stage import Verdict

_NOT_SHARES = ("loss", "perplexity", "bits_per_byte", "reward_margin")
_HEADS = {"constant": ("constant", "nearest"), "length": ("length", "nearest")}
_BEFORE = "_before"
_PREFERENCE, _PER_TOKEN = "preference_accuracy", "preference_accuracy_length_normalized"


def tables(metrics: Mapping[str, Metric]) -> list[str]:
    """The lines of all tables: text, answers with their baselines, pairs with theirs, topics."""
    kinds = _kinds(metrics)
    apart = {f"{stem}{kind}" for kind in kinds for stem in (_PREFERENCE, _PER_TOKEN)}
    shown = {name: metric for name, metric in metrics.items() if not name.endswith(_BEFORE) and name not in apart}
    plain = {name: metric for name, metric in shown.items() if metric.baselines is None}
    lines = _table(plain, (), metrics) if plain else []
    for key, columns in _HEADS.items():
        part = {name: metric for name, metric in shown.items() if metric.baselines and key in metric.baselines}
        if part:
            lines += ["", *_table(part, columns, metrics)]
    if kinds:
        lines += ["", *_kinds_table(kinds, metrics)]
    reasons = {str(m.baselines["reason"]) for m in metrics.values() if m.baselines and "reason" in m.baselines}
    lines += [f"  no nearest training example: {reason}" for reason in sorted(reasons)]
    for name, metric in metrics.items():
        if metric.by_topic:
            lines += ["", f"  {name} by topic"]
            lines += _columns(
                [f"{topic} {100 * part['value']:.0f}% of {part['n']}" for topic, part in metric.by_topic.items()]
            )
    return lines


def _kinds(metrics: Mapping[str, Metric]) -> list[str]:
    """Ends of the names of preferences: none for all pairs, and `_KIND` for each kind."""
    return [
        name.removeprefix(_PER_TOKEN).removesuffix(_BEFORE)
        for name in metrics
        if name.startswith(_PER_TOKEN) and name.endswith(_BEFORE)
    ]


def _kinds_table(kinds: Sequence[str], metrics: Mapping[str, Metric]) -> list[str]:
    """A row a kind: the gain over the reference, and which answer is likelier a token, before and
    after."""
    rows = [["pairs", "gained", "95% interval", "n", "clusters", "per token", "before", *_HEADS["length"]]]
    for kind in kinds:
        metric, after = metrics[f"{_PREFERENCE}{kind}"], metrics[f"{_PER_TOKEN}{kind}"]
        before = metrics[f"{_PER_TOKEN}{kind}{_BEFORE}"]
        rows.append([
            kind.removeprefix("_") or "all", *_cells("", metric), _shown("", after.value), _shown("", before.value),
            *(_baseline(metric, column) for column in _HEADS["length"]),
        ])  # fmt: skip
    return [
        *_aligned(rows),
        f"  gained: {_PREFERENCE}; per token: {_PER_TOKEN.replace(_PREFERENCE, '…')}; before: the reference's",
    ]


def _table(part: Mapping[str, Metric], columns: Sequence[str], metrics: Mapping[str, Metric]) -> list[str]:
    has_before = any(f"{name}{_BEFORE}" in metrics for name in part)
    heads = ["", "value", "95% interval", "n", "clusters", *columns, *(("before",) if has_before else ())]
    rows = []
    for name, metric in part.items():
        before = metrics.get(f"{name}{_BEFORE}")
        rows.append([
            name,
            *_cells(name, metric),
            *(_baseline(metric, column) for column in columns),
            *((_shown(name, before.value) if before else "",) if has_before else ()),
        ])  # fmt: skip
    return _aligned([heads, *rows])


def _cells(name: str, metric: Metric) -> list[str]:
    """Value, interval, n and clusters."""
    return [
        _shown(name, metric.value),
        f"[{_shown(name, metric.low)}, {_shown(name, metric.high)}]",
        f"{metric.n:,}",
        "" if metric.clusters is None else f"{metric.clusters:,}",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column at its left edge, all others at their right ones."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(["  " + row[0].ljust(widths[0]), *cells]).rstrip())
    return lines


def _baseline(metric: Metric, column: str) -> str:
    value = (metric.baselines or {}).get(column)
    return f"{100 * value:.1f}%" if isinstance(value, float | int) else "-"


def _shown(name: str, value: float) -> str:
    return f"{value:.4g}" if name.startswith(_NOT_SHARES) else f"{100 * value:.1f}%"


def _columns(cells: Sequence[str], width: int = 96) -> list[str]:
    """Cells side by side in lines of at most `width` characters."""
    widest = max(len(cell) for cell in cells) + 2
    per_line = max(1, width // widest)
    return [
        "    " + "".join(cell.ljust(widest) for cell in cells[start : start + per_line]).rstrip()
        for start in range(0, len(cells), per_line)
    ]


def wrong_answers(verdicts: Sequence[Verdict], limit: int) -> list[str]:
    """Up to `limit` wrong answers of each metric: what was asked, what was said, what was expected,
    what is wrong."""
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
