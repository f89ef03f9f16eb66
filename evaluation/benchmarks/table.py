"""A result line of a benchmark as a table of 100 columns: scores beside their baselines."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 100
SHOWN_GROUPS = 4
"""Best and worst groups that are named; the results file has all."""


def lines_of(line: Mapping[str, Any]) -> list[str]:
    """The lines of the table."""
    template = ", chat template" if line["chat_template"] else ""
    head = f"{line['task']}: {line['form']}, {line['shots']} shots{template}, part {line['split']}"
    rivals = list(line["baselines"])
    rows = [["metric", "right", "95%", "n", *rivals, ""]]
    for name, metric in line["metrics"].items():
        best = max(metric["baselines"].values(), default=0.0)
        verdict = "above all" if metric["ci95"][0] > best else "at its baselines"
        rows.append([name, *_score(metric), *(_percent(metric["baselines"][rival]) for rival in rivals), verdict])
    return [
        head,
        *_aligned(rows),
        *_clean(line),
        *_groups(line),
        *_speed(line),
        *(f"  {note}" for note in line["notes"]),
    ]


def _score(metric: Mapping[str, Any]) -> list[str]:
    low, high = metric["ci95"]
    return [_percent(metric["value"]), f"{100 * low:.1f}-{100 * high:.1f}", str(metric["n"])]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _clean(line: Mapping[str, Any]) -> Iterator[str]:
    """What stands in the training data, and the scores without it."""
    clean = line["clean"]
    if clean is None:
        return
    total = next(iter(line["metrics"].values()))["n"]
    scores = ", ".join(f"{name} {_percent(metric['value'])}" for name, metric in clean["metrics"].items())
    yield (
        f"  in the training data: {clean['contaminated']} of {total}, not checkable {clean['not_checkable']}; "
        f"on the {clean['n']} clean ones:"
    )
    if scores:
        yield f"    {scores}"


def _groups(line: Mapping[str, Any]) -> Iterator[str]:
    """Generated answers: all groups. Else: the best and the worst, by the last metric."""
    groups = line["by_group"]
    if any("learnt" in metric for metrics in groups.values() for metric in metrics.values()):
        rivals = list(line["baselines"])
        rows = [["group", "right", "95%", "n", *rivals, ""]]
        for group, metrics in groups.items():
            metric = next(iter(metrics.values()))
            reached = (_percent(metric["baselines"][rival]) for rival in rivals)
            rows.append([group, *_score(metric), *reached, "learnt" if metric["learnt"] else ""])
        yield from _aligned(rows)
    elif len(groups) > 2:
        name = list(line["metrics"])[-1]
        order = sorted(groups, key=lambda group: -groups[group][name]["value"])
        shown = [*order[:SHOWN_GROUPS], "...", *order[-SHOWN_GROUPS:]] if len(order) > 2 * SHOWN_GROUPS else order
        cells = [group if group == "..." else f"{group} {_percent(groups[group][name]['value'])}" for group in shown]
        yield f"  {name} by group:"
        yield from _wrapped(cells)


def _speed(line: Mapping[str, Any]) -> Iterator[str]:
    tokens, alone = line["tokens_read"], line["tokens_without_sharing"]
    once = f" (for {alone:,} without sharing)" if alone > tokens else ""
    yield f"  {tokens:,} tokens{once}, {line['tokens_per_second']:,} a second"


def _wrapped(cells: Sequence[str]) -> Iterator[str]:
    """Cells with commas between them, in lines of the usual width."""
    text = "    "
    for cell in cells:
        if len(text) + len(cell) + 2 > WIDTH:
            yield text.rstrip()
            text = "    "
        text += f"{cell}, "
    yield text.rstrip().removesuffix(",")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines: the first column to the left, all others to the right."""
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [" " * (width - _columns(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(["  " + row[0] + " " * (widths[0] - _columns(row[0])), *cells]).rstrip())
    return lines


def _columns(text: str) -> int:
    """Columns of a text on a terminal: Han characters have two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
