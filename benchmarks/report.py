"""How benchmarks report: figures as JSON, a table and a plot of them, targets met or not."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from configs.artifacts import read_json, write_json
from configs.cli import Parser
from configs.paths import display

Figures = Sequence[dict[str, Any]]
"""What the JSON file holds: an object for each thing that is compared."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that this project wants to reach."""

    name: str
    wanted: float
    reached: float
    """nan: could not be measured."""
    unit: str = "x"
    at_most: bool = False
    """Whether a smaller figure is the better one."""

    @property
    def met(self) -> bool:
        """Whether the target is reached. A figure that could not be measured reaches none."""
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted

    def __str__(self) -> str:
        wanted = f"{'at most ' if self.at_most else ''}{self.wanted:g}{self.unit}"
        if math.isnan(self.reached):
            return f"{self.name}: not measured (target {wanted})"
        verdict = "met" if self.met else "NOT met"
        return f"{self.name}: {self.reached:.2f}{self.unit} (target {wanted}): {verdict}"


class Page(NamedTuple):
    """What a benchmark shows of its figures. Both parts need nothing but the JSON."""

    lines: Callable[[Figures], Iterable[str]]
    """Tables in Markdown, then the targets."""
    draw: Callable[[Path, Figures], None]
    """A plot as SVG."""


def add_json_flag(parser: Parser, more: str = "") -> None:
    """`--json`, under which every benchmark writes its figures."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write the figures there{more} 结果文件")


def add_page_flags(parser: Parser) -> None:
    """`--json`, and `--from_json`, which shows such a file again without measuring anything."""
    add_json_flag(parser, ", a plot beside it")
    parser.add_argument("--from_json", type=Path, metavar="FILE", help="only print and draw these figures 由结果作图")


def show(page: Page, figures: Figures, json_file: Path | None) -> None:
    """Print the page. If there is a JSON file, also draw the plot, as an .svg file next to it."""
    print(*page.lines(figures), sep="\n", flush=True)
    if json_file:
        plot = json_file.with_suffix(".svg")
        page.draw(plot, figures)
        print(f"drawn: {display(plot)}")


def shows_old_figures(page: Page, args: Namespace) -> bool:
    """Do what `--from_json` asks for. Returns: False where it was not given.

    Raises: UserError where the file can't be read.
    """
    if args.from_json is None:
        return False
    show(page, read_json(args.from_json, "Make it with --json."), args.from_json)
    return True


def keep(path: Path | None, results: Figures, order: Sequence[str]) -> list[dict[str, Any]]:
    """Write results, an object an arm, beside those of an earlier run for other arms.

    Results of another model, device or text are dropped. Args: order: the names of all arms.
    Returns: what the file holds now.
    """
    arms = {result["arm"]: result for result in results}
    if path is None:
        return list(arms.values())
    if path.exists():
        for old in read_json(path, "Give --json another file."):
            if all(old.get(key) == results[0].get(key) for key in ("model", "device", "corpus")):
                arms.setdefault(old["arm"], old)
    ordered = [arms[name] for name in order if name in arms]
    write_json(path, ordered)
    return ordered
