"""Plots as SVG, drawn without a plotting library: bars, lines over a logarithmic axis, panels.

A browser shows them, and a text editor reads them. x grows to the right and y down, in pixels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from configs.artifacts import atomic_write

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 50, 60
COLOURS = ("#2a6fbb", "#d1701f", "#3a8f4d", "#8a4fa8")
STYLE = "text{font:13px sans-serif;fill:#222}.title{font-size:16px}.grid{stroke:#ddd}.axis{stroke:#444}"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar, what stands beside its value, and a mark above it."""

    label: str
    value: float
    note: str = ""
    mark: float | None = None


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    # The first round step that is not smaller than what gives the wanted number of ticks.
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def bar_chart(path: Path, title: str, bars: Sequence[Bar], *, mark: str) -> None:
    """Horizontal bars from zero; `mark` says what the strokes mean."""
    height = TOP + 46 * len(bars) + BOTTOM
    left = 170
    most = max(max(bar.value, bar.mark or 0.0) for bar in bars) * 1.02
    scale = (WIDTH - left - RIGHT) / most

    def shapes() -> Iterator[str]:
        for tick in ticks(0, most):
            x = left + tick * scale
            yield line((x, TOP), (x, height - BOTTOM), "grid") + text(
                (x, height - BOTTOM + 18), f"{tick:,.0f}", "middle"
            )
        for number, bar in enumerate(bars):
            y = TOP + 46 * number + 8
            colour = COLOURS[number % len(COLOURS)]
            yield f'<rect x="{left}" y="{y}" width="{bar.value * scale:.1f}" height="30" fill="{colour}"/>'
            yield text((left - 8, y + 20), bar.label, "end")
            inside = bar.value * scale > 150
            shown = f"{bar.value:,.0f}" + (f", {bar.note}" if bar.note else "")
            colour = ' style="fill:#fff"' if inside else ""
            yield text((left + (8 if inside else bar.value * scale + 8), y + 20), shown, "start", colour)
            if bar.mark is not None:
                x = left + bar.mark * scale
                yield f'<path d="M{x:.1f} {y - 4}V{y + 34}" stroke="#c00" stroke-width="3"/>'
        yield f'<path d="M{left} {height - 20}v12" stroke="#c00" stroke-width="3"/>' + text(
            (left + 8, height - 9), mark
        )

    write_svg(path, title, height, shapes())


def line_chart(
    path: Path, title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[Point]], *, level: float | None
) -> None:
    """Lines with points over a logarithmic x axis; `level` is drawn across."""
    points = [point for line_points in series.values() for point in line_points]
    xs, ys = [x for x, _ in points], [y for _, y in points] + ([level] if level is not None else [])
    # A little room on all sides, so that no point lies on the frame.
    first, last = math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1
    margin = max((max(ys) - min(ys)) * 0.1, 0.01)
    low, high = min(ys) - margin, max(ys) + margin

    def place(point: Point) -> Point:
        x = LEFT + (math.log10(point[0]) - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def shapes() -> Iterator[str]:
        for tick in ticks(low, high):
            y = place((min(xs), tick))[1]
            yield line((LEFT, y), (WIDTH - RIGHT, y), "grid") + text((LEFT - 8, y + 4), f"{tick:.4g}", "end")
        for power in range(math.floor(first), math.ceil(last) + 1):
            for digit in (1, 2, 5) if last - first > 1 else range(1, 10):
                if first <= math.log10(digit * 10.0**power) <= last:
                    x = place((digit * 10.0**power, low))[0]
                    yield line((x, TOP), (x, HEIGHT - BOTTOM), "grid")
                    yield text((x, HEIGHT - BOTTOM + 18), f"{digit * 10.0**power:g}", "middle")
        if level is not None:
            y = place((min(xs), level))[1]
            yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#c00" stroke-dasharray="5 4"/>'
            yield text((LEFT + 6, y - 6), f"{level:.4f}", "start", ' style="fill:#c00"')
        for number, (name, line_points) in enumerate(series.items()):
            colour = COLOURS[number % len(COLOURS)]
            places = [place(point) for point in sorted(line_points)]
            path_data = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            yield f'<path d="M{path_data}" fill="none" stroke="{colour}" stroke-width="2"/>'
            yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places)
            yield text((WIDTH - RIGHT, TOP + 18 * number + 14), name, "end", f' style="fill:{colour}"')
        yield text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16), x_label, "middle") + text((8, TOP - 8), y_label)

    write_svg(path, title, HEIGHT, shapes())


