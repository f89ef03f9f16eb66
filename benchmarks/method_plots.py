"""The plots of docs/methods: runs of a method that went well and runs that went wrong.

    python benchmarks/method_plots.py keep --method grpo --name healthy \\
        --label "rate 1e-4 学习率 1e-4" --fields reward,accuracy,entropy,length \\
        --metrics tf_dir/metrics/grpo_0a1b2c3d.jsonl
    python benchmarks/method_plots.py keep --method grpo --name rate --sick --label "rate 3e-4" ...
    python benchmarks/method_plots.py draw

`keep` takes a run's metrics, thins them, and keeps them as one line in
`benchmarks/results/curves/METHOD.jsonl`, in place of the line of the same name. `--metrics` may be
the folder of a run of post_training.py. `draw` makes `docs/methods/METHOD.svg` of each such file: a
panel a field, a colour a run.

Thinned means: the steps are cut into at most 60 equal windows. Of each field a window keeps the
mean of its values, rounded to five digits, and nothing where the run logged none in it.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.artifacts import atomic_write
from configs.cli import Parser, run
from configs.paths import ROOT, display
from configs.schema import UserError
from evaluation.plots import panel_charts

CURVES = ROOT / "benchmarks" / "results" / "curves"
PLOTS = ROOT / "docs" / "methods"
WINDOWS = 60
DIGITS = 5
CHINESE = {
    "loss": "训练损失", "validation_loss": "验证损失", "reward": "奖励", "accuracy": "正确率", "entropy": "熵",
    "kl": "与起始模型的 KL", "length": "回答长度", "length_ended": "已结束回答的长度", "grad_norm": "梯度范数",
    "validation_accuracy": "验证正确率", "cut_share": "被截断的比例", "clip_share": "被裁剪的比例", "lr": "学习率",
}  # fmt: skip
"""Names of common fields for readers of Chinese."""


@dataclass(frozen=True)
class Curve:
    """One run, thinned: a line of a file in `results/curves/`."""

    name: str
    label: str
    """What the plot calls it."""
    healthy: bool
    source: str
    """Name of the metrics file that it was made from."""
    steps: Sequence[int]
    """The last step of each window."""
    fields: Mapping[str, Sequence[float | None]]
    """Field -> its mean in each window; None where the run logged none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Keep a run's curve, or draw all that are kept."""
    parser = Parser(description=__doc__)
    parser.add_argument("verb", choices=("keep", "draw"))
    parser.add_argument("--method", metavar="M", help="how the page in docs/methods is called; draw: all 方法")
    parser.add_argument("--name", metavar="NAME", help="of the run in its file 运行的名字")
    parser.add_argument("--label", metavar="TEXT", help="what the plot calls it 图例")
    parser.add_argument("--sick", action="store_true", help="this run went wrong 失败的运行")
    parser.add_argument(
        "--metrics", type=Path, metavar="FILE", help="of a trainer; a folder: the newest in it 指标文件"
    )
    parser.add_argument("--fields", metavar="A,B", help="what the plot shows of it, a panel each 画哪些指标")
    parser.add_argument("--curves", type=Path, default=CURVES, metavar="DIR", help="where curves are kept 曲线目录")
    parser.add_argument("--plots", type=Path, default=PLOTS, metavar="DIR", help="where plots are drawn 图的目录")
    args = parser.parse_args(argv)
    if args.verb == "draw":
        for path in [args.curves / f"{args.method}.jsonl"] if args.method else sorted(args.curves.glob("*.jsonl")):
            plot = args.plots / f"{path.stem}.svg"
            draw(plot, path.stem, read_curves(path))
            print(f"drawn: {display(plot)}")
        return 0
    if missing := [name for name in ("method", "name", "label", "metrics", "fields") if not getattr(args, name)]:
        parser.error(f"keep needs --{', --'.join(missing)}")
    metrics = newest_metrics(args.metrics) if args.metrics.is_dir() else args.metrics
    lines, fields = read_metrics(metrics), args.fields.split(",")
    steps, thinned = thin(lines, fields)
    if absent := [name for name in fields if all(value is None for value in thinned[name])]:
        known = sorted({key for line in lines for key in line} - {"step"})
        raise UserError(f"{display(metrics)}: no {absent[0]} in it. It has {', '.join(known)}.")
    kept = args.curves / f"{args.method}.jsonl"
    keep(kept, Curve(args.name, args.label, not args.sick, metrics.name, steps, thinned))
    print(f"kept: {display(kept)}, {args.name}, {len(steps)} of {len(lines)} lines")
    return 0


def newest_metrics(folder: Path) -> Path:
    """The newest metrics below a folder, such as that of a run of `post_training.py`.

    Raises: UserError where there are none.
    """
    files = [path for path in folder.rglob("*.jsonl") if path.parent.name == "metrics"]
    if not files:
        raise UserError(f"{display(folder)}: no metrics/*.jsonl below it. Give another folder, or the file.")
    return max(files, key=lambda path: path.stat().st_mtime_ns)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file. Raises: UserError where one has no step."""
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        if lines and all(isinstance(line["step"], int) for line in lines):
            return lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{display(path)}: no metrics of a trainer ({type(error).__name__}: {error}).") from None
    raise UserError(f"{display(path)}: no metrics of a trainer. Each line is a JSON object with a step.")


def thin(lines: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> tuple[list[int], dict[str, list[float | None]]]:
    """The last step of each window, and what it keeps of each field."""
    last = max(line["step"] for line in lines)
    windows: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        windows.setdefault(max(0, line["step"] - 1) * WINDOWS // max(1, last), []).append(line)
    parts = [windows[number] for number in sorted(windows)]
    return [max(line["step"] for line in part) for part in parts], {
        name: [_mean([line[name] for line in part if name in line]) for part in parts] for name in fields
    }


def _mean(values: Sequence[Any]) -> float | None:
    finite = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return float(f"{mean(finite):.{DIGITS}g}") if finite else None


def read_curves(path: Path) -> list[Curve]:
    """The curves of a method.

    Raises: UserError where there are none, or where a line is no curve.
    """
    try:
        return [Curve(**json.loads(text)) for text in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{display(path)}: no kept curves ({error}). Make them with `keep`.") from None


def keep(path: Path, curve: Curve) -> None:
    """Write a curve into its method's file, in place of one of the same name."""
    curves = read_curves(path) if path.exists() else []
    names = [one.name for one in curves]
    if curve.name in names:
        curves[names.index(curve.name)] = curve
    else:
        curves.append(curve)
    with atomic_write(path) as file:
        file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in curves)


def draw(plot: Path, method: str, curves: Sequence[Curve]) -> None:
    """A panel for each field; the runs that went well come first."""
    ordered = sorted(curves, key=lambda curve: not curve.healthy)
    fields = list(dict.fromkeys(name for curve in ordered for name in curve.fields))
    panels = {panel_title(name): dict(lines_of(ordered, name)) for name in fields}
    panel_charts(plot, method, panels, "step 步")


def panel_title(field: str) -> str:
    """A field's name in both languages, as far as we have the second."""
    return f"{field} {CHINESE[field]}" if field in CHINESE else field


def lines_of(curves: Sequence[Curve], field: str) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Label and points of each run that logged this field."""
    for curve in curves:
        values = curve.fields.get(field) or [None] * len(curve.steps)  # not every run logs every field
        pairs = zip(curve.steps, values, strict=True)
        if points := [(float(step), value) for step, value in pairs if value is not None]:
            yield f"{'' if curve.healthy else '✗ '}{curve.label}", points


if __name__ == "__main__":
    run(main)
