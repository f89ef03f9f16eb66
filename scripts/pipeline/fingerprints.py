"""What makes a stage up to date: what its result depends on, as one hash; its outputs.

A stage's fingerprint covers the version of its recipe, its settings, the values that are chosen by
rule, and the content of what it reads. Torch is imported only if the rules must be asked again.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.artifacts import fingerprint, write_json
from configs.load import load_file_categories
from configs.paths import (
    DANGER_PROMPTS,
    FIRST_MINUTES,
    IDENTITY_MARK,
    IDENTITY_SAMPLE,
    IDENTITY_SOURCE,
    ROOT,
    source_dir,
)
from configs.stage_table import RECIPE_VERSION, STAGE_TABLE, STAGES, continues_text, heldout_file
from configs.train_run import hashed_settings, run_settings
from dataset.samples.files import generator_files
from scripts.pipeline.hashes import Hashes
from scripts.pipeline.plan import MIX_OUTPUTS, Pipeline, found

RULE_FILES = tuple(ROOT / "trainer" / name for name in ("autoconfig.py", "flops.py", "optim.py"))
"""Where the rules are. While these files and the inputs are the same, torch is not loaded to ask
the rules again."""


# --- what a stage is made from --------------------------------------------------------------------


def stage_fingerprint(pipeline: Pipeline, stage: str, hashes: Hashes) -> str:
    """What a stage's result depends on: recipe, settings, and the content of what it reads."""
    settings, inputs = _made_from(pipeline, stage, hashes)
    contents = [[path.name, hashes.sha256(path)] for path in inputs]
    return fingerprint([stage, RECIPE_VERSION[stage], settings, contents])


def _made_from(pipeline: Pipeline, stage: str, hashes: Hashes) -> tuple[Any, Sequence[Path]]:
    """The settings of a stage, as plain data, and the files that it reads."""
    tokenizer = pipeline.tokenizer_dir / "tokenizer.pkl"
    match stage:
        case "mix":
            return [asdict(pipeline.profile.mix), load_file_categories()], _sources(pipeline, hashes)
        case "tokenizer" if pipeline.train_tokenizer:
            texts = [*pipeline.texts(), *map(pipeline.heldout, STAGES)]
            return pipeline.profile.model.vocab_size, texts
        case "tokenizer":
            return "given", [tokenizer]
        case "export":
            lengths = [pipeline.runs[other].train.max_seq_len for other in STAGES]
            texts = [pipeline.data_dir / name for name in MIX_OUTPUTS if name.endswith("jsonl") and "_chinese" in name]
            return lengths, [tokenizer, *texts]
        case _:
            return _trained_from(pipeline, stage, hashes, tokenizer)


def _trained_from(pipeline: Pipeline, stage: str, hashes: Hashes, tokenizer: Path) -> tuple[Any, Sequence[Path]]:
    """The same of a stage that trains a model."""
    run, start = pipeline.runs[stage], pipeline.start(stage)
    settings = hashed_settings(run_settings(run))
    if start is not None:
        del settings["from_weight"]  # what counts is the content of the weights, not their name
    by_rule = values_by_rule(pipeline, stage, hashes)
    data = generator_files() if pipeline.sample_set(stage) else _arrays(run.data_path)
    inputs = [tokenizer, *data, *([start] if start else []), *_also_read(pipeline, stage)]
    return [settings, by_rule, pipeline.processes(stage)], inputs


def _also_read(pipeline: Pipeline, stage: str) -> list[Path]:
    """What a stage reads besides its data and its start: weights that settings name, and old rows
    if a part of each batch is to come from them."""
    files: list[Path] = []
    for path in pipeline.also_read(stage).values():
        files += [path / "config.json", *sorted(path.glob("*.safetensors"))] if path.is_dir() else [path]
    settings = asdict(pipeline.runs[stage].train)
    if settings.get("replay_share"):
        files += _arrays(Path(settings.get("replay_path") or pipeline.tokens("sft")))
    return files


