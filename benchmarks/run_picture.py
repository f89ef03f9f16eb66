"""Draw a run for the README: the loss of each stage, and a conversation. 画出一次运行。

    python benchmarks/run_picture.py --tf_dir tf_dir --chat chat.txt --output docs/run.svg

`chat.txt` holds lines `你: ...` and `模型: ...`, as `eval_model.py` prints them.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import Parser, run
from configs.paths import TF_DIR, display
from configs.schema import UserError
from configs.stage_table import STAGES
from evaluation.plots import COLOURS, Point, line, text, ticks, write_svg

PANEL_LEFT, PANEL_WIDTH, TOP, HEIGHT, BOTTOM = 50, 330, 60, 430, 50
CHAT_LEFT, CHAT_WIDTH, LINE_HEIGHT, LINE_CHARACTERS = 410, 340, 19, 23
USER, MODEL = "你: ", "模型: "


def main(argv: Sequence[str] | None = None) -> int:
    """Metrics and a conversation -> one SVG."""
    parser = Parser(description=__doc__)
    parser.add_argument("--tf_dir", type=Path, default=TF_DIR, metavar="DIR", help="where metrics/ is 指标所在目录")
    parser.add_argument("--chat", type=Path, required=True, metavar="FILE", help="a conversation 对话文本")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the picture, SVG 输出图片")
    arguments = parser.parse_args(argv)
    curves = {stage: loss_curve(arguments.tf_dir, stage) for stage in STAGES[:2]}
    said = arguments.chat.read_text(encoding="utf-8").splitlines()
    write_svg(arguments.output, "bash scripts/run.sh", HEIGHT, shapes(curves, said))
    print(f"-> {display(arguments.output)}")
    return 0


def loss_curve(tf_dir: Path, stage: str) -> list[Point]:
    """(minutes, nats a target) of a stage's newest run. Raises: UserError where there is none."""
    files = sorted((tf_dir / "metrics").glob(f"{stage}_*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise UserError(f"{display(tf_dir / 'metrics')}: no metrics of {stage}. Train it first, or give --tf_dir.")
    lines = (json.loads(text) for text in files[-1].read_text(encoding="utf-8").splitlines())
    return [(values["seconds"] / 60, values["loss"]) for values in lines if "loss" in values]


def shapes(curves: dict[str, list[Point]], said: Sequence[str]) -> Iterator[str]:
    """The two halves of the picture."""
    yield from curve_shapes(curves)
    yield from chat_shapes(said)


def curve_shapes(curves: dict[str, list[Point]]) -> Iterator[str]:
    """Stages one after another on one axis of minutes."""
    # A stage starts where the one before it ended.
    joined: dict[str, list[Point]] = {}
    start = 0.0
    for stage, points in curves.items():
        joined[stage] = [(start + minutes, loss) for minutes, loss in points]
        start = joined[stage][-1][0]
    most = max(loss for points in joined.values() for _, loss in points)
    width, height = PANEL_WIDTH, HEIGHT - TOP - BOTTOM

    def place(point: Point) -> Point:
        return PANEL_LEFT + point[0] / start * width, TOP + height - point[1] / most * height

    for tick in ticks(0, most):
        y = place((0, tick))[1]
        yield line((PANEL_LEFT, y), (PANEL_LEFT + width, y), "grid") + text((PANEL_LEFT - 6, y + 4), f"{tick:g}", "end")
    for tick in ticks(0, start):
        yield text((place((tick, 0))[0], TOP + height + 18), f"{tick:g}", "middle")
    for colour, (stage, points) in zip(COLOURS[: len(joined)], joined.items(), strict=True):
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, points))
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        x, y = place(points[len(points) // 3])
        yield text((x + 16, y - 26), {"pretrain": "预训练 pretrain", "sft": "SFT"}[stage], "start", f' fill="{colour}"')
    yield text((PANEL_LEFT + width / 2, HEIGHT - 12), "分钟 minutes", "middle") + text((8, TOP - 12), "损失 loss")


def chat_shapes(said: Sequence[str]) -> Iterator[str]:
    """The conversation as a terminal shows it: questions in one colour, answers in another."""
    yield f'<rect x="{CHAT_LEFT}" y="{TOP - 20}" width="{CHAT_WIDTH}" height="{HEIGHT - TOP}" rx="6" fill="#1e1e2e"/>'
    y = TOP + 6
    for turn in (turn for turn in said if turn != f"{USER}/new"):
        colour = "#89dceb" if turn.startswith(USER) else "#f5f5f5"
        for start in range(0, len(turn), LINE_CHARACTERS):
            if y > HEIGHT - 32:
                return
            part = turn[start : start + LINE_CHARACTERS]
            yield text((CHAT_LEFT + 14, y), part, "start", f' style="fill:{colour}"')
            y += LINE_HEIGHT


if __name__ == "__main__":
    run(main)
