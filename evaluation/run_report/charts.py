"""The pictures of the report as SVG inside the page: its style gives their colours."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evaluation.plots import Point, line, text, ticks
from evaluation.run_report.facts import Facts

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 12, 30
BOX_WIDTH, BOX_HEIGHT, BOX_GAP = 168, 46, 24


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. `kind` is its class in the page's style: own, check, past, reference."""

    name: str
    kind: str
    points: Sequence[Point]


def chart(label: str, series: Sequence[Series], *, logarithmic: bool = False) -> str:
    """Lines over steps. Args: label: for those who can't see it. logarithmic: the y axis."""
    series = [one for one in series if one.points]
    if logarithmic:
        series = [Series(one.name, one.kind, [(x, y) for x, y in one.points if y > 0]) for one in series]
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    scale = math.log10 if logarithmic else float
    values = [scale(y) for _, y in points]
    margin = (max(values) - min(values)) * 0.06 or abs(max(values)) * 0.1 or 1.0
    low, high = min(values) - margin, max(values) + margin
    if not logarithmic and min(values) >= 0:
        low = max(low, 0.0)
    last = max(x for x, _ in points)

    def place(point: Point) -> Point:
        return (
            LEFT + point[0] / (last or 1) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    def shapes() -> Iterator[str]:
        for tick in ticks(low, high, 4):
            y = place((0, tick))[1]
            shown = f"{10**tick:.2g}" if logarithmic else short(tick)
            yield line((LEFT, y), (WIDTH - RIGHT, y), "grid") + text((LEFT - 6, y + 4), shown, "end")
        for tick in ticks(0, last, 4):
            yield text((place((tick, low))[0], HEIGHT - BOTTOM + 18), short(tick), "middle")
        for one in series:
            places = [place((x, scale(y))) for x, y in sorted(one.points)]
            if len(places) == 1 or one.kind == "check":
                yield from (f'<circle class="{one.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
            if len(places) > 1:
                yield f'<path class="{one.kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'

    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}">' + "".join(shapes()) + "</svg>"


def short(value: float) -> str:
    """A number of an axis: 12k, 0.004."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.4g}"


# --- where everything comes from ------------------------------------------------------------------


def provenance(facts: Facts) -> str:
    """The chain: mix -> tensors -> weights of each stage, each with how its fingerprint begins.

    Left are the data, right the weights. An arrow goes to what is made from something.
    """
    stages = {name: one for name, one in facts["stages"].items() if one["weights"]}
    if not stages:
        return ""
    left, right = 18.0, 18.0 + BOX_WIDTH + BOX_GAP
    step = BOX_HEIGHT + BOX_GAP
    shapes: list[str] = []
    mix = facts["mix"].get("fingerprint", "")
    shapes += _box((left, 4), "mix 数据配比", mix)
    shapes += _box((right, 4), "tokenizer 分词器", facts["tokenizer_sha256"])
    rows = {name: 4 + step * (number + 1) for number, name in enumerate(stages)}
    places: dict[str, tuple[str, float]] = {
        one["weights"]["sha256"]: (name, rows[name]) for name, one in stages.items()
    }
    lane = 0
    for name, one in stages.items():
        y = rows[name]
        weights = one["weights"]
        own = weights["tensors"] or (weights["training_data"][-1]["sha256"] if weights["training_data"] else "")
        shapes += _box((left, y), f"{name} 的数据 data", own)
        shapes += _box((right, y), weights["file"], weights["sha256"])
        shapes.append(_arrow([(left + BOX_WIDTH, y + 23), (right, y + 23)]))
        start = places.get(weights["start_sha256"])
        if start is None:
            continue
        if rows[start[0]] + step == y:  # right below it
            shapes.append(_arrow([(right + BOX_WIDTH / 2, y - BOX_GAP), (right + BOX_WIDTH / 2, y)]))
        else:  # around those between, each in a lane of its own
            lane += 1
            x = right + BOX_WIDTH + 5 + 4 * (lane % 5)
            shapes.append(
                _arrow(
                    [(right + BOX_WIDTH, start[1] + 30), (x, start[1] + 30), (x, y + 16), (right + BOX_WIDTH, y + 16)]
                )
            )
    # From the mix to the tensors that are made of it; a stage with a set of its own has others.
    of_mix = {one["fingerprint"] for one in facts["tensors"].values()}
    for name, one in stages.items():
        if one["weights"]["tensors"] in of_mix:
            middle = rows[name] + BOX_HEIGHT / 2
            shapes.append(_arrow([(left, 27), (left - 12, 27), (left - 12, middle), (left, middle)]))
    # The tokenizer turns all of them into tokens.
    gap = right - BOX_GAP / 2
    first = 4 + step + 10
    shapes.append(_arrow([(right, 34), (gap, 34), (gap, first), (left + BOX_WIDTH, first)]))
    height = 4 + step * (len(stages) + 1)
    width = right + BOX_WIDTH + 30
    return (
        f'<svg class="chain" role="img" aria-label="provenance 来源" viewBox="0 0 {width:g} {height:g}">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>' + "".join(shapes) + "</svg>"
    )


def _box(corner: Point, title: str, fingerprint: str) -> list[str]:
    x, y = corner
    return [
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>',
        text((x + 10, y + 19), title),
        text((x + 10, y + 37), fingerprint[:8] or "-", "start", ' class="mono"'),
    ]


def _arrow(points: Sequence[Point]) -> str:
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="arrow" marker-end="url(#tip)" d="M{path}"/>'


def interval_bar(metric: Mapping[str, Facts], baseline: float | None) -> str:
    """A share from 0 to 1 as a bar with its interval, and a stroke at the best baseline."""
    value, (low, high) = float(metric["value"]), metric["ci95"]  # type: ignore[arg-type]

    def at(share: float) -> float:
        return 1 + min(max(share, 0.0), 1.0) * 98

    stroke = f'<path class="mark" d="M{at(baseline):.1f} 0V12"/>' if baseline is not None else ""
    return (
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rail" x="1" y="3" width="98" height="6"/>'
        f'<rect class="fill" x="1" y="3" width="{at(value) - 1:.1f}" height="6"/>'
        f'<path class="range" d="M{at(float(low)):.1f} 6H{at(float(high)):.1f}"/>{stroke}</svg>'
    )
