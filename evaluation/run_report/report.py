"""The whole report: facts, answers and notes of a run, runs beside it, and the grey reference."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.paths import display
from configs.schema import UserError
from evaluation.run_report.advice import best_baseline, comparable, notes_of, stage_before
from evaluation.run_report.answers import read_answers
from evaluation.run_report.curves import rounded, thinned
from evaluation.run_report.facts import FORMAT, Facts, RunFolders, read_run
from evaluation.run_report.words import is_share

JSON_FILE, PAGE_FILE, CARD_FILE = "report.json", "report.html", "model_card.md"
REFERENCE_FOLDER = Path(__file__).parent / "reference"
"""A file a profile: curves of a run that went well on the bundled data, to draw in grey. Speed
is not among them: it is the machine's."""
KEPT_POINTS = 60
"""Points of each curve of the reference and of runs beside this one."""
KEPT_CURVES = ("loss", "validation_loss", "tokens_per_second", "lr", "grad_norm", "reward")


def build_report(
    folders: RunFolders, *, compare: Sequence[Path] = (), ask: bool = True, prices: dict[str, float] | None = None
) -> Facts:
    """Everything that the page shows, as plain data.

    Args: compare: report.json of other runs, or the folders that hold them. ask: whether the
    weights are asked (or what was kept of their answers is taken). prices: what the user entered.
    Raises: UserError.
    """
    facts = read_run(folders)
    facts["answers"] = read_answers(folders, facts) if ask else {}
    facts["notes"] = notes_of(facts)
    facts["changes"] = changes_of(facts)
    facts["totals"] = totals_of(facts)
    facts["prices"] = prices or {}
    facts["reference"] = read_reference(facts["profile"])
    facts["beside"] = [read_other(path) for path in compare]
    return facts


def changes_of(facts: Facts) -> dict[str, dict[str, Facts]]:
    """Stage -> metric -> its change from the stage that it started from, where both are of the same
    questions; `apart` where the two intervals do not meet."""
    stages = facts["stages"]
    changes: dict[str, dict[str, Facts]] = {}
    for stage, one in stages.items():
        before = stage_before(stages, stage)
        if before is None or not one["evaluation"] or not stages[before]["evaluation"]:
            continue
        earlier = stages[before]["evaluation"]["metrics"]
        for name, metric in one["evaluation"]["metrics"].items():
            if comparable(metric, earlier.get(name)):
                was = earlier[name]
                apart = metric["ci95"][0] > was["ci95"][1] or metric["ci95"][1] < was["ci95"][0]
                by = rounded(metric["value"] - was["value"])
                changes.setdefault(stage, {})[name] = {"from": before, "by": by, "apart": apart}
    return changes


def totals_of(facts: Facts) -> Facts:
    """Sums over the stages that are known; no time of the whole where run.sh noted none."""
    stages, before = facts["stages"].values(), facts["preparation"].values()
    return {
        "seconds": sum(one.get("seconds") or 0 for one in (*before, *stages)) or None,
        "train_seconds": rounded(sum(one["train_seconds"] or 0 for one in stages)),
        "tokens": int(sum(one["tokens"] or 0 for one in stages)),
    }


# --- other runs -----------------------------------------------------------------------------------


def outline(facts: Facts) -> Facts:
    """The part of a report that is shown beside another run: curves, and the main metrics."""
    return {
        "run_id": facts["run_id"],
        "profile": facts["profile"],
        "stages": {
            stage: {
                "curves": {
                    name: thinned([(x, y) for x, y in one["curves"][name]], KEPT_POINTS)
                    for name in KEPT_CURVES
                    if name in one["curves"]
                },
                "metrics": {
                    name: {key: metric[key] for key in ("value", "n", "ci95") if key in metric}
                    for name, metric in ((one["evaluation"] or {}).get("metrics", {})).items()
                },
            }
            for stage, one in facts["stages"].items()
        },
    }


def read_other(path: Path) -> Facts:
    """The outline of another run. Raises: UserError where its report.json can't be read."""
    file = path / JSON_FILE if path.is_dir() else path
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(
                f"--compare {display(file)}: of format {content['format']}, not {FORMAT}. Write that report again with "
                "this version: python scripts/run_report.py --out_dir DIR.",
                "版本不同：请用当前版本重新生成那份报告",
            )
        return outline(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--compare {display(file)}: no report of a run ({type(error).__name__}). Give a report.json, or the folder "
            "that holds one; python scripts/run_report.py --out_dir DIR writes it.",
            "不是运行报告：请给出 report.json 或它所在的目录",
        ) from None


def read_reference(profile: str) -> Facts:
    """The stored curves of a profile; empty if none are stored."""
    path = REFERENCE_FOLDER / f"{Path(profile).stem}.json"
    if not profile or not path.is_file():
        return {}
    content: Facts = json.loads(path.read_text(encoding="utf-8"))
    return content


# --- rows of the page -----------------------------------------------------------------------------


def judged_stages(facts: Facts) -> list[str]:
    """Stages that have scores."""
    return [stage for stage, one in facts["stages"].items() if one["evaluation"]]


def metric_rows(facts: Facts) -> list[str]:
    """All metrics of all stages, each once; those of the state before a stage are no rows."""
    names = [
        name
        for stage in judged_stages(facts)
        for name in facts["stages"][stage]["evaluation"]["metrics"]
        if not name.endswith("_before")
    ]
    return list(dict.fromkeys(names))


def stands_out(name: str, metric: Facts) -> bool | None:
    """Whether a share is above its baselines; None if it has none."""
    baseline = best_baseline(metric)
    return None if baseline is None or not is_share(name) else bool(metric["ci95"][0] > baseline)