def _arrays(data_path: Path) -> list[Path]:
    """The files whose content a trainer learns from: a folder's arrays, or the text file that was
    given instead."""
    path = found(data_path)
    return sorted(path.rglob("*.npy")) if path.is_dir() else [path]


def _sources(pipeline: Pipeline, hashes: Hashes) -> list[Path]:
    """What the mix reads: the user's files, and the bundled tables that stand in for them."""
    bundled = [*(ROOT / "dataset").glob("*.jsonl"), *generator_files()]
    folder = source_dir(pipeline.data_dir)
    users = sorted(folder.glob("[!.]*")) if folder.is_dir() else []
    return [
        path
        for path in (*sorted(bundled), *users)
        if path.is_file() and not (path == folder / IDENTITY_SOURCE and _is_unedited(path, hashes))
    ]


def _is_unedited(identity: Path, hashes: Hashes) -> bool:
    """Whether an identity file is as the mix wrote it: then it is no source of the user's."""
    mark = identity.with_name(IDENTITY_MARK)
    written = mark.read_text(encoding="utf-8").strip() if mark.is_file() else ""
    return hashes.sha256(identity) in {written, hashes.sha256(IDENTITY_SAMPLE)}


def evaluation_fingerprint(pipeline: Pipeline, stage: str, hashes: Hashes) -> str:
    """What a stage's evaluation depends on apart from its weights; empty without an evaluation."""
    if stage not in pipeline.runs:
        return ""
    profile = pipeline.profile
    # The held-out file of a bundled set is written as the stage runs: its generators stand for it.
    read = generator_files() if pipeline.sample_set(stage) else [pipeline.heldout(stage)]
    if STAGE_TABLE[stage].data == "pairs" or STAGE_TABLE[stage].optional:
        read.append(pipeline.data_dir / heldout_file("conversations"))
    if not continues_text(stage):
        read += [FIRST_MINUTES, DANGER_PROMPTS]
    settings = [asdict(profile.evaluate), profile.mix.name, profile.mix.author]
    return fingerprint([settings, [hashes.sha256(path) for path in read]])


# --- what the trainer's rules choose --------------------------------------------------------------


def values_by_rule(pipeline: Pipeline, stage: str, hashes: Hashes) -> dict[str, Any]:
    """What the trainer's rules give for settings that are left open; the last answer is kept.

    They are part of the stage's fingerprint, so that a changed rule is noticed. The hash `asked`
    only says whether the answer that was kept still holds. If it doesn't, the rules are asked
    again, and mostly they give the same.
    """
    run, start = pipeline.runs[stage], pipeline.start(stage)
    manifest = run.data_path / "manifest.json"
    files = [*RULE_FILES, manifest, *([start] if start else [])]
    asked = fingerprint([asdict(run.train), asdict(run.model), *map(hashes.sha256, files)])
    kept = pipeline.out_dir / "stages" / f"{stage}_rules.json"
    answer = _read(kept)
    if answer.get("asked") != asked:
        from trainer.facts import ask_rules  # here, because it loads torch

        answer = {"asked": asked, "values": ask_rules(run, start)}
        write_json(kept, answer)
    values: dict[str, Any] = answer["values"]
    return values


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# --- what a stage writes --------------------------------------------------------------------------


def outputs_of(pipeline: Pipeline, stage: str) -> list[Path]:
    """The files that a stage must have written, and those that it wrote beside them."""
    match stage:
        case "mix":
            return [pipeline.data_dir / name for name in MIX_OUTPUTS]
        case "tokenizer":
            return _files(pipeline.tokenizer_dir, "tokenizer.pkl") if pipeline.train_tokenizer else []
        case "export":
            return [path for other in STAGES for path in _files(pipeline.tokens(other), "manifest.json")]
        case _:
            return [pipeline.weights(stage)]


def _files(folder: Path, required: str) -> list[Path]:
    """The files of a folder without hidden ones; `required` also if it is missing."""
    there = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted({folder / required, *there})
