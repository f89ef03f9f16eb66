"""Compares a run that was killed with the undisturbed one: weights, result lines, files."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.kills.pipeline import Folders
from configs.stage_table import STAGES


def differences(reference: Folders, killed: Folders, *, settings_changed: bool = False) -> list[str]:
    """In what a run that was killed differs from the undisturbed one, a line each.

    Where its settings changed in between, states of other settings may be left, and evaluations may
    have been made again.
    """
    problems = weight_differences(reference, killed)
    problems += result_differences(reference.results, killed.results, last_of_each=settings_changed)
    problems += manifest_differences(reference, killed)
    return problems + file_differences(reference, killed, settings_changed=settings_changed)


def weight_differences(reference: Folders, killed: Folders) -> list[str]:
    """Weights that are missing, and tensors that are not the same."""
    problems = []
    expected, found = reference.weights(), killed.weights()
    for stage in STAGES:
        if stage not in expected or stage not in found:
            problems.append(f"{stage}: weights are missing")
            continue
        problems += [f"{stage}: {text}" for text in tensor_differences(expected[stage], found[stage])]
    return problems


def manifest_differences(reference: Folders, killed: Folders) -> list[str]:
    """Manifests of the mix and of the tensors that differ in anything but paths."""
    problems = []
    for name in ("mix_manifest.json", *(f"{stage}_tokens/manifest.json" for stage in STAGES)):
        ours, theirs = (
            json.loads((folders.data / name).read_text(encoding="utf-8")) for folders in (reference, killed)
        )
        for manifest in (ours, theirs):  # the two runs are in two folders
            manifest.pop("source", None)
            if name != "mix_manifest.json":
                manifest["validation"].pop("path")
        if ours != theirs:
            problems.append(f"{name}: differs")
    return problems


def file_differences(reference: Folders, killed: Folders, *, settings_changed: bool) -> list[str]:
    """Files that are left over or missing, temporary ones too."""
    expected_files, found_files = (
        {path.relative_to(folders.base) for folder in (folders.data, folders.out) for path in folder.rglob("*")}
        for folders in (reference, killed)
    )
    left = {path for path in found_files - expected_files if not (settings_changed and "checkpoints" in path.parts)}
    problems = [f"{path}: left over" for path in sorted(left)]
    problems += [f"{path}: missing" for path in sorted(expected_files - found_files)]
    temporary = [path for path in killed.base.rglob("*") if path.name.endswith((".tmp", ".old"))]
    return problems + [f"{path}: a temporary file is left" for path in temporary]


def tensor_differences(expected: Path, found: Path) -> list[str]:
    """Tensors that are not the same bit by bit."""
    ours, theirs = (torch.load(path, map_location="cpu", weights_only=True)["model"] for path in (expected, found))
    if ours.keys() != theirs.keys():
        return [f"other tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}"]
    return [name for name in ours if _bytes(ours[name]) != _bytes(theirs[name])]


def _bytes(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.contiguous().view(torch.uint8).numpy().tobytes()


def result_differences(expected: Path, found: Path, *, last_of_each: bool = False) -> list[str]:
    """Whether each stage has one whole line, with the figures of the undisturbed run.

    With `last_of_each` a stage may have more lines, and only its last one counts.
    """
    problems = []
    ours = [json.loads(line) for line in expected.read_text(encoding="utf-8").splitlines()]
    text = found.read_text(encoding="utf-8")
    try:
        theirs = [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        return [f"eval_results.jsonl: a torn line ({error})"]
    if not text.endswith("\n"):
        problems.append("eval_results.jsonl: its last line has no end")
    if last_of_each:
        newest = {line["stage"]: line for line in theirs}
        theirs = [newest[stage] for stage in STAGES if stage in newest]
    if [line["stage"] for line in theirs] != list(STAGES):
        problems.append(f"eval_results.jsonl: stages {[line['stage'] for line in theirs]}")
    elif [line["metrics"] for line in ours] != [line["metrics"] for line in theirs]:
        problems.append("eval_results.jsonl: other figures")
    return problems