PANEL_HEIGHT, PANEL_GAP = 190, 60
"""Of the frame of one panel, and the room around it for its name and its numbers."""


def panel_charts(path: Path, title: str, panels: Mapping[str, Mapping[str, Sequence[Point]]], x_label: str) -> None:
    """Small charts, two in a row, over one linear x axis: what happens at the same time.

    Args: panels: title -> name of a line -> its points. A line has one colour in all panels.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    top = TOP + 18 * len(names) + 26
    height = top + (len(panels) + 1) // 2 * (PANEL_HEIGHT + PANEL_GAP) + 10
    width = (WIDTH - LEFT - RIGHT - PANEL_GAP) / 2
    steps = [x for series in panels.values() for points in series.values() for x, _ in points]

    def shapes() -> Iterator[str]:
        for number, name in enumerate(names):
            y = TOP + 18 * number
            yield f'<path d="M8 {y - 4}h24" stroke="{colours[name]}" stroke-width="3"/>' + text((40, y), name)
        for number, (panel, series) in enumerate(panels.items()):
            corner = LEFT + number % 2 * (width + PANEL_GAP), top + number // 2 * (PANEL_HEIGHT + PANEL_GAP)
            yield from _panel(panel, series, colours, corner, width, (min(steps), max(steps)))
        yield text(((LEFT + WIDTH - RIGHT) / 2, height - 12), x_label, "middle")

    write_svg(path, title, height, shapes())


def _panel(
    title: str,
    series: Mapping[str, Sequence[Point]],
    colours: Mapping[str, str],
    corner: Point,
    width: float,
    span: tuple[float, float],
) -> Iterator[str]:
    """One of the small charts, with its upper left corner there. Args: span: of x."""
    left, top = corner
    values = [y for points in series.values() for _, y in points]
    margin = (max(values) - min(values)) * 0.06 or abs(max(values)) * 0.1 or 1.0
    low, high = min(values) - margin, max(values) + margin
    breadth = (span[1] - span[0]) or 1.0

    def place(point: Point) -> Point:
        return (
            left + (point[0] - span[0]) / breadth * width,
            top + PANEL_HEIGHT - (point[1] - low) / (high - low) * PANEL_HEIGHT,
        )

    for tick in ticks(low, high, 4):
        y = place((span[0], tick))[1]
        yield line((left, y), (left + width, y), "grid") + text((left - 6, y + 4), f"{tick:.4g}", "end")
    for tick in ticks(*span, 4):
        yield text((place((tick, low))[0], top + PANEL_HEIGHT + 17), f"{tick:,.4g}", "middle")
    yield text((left, top - 8), title)
    for name, points in series.items():
        path_data = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, sorted(points)))
        yield f'<path d="M{path_data}" fill="none" stroke="{colours[name]}" stroke-width="2"/>'


def line(start: Point, end: Point, kind: str) -> str:
    """A straight line."""
    return f'<path class="{kind}" d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"/>'


def text(place: Point, shown: str, anchor: str = "start", more: str = "") -> str:
    """Words at a place."""
    return f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" text-anchor="{anchor}"{more}>{escape(shown)}</text>'


def write_svg(path: Path, title: str, height: int, shapes: Iterator[str]) -> None:
    """Write a picture on a white ground."""
    with atomic_write(path) as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">\n')
        file.write(f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>\n')
        file.write(text((8, 24), title, "start", ' class="title"') + "\n")
        file.writelines(shape + "\n" for shape in shapes)
        file.write("</svg>\n")
