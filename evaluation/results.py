"""The results file: read its lines, one for each evaluation, and check what goes into it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.messages import SMOKE_PROFILE
from configs.paths import display, trainer_command
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from evaluation.intervals import Metric

MAX_LINE = 1 << 20
"""Most characters of a first line that are looked at. A line of ours is far shorter."""


def read_results(path: Path, *, smoke: bool = False) -> Iterator[dict[str, Any]]:
    """The lines of a results file, in their order; none without a file.

    Those of the profile `smoke` come only if `smoke` is set: they show that everything runs, and
    their scores mean nothing.
    Raises: UserError with the number of a line that is no JSON object.
    """
    if not path.exists():
        return
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise UserError(
                f"{display(path)}:{number}: not a JSON line. Fix or remove that line.", "该行不是 JSON：请修正或删除"
            )
        if smoke or line.get("profile") != SMOKE_PROFILE:
            yield line


def require_ours(path: Path, key: str, flag: str) -> None:
    """Check a file before it is written to: it may be somebody's data.

    Args: key: a field of each line of ours. flag: the flag that named the file.
    Raises: UserError if the first line of the file is not a JSON object with this key.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(MAX_LINE)
    try:
        line = json.loads(first)
    except ValueError:
        line = None
    if not isinstance(line, dict) or key not in line:
        raise UserError(
            f"{flag} {display(path)}: holds something else already. Give another file, or remove that one.",
            "文件里已有其他内容：请换一个文件名",
        )


def is_recorded(results: Path, run_id: str, stage: str) -> bool:
    """Whether the results file has the line of this run and stage."""
    lines = read_results(results, smoke=True)
    return any(line.get("run_id") == run_id and line.get("stage") == stage for line in lines)


def require_numbers(path: Path, stage: str, metrics: Mapping[str, Metric]) -> None:
    """Raises: UserError if a score is NaN or infinite. `path`: the weights."""
    if broken := [name for name, m in metrics.items() if not all(map(math.isfinite, (m.value, m.low, m.high)))]:
        raise UserError(
            f"{display(path)}: {', '.join(broken)} can't be told in numbers: the weights are damaged. Train them again: "
            f"{trainer_command(STAGE_TABLE[stage].weights)}.",
            "得分不是有限的数：权重已损坏，请重新训练",
        )
