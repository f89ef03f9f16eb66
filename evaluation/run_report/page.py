"""The report as one HTML page, from `report.json` alone.

Each number stands in a element whose `data-at` says where in the JSON it is, so a test can
compare them all. The template can't show a number in another way: it has no arithmetic.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.schema import UserError
from evaluation.run_report.advice import best_baseline
from evaluation.run_report.charts import Series, chart, interval_bar, provenance
from evaluation.run_report.facts import Facts
from evaluation.run_report.report import judged_stages, metric_rows, stands_out
from evaluation.run_report.words import (
    CHECKS,
    CURVES,
    GROUPS,
    LOGARITHMIC,
    STAGES,
    group_of,
    is_minor,
    is_share,
    metric_names,
)

FOLDER = Path(__file__).parent
LARGEST_PAGE = 500_000
"""Bytes. A page above it leaves the folded tables out, so that it stays quick to send."""


def render(facts: Facts) -> str:
    """The page. Raises: UserError where Jinja2, which torch brings, is missing."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError:
        raise UserError(
            "jinja2: not installed, though torch brings it. Run: python -m pip install jinja2",
            "缺少 jinja2：请用所列命令安装",
        ) from None

    def number(at: str, kind: str = "") -> Any:
        """The value at a place of the JSON, as an element that says where it stands."""
        value = value_at(facts, at)
        if value is None:
            return "–"
        of_kind = f' data-kind="{kind}"' if kind else ""
        return Markup(f'<span data-at="{escape(at)}"{of_kind}>{shown(value, kind)}</span>')

    def both(chinese: object, english: object) -> Any:
        """The same in two languages, of which the page shows one."""
        if str(chinese) == str(english):
            return escape(chinese)
        return Markup(f'<span class="zh">{escape(chinese)}</span><span class="en">{escape(english)}</span>')

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    known: Facts = {
        "facts": facts,
        "number": number,
        "both": both,
        "stage_names": lambda stage: both(*STAGES.get(stage, (stage, stage))),
        "charts": lambda stage: [(both(*names), Markup(svg), keys) for names, svg, keys in charts_of(facts, stage)],
        "chain": Markup(provenance(facts)),
        "judged": judged_stages(facts),
        "metric_names": lambda name: both(*metric_names(name)),
        "kind_of": lambda name: "share" if is_share(name) else "plain",
        "bar": lambda metric: Markup(interval_bar(metric, best_baseline(metric))),
        "stands_out": stands_out,
        "in_both": lambda stage: metrics_in_both(facts, stage),
        "style": Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        "script": Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
    }
    page = template.render(**known, groups=groups_of(facts))
    if len(page.encode()) >= LARGEST_PAGE:  # many stages, and runs beside them: the JSON has what is left out
        page = template.render(**known, groups=groups_of(facts, with_parts=False))
    return page + "\n"


def value_at(facts: Mapping[str, Any], at: str) -> Any:
    """The value at a place such as `stages/sft/tokens` or `mix/sources/0/kept`."""
    value: Any = facts
    for part in at.split("/"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def shown(value: float | int, kind: str) -> str:
    """A number as people read it.

    Kinds: `share` 91.3%; `change` +1.2 (points); `time` 7 min 44 s; `bytes` 10.7 MB; `plain` four
    significant digits, whole numbers with commas.
    """
    if kind == "share":
        return f"{100 * value:.1f}%"
    if kind == "change":
        return f"{round(100 * value, 1) + 0.0:+.1f}"  # + 0.0: no -0.0
    if kind == "signed":
        return f"{value:+.4g}"
    if kind == "time":
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return f"{hours} h {minutes:02d} min"
        return f"{minutes} min {seconds:02d} s" if minutes else f"{value:.3g} s"
    if kind == "bytes":
        return f"{value / 2**20:,.1f} MB"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def groups_of(
    facts: Facts, *, with_parts: bool = True
) -> list[tuple[tuple[str, str], list[str], list[tuple[bool, list[str]]]]]:
    """The score tables: names of the group, stages that have any of it, its main metrics, and those
    that are folded away."""
    rows = metric_rows(facts)
    metrics = {stage: facts["stages"][stage]["evaluation"]["metrics"] for stage in judged_stages(facts)}
    tables = []
    for key, names, _ in GROUPS:
        mine = [name for name in rows if group_of(name) == key]
        parts = [(minor, [name for name in mine if is_minor(name) == minor]) for minor in (False, True)]
        if mine:
            columns = [stage for stage, known in metrics.items() if known.keys() & set(mine)]
            tables.append((names, columns, [part for part in parts if part[1] and (with_parts or not part[0])]))
    return tables


def metrics_in_both(facts: Facts, stage: str) -> list[str]:
    """The main metrics of a stage that a run beside this one has too."""
    others = [other["stages"].get(stage, {}).get("metrics", {}) for other in facts["beside"]]
    names = facts["stages"][stage]["evaluation"]["metrics"]
    return [name for name in names if not is_minor(name) and any(name in other for other in others)]


def charts_of(facts: Facts, stage: str) -> list[tuple[tuple[str, str], str, dict[str, str]]]:
    """The charts of a stage: names, SVG, and the curves that stand in it by their kind."""
    own = facts["stages"][stage]["curves"]
    reference = facts["reference"].get("stages", {}).get(stage, {}).get("curves", {})
    others = [other["stages"].get(stage, {}).get("curves", {}) for other in facts["beside"]]
    charts = []
    for name, names in CURVES.items():
        if name not in own:
            continue
        check = CHECKS.get(name, "")
        series = [Series("reference", "reference", reference.get(name, []))]
        if check:
            series.append(Series("reference", "reference", reference.get(check, [])))
        series += [
            Series(f"run {place}", f"past p{place % 3}", other.get(name, [])) for place, other in enumerate(others)
        ]
        series.append(Series(name, "own", own[name]))
        if check in own:
            series.append(Series(check, "check", own[check]))
        keys = {name: "own"} | ({check: "check"} if check in own else {})
        charts.append((names, chart(name, series, logarithmic=name in LOGARITHMIC), keys))
    return charts
