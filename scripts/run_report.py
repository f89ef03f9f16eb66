"""Write the report of a run: one page to look at, its numbers as JSON, and a model card.
写出一次运行的报告。

python scripts/run_report.py
python scripts/run_report.py --out_dir out --compare old_out/report.json --rent 2.5 --watts 65
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do if torch is missing

# isort: split

from configs.artifacts import atomic_write, write_json
from configs.cli import Parser, run
from configs.messages import both
from configs.paths import DATA_DIR, OUT_DIR, TF_DIR, display, env_path
from configs.schema import UserError
from evaluation.run_report.card import run_card
from evaluation.run_report.facts import RunFolders
from evaluation.run_report.page import render
from evaluation.run_report.report import CARD_FILE, JSON_FILE, PAGE_FILE, build_report, outline


def main(argv: Sequence[str] | None = None) -> int:
    """Read the files of a run, ask its weights, and write the page."""
    arguments = build_parser().parse_args(argv)
    folders = RunFolders(
        data=arguments.data_dir or env_path("DATA_DIR", DATA_DIR),
        out=arguments.out_dir or env_path("OUT_DIR", OUT_DIR),
        results=arguments.tf_dir or env_path("TF_DIR", TF_DIR),
    )
    prices = {
        name: getattr(arguments, name) for name in ("rent", "watts", "kwh") if getattr(arguments, name) is not None
    }
    for name, value in prices.items():
        if not 0 <= value < float("inf"):
            raise UserError(f"--{name} {value}: must be a number that is not negative.", "应是不小于 0 的数")
    report = build_report(folders, compare=arguments.compare or (), ask=arguments.ask, prices=prices)
    if arguments.outline:
        write_json(arguments.outline, outline(report) | {"chinese": "", "english": ""})
        print(f"-> {display(arguments.outline)}")
        return 0
    page = arguments.output or folders.out / PAGE_FILE
    # The page is made from what the JSON says, so that no number can differ.
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    html = render(json.loads(text))
    with atomic_write(page.with_name(JSON_FILE)) as file:
        file.write(text)
    with atomic_write(page) as file:
        file.write(html)
    if card := run_card(folders, report):
        with atomic_write(page.with_name(CARD_FILE)) as file:
            file.write(card)
    print(both("Report:", "报告："), f"  {display(page)}", sep="\n")
    return 0


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="of the mix; default: DATA_DIR 数据目录")
    parser.add_argument("--out_dir", type=Path, metavar="DIR", help="of the weights; default: OUT_DIR 权重目录")
    parser.add_argument("--tf_dir", type=Path, metavar="DIR", help="of metrics and scores; default: TF_DIR 结果目录")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"the page; default: OUT_DIR/{PAGE_FILE}; JSON and card lie beside it 报告",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="RUN",
        help=f"{JSON_FILE} of earlier runs, or their folders 与以前的运行比较",
    )
    parser.add_argument(
        "--no-ask", dest="ask", action="store_false", help="do not ask the weights anything 不让模型回答问题"
    )
    parser.add_argument("--rent", type=float, metavar="YUAN", help="rent of the machine an hour 每小时租金（元）")
    parser.add_argument("--watts", type=float, metavar="W", help="power that it takes 功率（瓦）")
    parser.add_argument("--kwh", type=float, metavar="YUAN", help="price of a kilowatt-hour 每度电的价格（元）")
    parser.add_argument(
        "--outline", type=Path, metavar="FILE", help="write only the curves, as a reference for others 只写出参考曲线"
    )
    return parser


if __name__ == "__main__":
    run(main)
