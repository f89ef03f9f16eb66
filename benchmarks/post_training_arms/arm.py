"""What a method's module gives to post_training.py, and the finished run that all start from.

A module `post_training_arms/METHOD.py` has four names:

    TASKS: tuple[str, ...]      # the first is the default
    ARMS: tuple[str, ...]       # the first is the method itself, then its controls
    def prepare(task: str, folder: Path) -> Start
    def measure(arm: str, task: str, seed: int, start: Start, folder: Path) -> Outcome

`prepare` builds what all arms of a task share, in a folder of its own. It is called before each
run: what is there already is found again, and what was interrupted is resumed. `measure` trains
and scores one arm with the trainers' own programs. Called again with the same folder, it resumes.
A module may also have `targets(runs: Runs) -> list[Target]`: the figures that are wanted.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.post_training_arms.runs import Runs
from benchmarks.report import Target
from configs.artifacts import fingerprint, sha256_file
from configs.paths import DATA_DIR, OUT_DIR, default_tokenizer_dir, latest_weights
from configs.stage_table import DATA_STEMS, STAGE_TABLE, STAGES, heldout_file, record_file, tensor_folder
from dataset.tensors import MANIFEST_FILE
from model.weights import read_checkpoint

RUN_DIR = "POST_TRAINING_RUN_DIR"
"""Environment variable: the folder with `out/` and `data/` of the finished run. It is set by
`--run_dir`. Without it they are where `run.sh` leaves them."""


@dataclass(frozen=True)
class Start:
    """What all arms of a task share."""

    weights: Path
    data: dict[str, Path]
    """Files and folders by a name of the module's choice, such as `train` and `test`."""
    sha256: str
    """Fingerprint of all that the start depends on: `start_sha256`."""


@dataclass(frozen=True)
class Outcome:
    """What one run gives."""

    steps: int
    metrics: dict[str, object]
    """Name -> a number, or `{"value", "n", "ci95": [low, high]}` (`Metric.as_json`)."""


class Method(Protocol):
    """A method's module. `targets` is optional."""

    TASKS: tuple[str, ...]
    ARMS: tuple[str, ...]

    def prepare(self, task: str, folder: Path) -> Start:
        """Build or find the start of a task."""

    def measure(self, arm: str, task: str, seed: int, start: Start, folder: Path) -> Outcome:
        """Train and score one arm."""


def targets_of(method: Method, runs: Runs) -> list[Target]:
    """The figures that a method wants to reach; none if its module names none."""
    wanted = getattr(method, "targets", None)
    return wanted(runs) if wanted else []


@dataclass(frozen=True)
class FinishedRun:
    """The folders of a finished `run.sh` with profile `cpu`. Nothing is written there."""

    out_dir: Path
    data_dir: Path

    def weights(self, stage: str) -> Path:
        """The weights of `pretrain`, `sft` or `dpo`. Raises: UserError where there are none."""
        return latest_weights(STAGE_TABLE[stage].weights, self.out_dir)

    @property
    def tokenizer_dir(self) -> Path:
        """The tokenizer of these weights."""
        return default_tokenizer_dir(self.out_dir)

    def fingerprint(self) -> str:
        """Of the contents of its weights and records, as far as they are there."""
        weights = [path for stage in STAGES for path in self.out_dir.glob(f"{STAGE_TABLE[stage].weights}_*.pth")]
        records = [path for data in DATA_STEMS for path in (self.records(data), self.heldout(data)) if path.exists()]
        return fingerprint({path.name: content_sha256(path) for path in [*weights, *records]})

    def tokens(self, data: str) -> Path:
        """The token tensors of a kind of data, such as `conversations`."""
        return self.data_dir / tensor_folder(data)

    def records(self, data: str) -> Path:
        """The training records of a kind of data."""
        return self.data_dir / record_file(data)

    def heldout(self, data: str) -> Path:
        """The held-out records of a kind of data."""
        return self.data_dir / heldout_file(data)


def finished_run() -> FinishedRun:
    """The run that RUN_DIR names, else the one in `out/` and `data/processed/`."""
    given = os.environ.get(RUN_DIR)
    return FinishedRun(Path(given) / "out", Path(given) / "data") if given else FinishedRun(OUT_DIR, DATA_DIR)


def start_sha256(files: Mapping[str, Path], settings: Mapping[str, Any]) -> str:
    """Fingerprint of a start: the same on every machine where the contents and settings are.

    Args: files: name -> file or folder that it depends on. settings: flags and counts, no paths.
    """
    contents = {name: content_sha256(path) for name, path in files.items()}
    return fingerprint({"files": contents, "settings": dict(settings)})


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's or folder's content.

    Of weights only the tensors and the shape count, and of a folder not its manifest: manifests
    name the machine and its folders.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return fingerprint(
            {file.relative_to(path).as_posix(): sha256_file(file) for file in files if file.name != MANIFEST_FILE}
        )
    if path.suffix != ".pth":
        return sha256_file(path)
    content = read_checkpoint(path, "Give the weights of a finished run.")
    tensors = {name: tensor_sha256(tensor) for name, tensor in content["model"].items()}
    return fingerprint({"config": content["config"], "tensors": tensors})


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, type and shape."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
