"""Mix the Chinese sources into training and held-out sets. 把中文数据混合成训练集与留出集。

    python scripts/build_chinese_mix.py
    python scripts/build_chinese_mix.py --profile cpu --knowledge 5000

Reads `data/chinese/*.jsonl` (also .json, .csv, .gz, .xz), writes
`data/processed/{pretrain,sft,dpo}_chinese.jsonl`, their held-out parts, the rejected lines and
`mix_manifest.json`. Bundled samples stand in for each category without a file.
读取 data/chinese/ 里的数据，写出训练集、留出集、坏行与清单；缺少的类别用自带样例。
"""

import argparse
import os
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import Parser, run
from configs.flags import add_knobs, add_shared, given_knobs
from configs.knobs import knobs_of
from configs.load import load_file_categories, load_profile
from configs.paths import DATA_DIR, display, env_path, sample_dir, source_dir
from configs.schema import CATEGORIES, MixConfig
from dataset.mix.build import build_mix
from dataset.mix.drop_reasons import REJECTS_FILE, SOUND
from dataset.mix.sources import find_sources

_TARGETS = {name: knob for name, knob in knobs_of(MixConfig).items() if name in CATEGORIES}
_LABELS = {name: f"{name} {knob.chinese.partition('，')[0]}" for name, knob in _TARGETS.items()}
_HEADER = ("category 类别", "asked 目标", "reached 实得", "distinct 不重复", "repeated 重复", "held out 留出")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(description=__doc__)
    paths = parser.add_argument_group("folders 目录")
    paths.add_argument(
        "--source_dir", type=Path, metavar="DIR", help="your files 数据来源目录 (SOURCE_DIR, data/chinese)"
    )
    paths.add_argument(
        "--output_dir", type=Path, metavar="DIR", help="what is made 输出目录 (DATA_DIR, data/processed)"
    )
    add_shared(paths, "profile")
    add_knobs(
        parser.add_argument_group("targets in records, over the profile 各类目标条数，优先于配置"), MixConfig, *_TARGETS
    )
    others = [name for name, knob in knobs_of(MixConfig).items() if knob.flag and name not in _TARGETS]
    add_knobs(parser.add_argument_group("how 方式"), MixConfig, *others)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Mix the sources, write the records, and report what became of them."""
    arguments = build_parser().parse_args(argv)
    config = replace(load_profile(arguments.profile).mix, **given_knobs(arguments, MixConfig))
    output_dir = arguments.output_dir or env_path("DATA_DIR", DATA_DIR)
    folder = arguments.source_dir or source_dir(output_dir)
    if arguments.source_dir is None and not os.environ.get("SOURCE_DIR"):
        folder.mkdir(parents=True, exist_ok=True)
    sources = find_sources(folder, sample_dir(output_dir), config, load_file_categories())
    for source in sources.files:
        kind = "bundled sample 自带样例" if source.is_sample else "yours 用户数据"
        print(f"  {source.category:<10} {display(source.path)} ({kind})")
    for name, reason in sources.left_out.items():
        print(f"  left out 未使用   {name} ({reason})")
    sys.stdout.flush()  # before the progress bar, which goes to stderr
    manifest = build_mix(sources, config, output_dir)
    _report(manifest, output_dir)
    return 0


def _report(manifest: dict[str, Any], output_dir: Path) -> None:
    """Print a table of the categories: how many records were wanted, and how many were written.

    Below the table print why records were dropped, all notes, and the names of the written files.
    """
    if manifest["sample_factor"] < 1:
        print(
            f"targets of categories with bundled samples alone shrink to {manifest['sample_factor']:.4f} of themselves "
            "instead of repeating few records many times. 只有自带样例的类别：目标按同一比例缩小。"
        )
    rows: list[tuple[str, ...]] = [_HEADER]
    for name in CATEGORIES:
        if tally := manifest["categories"].get(name):
            counts = [f"{tally[key]:,}" for key in ("asked", "reached", "available")]
            rows.append((_LABELS[name], *counts, f"{tally['repetition']:.2f}x", f"{tally['heldout']:,}"))
    widths = [max(_width(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        first, *rest = (
            _pad(cell, width, right=column > 0) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]))
    for source in manifest["sources"]:
        for reason, count in source["dropped"].items():
            print(f"  dropped 丢弃 {count:,} from {source['file']}: {reason}")
        if (marked := source["foreign_marks"])["records"]:
            print(
                f"  {marked['marks']:,} marks of other chat formats (<|im_start|>, <s>) were removed or became line ends in "
                f"{marked['records']:,} records of {source['file']} 其他对话格式的标记已删去或换成换行"
            )
        if source["format"]:
            print(f"  {source['file']} was read as {source['format']} 按此格式读取")
    for note in manifest["notes"]:
        print(f"  {note}")
    if any(set(source["dropped"]) - set(SOUND) for source in manifest["sources"]):
        print(f"  bad lines are in {display(output_dir / REJECTS_FILE)} 坏行见该文件")
    for name, output in manifest["outputs"].items():
        print(f"{display(output_dir / name)}: {output['records']:,} records 条")


def _width(text: str) -> int:
    """How many columns of a terminal a text takes; a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _pad(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


if __name__ == "__main__":
    run(main)
