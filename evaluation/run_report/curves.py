"""The curves of a stage: its file of metrics, thinned to what a plot can show."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.plots import Point

MAX_POINTS = 120
"""Points of a curve that are kept. More would only make the page larger."""
NO_CURVE = ("step", "texts", "seconds", "tokens", "targets", "sampling_seconds", "engine_difference_largest")
"""Keys of a line of metrics that are not drawn: counters, and what is not a number."""

Curves = dict[str, list[Point]]
"""Name of a value -> its points (step, value)."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics. A torn last line, as a crash may leave it, is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def curves_of(lines: Sequence[Mapping[str, Any]]) -> Curves:
    """The curve of each value, over steps."""
    curves: Curves = {}
    for line in lines:
        for name, value in line.items():
            if name not in NO_CURVE and isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(name, []).append((line["step"], value))
    return {name: thinned(points) for name, points in curves.items()}


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points: each is the mean of as many neighbours, at the last one's step.

    Values are rounded to six significant digits: the page and its JSON show the same.
    """
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    return [(group[-1][0], rounded(sum(y for _, y in group) / len(group))) for group in groups]


def rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")


def last_of(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The last value of a counter; None if no line has it."""
    return next((line[name] for line in reversed(lines) if name in line), None)
