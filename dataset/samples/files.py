"""The bundled sample files: which generators make each of them, and when a file is made again."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import atomic_write, sha256_file, write_json
from configs.paths import ROOT
from dataset.samples.exam import EXAM_FILES, without_exam
from dataset.samples.generators import generated


@dataclass(frozen=True, slots=True)
class SampleFile:
    """One bundled file: `{name}_cn_sample.jsonl`."""

    category: str
    generators: tuple[str, ...]
    """Their names, as for `generated`."""
    replaced_by: tuple[str, ...] = ()
    """If the user has a file of one of these categories, this file is left out of the mix."""


SAMPLE_FILES = {
    "general": SampleFile(
        "general",
        ("dialogue.everyday", "dialogue.series", "dialogue.remembering", "dialogue.flow", "dialogue.medley"),
        ("general",),
    ),
    # What no such model can do, and what to say when a life is in danger. Both stay true with any
    # data of the user's, so this file is always in the mix.
    "limits": SampleFile("general", ("limits.questions", "danger.conversations")),
    "knowledge": SampleFile(
        "knowledge", ("knowledge.questions", "knowledge.follow_ups", "knowledge.claims"), ("knowledge",)
    ),
    # "I don't know" could be wrong when the user's own files teach it.
    "unknown": SampleFile("knowledge", ("unknown.questions",), ("knowledge", "general")),
    "math": SampleFile("math", ("arithmetic.questions", "arithmetic.claims"), ("math",)),
    "preference": SampleFile("preference", ("preference.pairs",), ("preference",)),
    "corpus": SampleFile("corpus", ("prose.stories",), ("corpus",)),
}
"""By name, in the order of the mix. The identity file is stored: identity_cn_sample.jsonl."""
MANIFEST = "samples_manifest.json"
SAMPLES = Path(__file__).parent
"""This folder."""


def sample_names(wanted: Collection[str], users: Collection[str]) -> list[str]:
    """The names of the files that belong in a mix.

    Args: wanted: categories with a target. users: categories that the user has files of.
    """
    return [
        name
        for name, file in SAMPLE_FILES.items()
        if file.category in wanted and not any(category in users for category in file.replaced_by)
    ]


def write_samples(directory: Path, names: Collection[str] = tuple(SAMPLE_FILES)) -> dict[str, Path]:
    """Write the files with these names. A file that the same generators made is kept.

    Returns: name -> file.
    """
    generated.cache_clear()
    sources = _sources_fingerprint()
    manifest_path = directory / MANIFEST
    manifest = _read_manifest(manifest_path)
    paths = {}
    for name in (name for name in SAMPLE_FILES if name in names):
        path = directory / f"{name}_cn_sample.jsonl"
        made = manifest.get(path.name, {})
        if made.get("generators") != sources or not path.is_file() or made.get("sha256") != sha256_file(path):
            with atomic_write(path) as file:
                for generator in SAMPLE_FILES[name].generators:
                    kept = without_exam(generated(generator))
                    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
            manifest[path.name] = {"generators": sources, "sha256": sha256_file(path)}
            write_json(manifest_path, manifest)
        paths[name] = path
    generated.cache_clear()  # the records need much memory
    return paths


def generator_files() -> list[Path]:
    """The files of code and tables of all generators, in the order of their paths."""
    return sorted(path for path in SAMPLES.rglob("*") if path.is_file() and path.parent.name != "__pycache__")


def _sources_fingerprint() -> str:
    """Hash of all that the generators use: code, tables, and the exams that they leave out."""
    digest = hashlib.sha256()
    for path in [*generator_files(), *EXAM_FILES]:
        name = path.relative_to(ROOT).as_posix()  # with the folder: some files have the same name
        digest.update(f"{name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """File name -> hash of the generators that made it, and its own."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # missing or damaged: every file is made again
    return manifest if isinstance(manifest, dict) else {}
