"""The undisturbed run: what the others must end like, and how long its steps take."""

import re
import time
from pathlib import Path

from benchmarks.kills.pipeline import Folders, Pipeline
from configs.schema import UserError
from configs.stage_table import STAGES


def reference_run(folders: Folders, profile: Path, threads: int) -> dict[str, float]:
    """Run to the end.

    Returns: seconds of each script, and seconds between two saves of each trainer.
    """
    run = Pipeline(folders, profile, threads, folders.base / "run_01.log")
    marks: list[tuple[float, str]] = []
    saves: dict[str, list[float]] = {stage: [] for stage in STAGES}
    known: dict[str, int] = {}
    shown = 0
    while run.process.poll() is None:
        lines = [line for line in run.text().splitlines() if line.startswith(("stage ", "$ python"))]
        for line in lines[shown:]:
            marks.append((run.seconds, line))
        shown = len(lines)
        for stage in STAGES:
            stamp = folders.saved_at(stage)
            if stamp and known.get(stage) != stamp:
                known[stage] = stamp
                saves[stage].append(run.seconds)
        time.sleep(0.005)
    if run.process.returncode:
        raise UserError(f"{run.log}: the undisturbed run failed ({run.process.returncode}). See that file.")
    # A script takes the time from its own line of the log to the next one.
    took: dict[str, float] = {"all": run.seconds}
    stage = ""
    for (start, line), (end, _) in zip(marks, [*marks[1:], (run.seconds, "")], strict=True):
        if match := re.match(r"stage (\w+): start", line):
            stage = match[1]
        elif match := re.search(r"/(\w+\.py)", line):
            took[f"{stage} {match[1]}"] = end - start
    for stage, moments in saves.items():
        if len(moments) < 5:
            raise UserError(
                f"{stage}: only {len(moments)} saves in the whole run. Take a profile with more steps or a smaller save_interval."
            )
        took[f"{stage} save"] = (moments[-1] - moments[0]) / (len(moments) - 1)
    return took
