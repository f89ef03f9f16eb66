"""The runs in benchmarks/results/post_training.jsonl: a line each, and the table by arm.

    {"method", "arm", "task", "seed", "start_sha256", "cpu", "steps", "seconds", "metrics"}

`seconds` is null where a kill left no trace of how long a part of the run took.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from configs.artifacts import append_line
from configs.locks import take_lock
from configs.paths import display
from configs.schema import UserError

Key = tuple[str, str, str, int, str]
"""Method, arm, task, seed and start of a run."""


@dataclass(frozen=True)
class RunLine:
    """One run: a line of the file."""

    method: str
    arm: str
    task: str
    seed: int
    start_sha256: str
    cpu: str
    """Name of the CPU, and how many of its cores were used."""
    steps: int
    seconds: float | None
    metrics: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """What makes it another run than others."""
        return self.method, self.arm, self.task, self.seed, self.start_sha256

    def value(self, metric: str) -> float:
        """A metric's value; nan where the run has none."""
        found = self.metrics.get(metric)
        value = found.get("value") if isinstance(found, Mapping) else found
        return float(value) if isinstance(value, int | float) else math.nan


@dataclass(frozen=True)
class Runs:
    """The runs of one task from one start."""

    lines: Sequence[RunLine]
    arms: Sequence[str]
    """Arms that have a run, the method itself first."""

    def of(self, arm: str) -> list[RunLine]:
        """The runs of an arm by seed."""
        return sorted((line for line in self.lines if line.arm == arm), key=lambda line: line.seed)

    def values(self, arm: str, metric: str) -> list[float]:
        """A metric of each seed that has it."""
        return [value for line in self.of(arm) if not math.isnan(value := line.value(metric))]

    def mean(self, arm: str, metric: str) -> float:
        """Mean over the seeds; nan without a run."""
        return mean(values) if (values := self.values(arm, metric)) else math.nan

    def differences(self, arm: str, other: str, metric: str) -> list[float]:
        """`arm` minus `other`, for each seed that both have."""
        others = {line.seed: line.value(metric) for line in self.of(other)}
        pairs = [(line.value(metric), others[line.seed]) for line in self.of(arm) if line.seed in others]
        return [one - two for one, two in pairs if not math.isnan(one - two)]

    def difference(self, arm: str, other: str, metric: str) -> float:
        """Mean of `differences`; nan without a common seed."""
        return mean(values) if (values := self.differences(arm, other, metric)) else math.nan


# --- the file -------------------------------------------------------------------------------------


def read_runs(path: Path) -> list[RunLine]:
    """The runs in the file; none if it is missing. Of two lines with one key the first counts.

    Raises: UserError on a line that is no run.
    """
    found: dict[Key, RunLine] = {}
    if not path.exists():
        return []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = RunLine(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise UserError(f"{display(path)}:{number}: not a run ({error}). Delete the line, rerun.") from None
        found.setdefault(line.key, line)
    return list(found.values())


def append_run(path: Path, line: RunLine) -> None:
    """Append a run. Two programs may do so at once. Raises: UserError when the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        take_lock(file.fileno(), wait=True)
        append_line(path, _json_numbers(asdict(line)))


def _json_numbers(value: Any) -> Any:
    """The same with null for a number that JSON can't hold: it could not be measured."""
    if isinstance(value, Mapping):
        return {str(name): _json_numbers(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_numbers(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def in_use(cores: int) -> str:
    """How many cores torch's threads may use: `OMP_NUM_THREADS` of them, if it is set."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    used = min(int(threads), cores) if threads.isdecimal() and int(threads) else cores
    return f"{used} of {cores} cores"


# --- the table ------------------------------------------------------------------------------------


def tables(lines: Sequence[RunLine], order: Sequence[str]) -> Iterator[tuple[str, Runs]]:
    """Title and runs of each method, task and start. Args: order: of the arms."""
    groups: dict[tuple[str, str, str], list[RunLine]] = {}
    for line in lines:
        groups.setdefault((line.method, line.task, line.start_sha256), []).append(line)
    for (method, task, start), group in groups.items():
        present = {line.arm for line in group}
        arms = [*(arm for arm in order if arm in present), *sorted(present - set(order))]
        yield f"{method}, task {task}, start {start[:12]}", Runs(group, arms)


def table(title: str, runs: Runs) -> Iterator[str]:
    """Lines of Markdown: a row a metric, a column an arm.

    Below a metric stands how the controls differ from the first arm, seed by seed.
    """
    first, *controls = runs.arms
    yield from (f"**{title}**", "", f"| | {' | '.join(runs.arms)} |", "|---" * (1 + len(runs.arms)) + "|")
    yield _row("seeds", [", ".join(str(line.seed) for line in runs.of(arm)) for arm in runs.arms])
    yield _row("steps", [", ".join(_once(f"{line.steps:,}" for line in runs.of(arm))) for arm in runs.arms])
    seconds = [[line.seconds for line in runs.of(arm) if line.seconds is not None] for arm in runs.arms]
    yield _row("seconds", [_spread(values) for values in seconds])
    for metric in dict.fromkeys(name for line in runs.lines for name in line.metrics):
        yield _row(_name(runs, metric), [_cell(runs.of(arm), metric) for arm in runs.arms])
        differences = [runs.differences(arm, first, metric) for arm in controls]
        if any(differences):
            yield _row(f"minus {first}", ["", *(_spread(values, sign="+") for values in differences)])
    yield ""
    yield f"CPU: {'; '.join(_once(line.cpu for line in runs.lines))}. ± is the standard deviation over the seeds,"
    yield "and [ ] the 95% interval of a single run. Differences are paired by seed."


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cell or '-' for cell in cells)} |"


def _once(texts: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _name(runs: Runs, metric: str) -> str:
    """The metric's name, with the number of items behind it."""
    parts = [line.metrics[metric] for line in runs.lines if isinstance(line.metrics.get(metric), Mapping)]
    counts = _once(f"{part['n']:,}" for part in parts if "n" in part)
    return f"{metric}, n {' / '.join(counts)}" if counts else metric


def _cell(lines: Sequence[RunLine], metric: str) -> str:
    """Mean and spread; of a single run its interval."""
    values = [value for line in lines if not math.isnan(value := line.value(metric))]
    found = lines[0].metrics.get(metric) if len(lines) == 1 else None
    interval = found.get("ci95") if isinstance(found, Mapping) else None
    if len(values) == 1 and interval and None not in interval:
        return f"{values[0]:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"
    return _spread(values)


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation; with fewer than two values no deviation."""
    if not values:
        return ""
    return f"{mean(values):{sign}.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")
