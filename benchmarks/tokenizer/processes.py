"""Starts each measurement as a process of its own, arm after arm.

Also makes the environment of the packages that can't live beside ours.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tokenizer.arms import EXTERNAL, OF_EXTERNAL
from benchmarks.tokenizer.text import Prepared
from configs.artifacts import write_json
from configs.paths import display
from configs.schema import UserError

CHILD = Path(__file__).resolve().with_name("child.py")


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share."""

    folder: Path
    """Files of this run; gone afterwards."""
    other_python: Path
    """Of the environment with PyPI's package."""
    pattern: str
    threads: int
    repeats: int
    character_coverage: float

    def run_child(self, task: str, arm: str, prepared: Prepared, vocab_size: int) -> dict[str, Any]:
        """One measurement in a process of its own.

        Raises: UserError with its last words when it fails.
        """
        python = self.other_python if arm in OF_EXTERNAL else sys.executable
        settings = {
            "task": task,
            "arm": arm,
            "texts": str(prepared.texts),
            "paragraphs": str(prepared.paragraphs),
            "tokenizer": str(self.folder / "tokenizer"),
            "model_prefix": str(self.folder / "sentencepiece"),
            "vocab_size": vocab_size,
            "pattern": self.pattern,
            "threads": self.threads,
            "character_coverage": self.character_coverage,
        }
        task_file, result_file = self.folder / "task.json", self.folder / "result.json"
        write_json(task_file, settings)
        result_file.unlink(missing_ok=True)
        # PYTHONPATH would bring packages of one environment into the other.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"RAYON_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run(
            [str(python), str(CHILD), str(task_file), str(result_file)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not result_file.exists():
            raise UserError(f"{task}, {arm}: exit {done.returncode}: {last_words(done.stderr)}")
        found: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        return found

    def take_turns(
        self, task: str, arms: Sequence[str], prepared: Prepared, vocab_size: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Arm -> what each repetition found.

        Each round runs all arms one after the other, so that a slow minute of the machine meets all
        of them.
        """
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for number in range(1, self.repeats + 1):
            for arm in arms:
                found[arm].append(self.run_child(task, arm, prepared, vocab_size))
                shown = f"{prepared.num_bytes / 1e6:.0f} MB, {vocab_size} ranks, round {number} of {self.repeats}"
                print(f"{task} {shown}: {arm} {found[arm][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        return found


def last_words(stderr: str) -> str:
    """Why a program failed, on one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if not lines:
        return "it said nothing; a negative number is the signal that ended it (9: no memory?)"
    return lines[-1].removeprefix("error: ")


def other_environment(folder: Path) -> Path:
    """Python of the environment with PyPI's packages, which is made where it is missing.

    Raises: UserError.
    """
    python = folder / "bin" / "python"
    probe = [str(python), "-c", f"import {', '.join(EXTERNAL)}; {EXTERNAL[0]}.Tokenizer"]
    if python.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return python
    print(f"making {display(folder)} with {', '.join(EXTERNAL)} from PyPI", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *EXTERNAL],
        probe,
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{display(folder)}: can't be made: {last_words(done.stderr)}. It needs PyPI or a mirror.")
    return python
