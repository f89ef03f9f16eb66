"""The sample data that ships with the project: generators, and the files made from them."""

import hashlib
import importlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from configs.artifacts import atomic_write, sha256_file, write_json
from dataset.samples.exam import EXAM_FILES, without_exam


@dataclass(frozen=True, slots=True)
class SampleFile:
    """One bundled file: `{name}_cn_sample.jsonl`."""

    category: str
    modules: tuple[str, ...]
    """Generators, modules of this package."""
    replaced_by: tuple[str, ...] = ()
    """Categories of which any file of the user's takes its place; none: it is always there."""


SAMPLE_FILES = {
    "general": SampleFile(
        "general", ("dialogue", "dialogue_series", "dialogue_memory", "dialogue_flow", "medley"), ("general",)
    ),
    # What no such model can do, and what to say where a life is in danger: true whatever else it learns.
    "limits": SampleFile("general", ("limits", "danger")),
    "knowledge": SampleFile("knowledge", ("knowledge", "knowledge_follow_ups", "knowledge_claims"), ("knowledge",)),
    # "I don't know" would be wrong about what the user's own files teach.
    "unknown": SampleFile("knowledge", ("unknown",), ("knowledge", "general")),
    "math": SampleFile("math", ("arithmetic", "arithmetic_claims"), ("math",)),
    "preference": SampleFile("preference", ("preference",), ("preference",)),
    "corpus": SampleFile("corpus", ("prose",), ("corpus",)),
}
"""By name, in the order of the mix. Identity lies ready in `dataset/identity_cn_sample.jsonl`."""
MANIFEST = "samples_manifest.json"


def sample_names(wanted: Collection[str], users: Collection[str]) -> list[str]:
    """The files that belong into a mix. Args: wanted: categories with a target. users: categories the user has files of."""
    return [
        name
        for name, file in SAMPLE_FILES.items()
        if file.category in wanted and not any(category in users for category in file.replaced_by)
    ]


@cache
def generated(module: str) -> tuple[dict[str, Any], ...]:
    """All records of a generator, made once for everybody who builds on them; nobody changes them."""
    return tuple(importlib.import_module(f"dataset.samples.{module}").records())


def write_samples(directory: Path, names: Collection[str] = tuple(SAMPLE_FILES)) -> dict[str, Path]:
    """Write each file asked for; those made by the same generators are kept.

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
                for module in SAMPLE_FILES[name].modules:
                    kept = without_exam(generated(module))
                    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
            manifest[path.name] = {"generators": sources, "sha256": sha256_file(path)}
            write_json(manifest_path, manifest)
        paths[name] = path
    generated.cache_clear()
    return paths


def _sources_fingerprint() -> str:
    """Hash of everything that the generators are made of: code and tables, and the exams that they leave out."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(__file__).parent.iterdir()), *EXAM_FILES]:
        if path.is_file():
            digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # missing or torn: everything is made again
    return manifest if isinstance(manifest, dict) else {}
