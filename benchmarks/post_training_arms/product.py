"""The product's own programs, as a user calls them: trainers and the evaluation, each a process."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from configs.artifacts import atomic_write
from configs.paths import ROOT
from configs.stage_table import STAGE_TABLE

PROFILE = ("--profile", "cpu")


def train(stage: str, folder: Path, seed: int, *words: str) -> Path:
    """Train a stage in one process of a CPU. A rerun resumes, or finds that it is done.

    Args: folder: where weights and metrics go. words: more flags.
    Returns: the folder. Raises: subprocess.CalledProcessError; the trainer has said why.
    """
    program = ROOT / "trainer" / STAGE_TABLE[stage].trainer
    places = ("--out_dir", str(folder), "--tf_dir", str(folder))
    fixed = ("--cpu_processes", "1", "--device", "cpu", "--eval_interval", "1000")
    flags = (*PROFILE, *fixed, "--seed", str(seed), *places, *words)
    subprocess.run([sys.executable, str(program), *flags], check=True)
    return folder


def evaluate(stage: str, checkpoint: Path, heldout: Path, *words: str) -> dict[str, Any]:
    """The metrics of a checkpoint on a held-out file, by evaluate_stage.py.

    They are kept beside it, so a rerun finds them.
    """
    results = checkpoint.with_name(f"{checkpoint.stem}_{heldout.stem}_metrics.jsonl")
    if not results.exists():
        program = ROOT / "scripts" / "evaluate_stage.py"
        unfinished = results.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        flags = (*PROFILE, "--stage", stage, "--checkpoint", str(checkpoint), "--data_path", str(heldout))
        where = ("--device", "cpu", "--results_file", str(unfinished))
        subprocess.run([sys.executable, str(program), *flags, *where, *words], check=True)
        unfinished.rename(results)
    metrics: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))["metrics"]
    return metrics


def last_metrics(folder: Path, stage: str) -> dict[str, float]:
    """The last values that a trainer logged: steps, tokens, targets, seconds and so on."""
    (path,) = (folder / "metrics").glob(f"{stage}_*.jsonl")
    found: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        found |= json.loads(line)
    return found


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write records, a line each, unless the file is there."""
    if not path.exists():
        with atomic_write(path) as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
