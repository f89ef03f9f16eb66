"""What is known about a run, read from its files: a plain dict, which `report.json` keeps.

Nothing is computed that a file does not say, and a file that is missing leaves its part out: a run
that was stopped, or one without a stage, has a report too. No path of the machine and no time of
day is kept, so the same files give the same bytes.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from configs.artifacts import sha256_file
from configs.load import from_mapping
from configs.paths import latest_weights
from configs.schema import ModelConfig, UserError
from configs.stage_table import OPTIONAL_STAGES, STAGE_TABLE, STAGES, tensor_folder
from evaluation.results import read_results
from evaluation.run_report.curves import curves_of, last_of, read_lines
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import read_checkpoint

FORMAT = 1
"""Version of report.json's layout."""
MACHINE_PARTS = (
    "device",
    "machine",
    "dtype",
    "threads",
    "world_size",
    "batch_size",
    "accumulation_steps",
    "use_compile",
)
"""What of a manifest's `choices` is shown: what the run picked for its machine."""
SHAPE_PARTS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "use_moe",
)  # fmt: skip

Facts = dict[str, Any]
"""Plain data that JSON can hold."""


@dataclass(frozen=True, slots=True)
class RunFolders:
    """Where the files of one run are."""

    data: Path
    out: Path
    results: Path
    """TF_DIR: metrics and the results file."""


def read_run(folders: RunFolders) -> Facts:
    """All facts of a run. Raises: UserError if there is no stage to report."""
    stages = {stage: found for stage in (*STAGES, *OPTIONAL_STAGES) if (found := read_stage(folders, stage))}
    if not stages:
        raise UserError(
            f"{folders.out}: no stage has run here. Train first: bash scripts/run.sh, or give --out_dir.",
            "这里还没有训练过任何阶段：请先运行 bash scripts/run.sh，或用 --out_dir 指定",
        )
    last = next(reversed(stages.values()))
    weights: Facts = next((stage["weights"] for stage in stages.values() if stage["weights"]), {})
    return {
        "format": FORMAT,
        "run_id": last["run_id"],
        "profile": next((stage["profile"] for stage in stages.values() if stage["profile"]), ""),
        "model": {"parameters": weights.get("parameters"), "shape": weights.get("shape", {})},
        "tokenizer_sha256": weights.get("tokenizer_sha256", ""),
        "mix": read_mix(folders.data),
        "tensors": read_tensors_of(folders.data),
        "preparation": {name: read_record(folders.out, name) for name in ("mix", "tokenizer", "export")},
        "stages": stages,
    }


# --- the data -------------------------------------------------------------------------------------


def read_mix(data_dir: Path) -> Facts:
    """What the mix took, left out and held out; empty without its manifest."""
    manifest = _json(data_dir / "mix_manifest.json")
    if not manifest.get("sources"):
        return {}
    kept = ("file", "category", "read", "kept", "heldout", "dropped", "repetition", "sample")
    return {
        "fingerprint": manifest.get("fingerprint", ""),
        "seed": manifest.get("seed"),
        "categories": manifest.get("categories", {}),
        "sources": [{name: source.get(name) for name in kept} for source in manifest["sources"]],
        "outputs": {name: part.get("records") for name, part in manifest.get("outputs", {}).items()},
        "rejects": _rejects(data_dir / "rejects.jsonl"),
    }


def _rejects(path: Path) -> dict[str, int]:
    """Reason -> how many lines of the sources were rejected for it."""
    if not path.exists():
        return {}
    counts: Counter[str] = Counter()
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            with contextlib.suppress(ValueError):
                counts[str(json.loads(text).get("reason", "?"))] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_tensors_of(data_dir: Path) -> Facts:
    """Kind of data -> tokens and rows of the mix's tensors."""
    found = {}
    for data in ("documents", "conversations", "pairs"):
        manifest = _json(data_dir / tensor_folder(data) / "manifest.json")
        if manifest:
            names = ("num_tokens", "num_targets", "num_bytes", "rows", "max_length", "fingerprint", "truncated")
            found[data] = {name: manifest[name] for name in names if name in manifest}
            found[data]["records"] = (manifest.get("source") or {}).get("records")
    return found


# --- a stage --------------------------------------------------------------------------------------


def read_record(out_dir: Path, stage: str) -> Facts:
    """What run.sh noted of a stage (scripts/pipeline/book.py): its state, id, time, outputs."""
    notes = _json(out_dir / "stages" / f"{stage}.json")
    names = ("status", "run_id", "seconds")
    return {name: notes[name] for name in names if name in notes} if notes else {}


def read_stage(folders: RunFolders, stage: str) -> Facts | None:
    """All that is known of a stage that trains; None if it was never started."""
    record = read_record(folders.out, stage)
    path = weights_of(folders.out, stage)
    weights = read_weights_facts(path) if path else None
    metrics = metrics_file(folders, stage, weights, record)
    if not (record or weights or metrics):
        return None
    # A trainer that is asked again may have begun other weights: then those of the file are old.
    is_whole = record.get("status", "done") == "done"
    lines = read_lines(metrics) if metrics else []
    run_id = record.get("run_id", "")
    return {
        "state": "done" if is_whole and weights else "unfinished",
        "run_id": run_id,
        "seconds": record.get("seconds") if is_whole else None,
        "train_seconds": last_of(lines, "seconds"),
        "tokens": last_of(lines, "tokens"),
        "steps": last_of(lines, "step"),
        "profile": weights["profile"] if weights else "",
        "weights": weights,
        "curves": curves_of(lines),
        "evaluation": read_evaluation(folders.results, stage, run_id, weights),
        "data": STAGE_TABLE[stage].data,
        "talks": STAGE_TABLE[stage].talks,
    }


def weights_of(out_dir: Path, stage: str) -> Path | None:
    """The weights that the record of a stage names, else the newest ones; None without any."""
    outputs = _json(out_dir / "stages" / f"{stage}.json").get("outputs") or {}
    for label in outputs:
        base, _, name = label.partition("/")
        if base == "out" and name.endswith(".pth") and (out_dir / name).is_file():
            return out_dir / name
    spec = STAGE_TABLE[stage]
    with contextlib.suppress(UserError):
        return latest_weights(spec.weights, out_dir / spec.folder)
    return None


def read_weights_facts(path: Path) -> Facts | None:
    """How weights were made, and their size; None if the file can't be read."""
    try:
        content = read_checkpoint(path, "")
        manifest = WeightsManifest.from_plain(content["manifest"])
        # An adapter has no shape of its own: its matrices are counted, and its base has the shape.
        is_adapter = "target_modules" in content["config"]
        config = None if is_adapter else shape_of(content["config"])
    except (UserError, KeyError, TypeError):
        return None
    if config is None:
        parameters = sum(tensor.numel() for tensor in content["model"].values())
    else:
        with torch.device("meta"):
            parameters = MiniLLM(config).num_parameters()
    return {
        "file": path.name,
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "parameters": parameters,
        "shape": {name: getattr(config, name) for name in SHAPE_PARTS} if config else {},
        "profile": manifest.profile,
        "fingerprint": manifest.fingerprint,
        "tensors": manifest.tensors,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "start_sha256": manifest.start.sha256 if manifest.start else "",
        "training_data": [
            {"file": Path(source.path).name, "records": source.records, "sha256": source.sha256}
            for source in manifest.training_data
        ],
        "changed": changed_settings(manifest),
        "grad_clip": manifest.settings.train.get("grad_clip"),
        "epochs": manifest.settings.train.get("epochs"),
        "resolved": dict(manifest.resolved),
        "machine": {name: manifest.choices[name] for name in MACHINE_PARTS if name in manifest.choices},
        "torch": manifest.torch,
    }


def shape_of(config: Mapping[str, Any]) -> ModelConfig:
    """The shape of a network; a head that a reward model adds has no part in it."""
    known = {one.name for one in fields(ModelConfig)}
    return from_mapping(ModelConfig(), {name: config[name] for name in config if name in known}, "weights").resolve()


def changed_settings(manifest: WeightsManifest) -> dict[str, dict[str, Any]]:
    """Settings that differ from the schema's defaults: name -> the value and the default."""
    stage = manifest.stage
    if stage not in STAGE_TABLE:
        return {}
    defaults = {"train": STAGE_TABLE[stage].settings(), "model": ModelConfig()}
    changed = {}
    for part, given in (("model", manifest.settings.model), ("train", manifest.settings.train)):
        for name, value in given.items():
            default = getattr(defaults[part], name, None)
            follows = part == "model" and name in ("head_dim", "intermediate_size", "original_max_position_embeddings")
            if value != default and not follows:  # those follow from other settings
                changed[name] = {"value": value, "default": default}
    return dict(sorted(changed.items()))


def metrics_file(folders: RunFolders, stage: str, weights: Facts | None, record: Facts) -> Path | None:
    """The metrics of a stage's run: of an unfinished one by its resume state, else by the weights.

    A run that crashed before its first state has neither, so the newest file since it began counts.
    """
    folder = folders.results / "metrics"
    states = sorted((folders.out / "checkpoints" / stage).glob("*/"))
    named = [path.name for path in states] if record.get("status") == "running" or not weights else []
    named += [weights["fingerprint"]] if weights else []
    for fingerprint in named:
        if (path := folder / f"{stage}_{fingerprint[:8]}.jsonl").is_file():
            return path
    began = folders.out / "stages" / f"{stage}.json"
    if weights or not began.is_file():
        return None
    since = began.stat().st_mtime_ns
    files = [path for path in folder.glob(f"{stage}_*.jsonl") if path.stat().st_mtime_ns >= since]
    return max(files, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def read_evaluation(results_dir: Path, stage: str, run_id: str, weights: Facts | None) -> Facts | None:
    """The last line of the results file about these weights; None without one."""
    found = None
    for line in read_results(results_dir / "eval_results.jsonl", smoke=True):
        same = weights is not None and line.get("checkpoint_sha256") == weights["sha256"]
        if line.get("stage") == stage and (same or (not weights and run_id and line.get("run_id") == run_id)):
            found = line
    if found is None:
        return None
    names = ("split", "seed", "dtype", "device", "seconds", "data_sha256", "settings")
    metrics = {name: _metric(value) for name, value in found.get("metrics", {}).items()}
    return {name: found.get(name) for name in names} | {"metrics": metrics}


def _metric(value: Mapping[str, Any]) -> Facts:
    """A metric without the scores of its topics, which the results file has."""
    return {name: part for name, part in value.items() if name != "by_topic"}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object of ours; empty if the file is missing or damaged: a report leaves it out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
