"""The sample data that ships with the project: a generator a category, and the files made from them."""

import hashlib
import importlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from configs.artifacts import atomic_write, sha256_file, write_json

GENERATORS = {
    "general": ("dialogue", "dialogue_series", "dialogue_memory", "dialogue_flow", "medley"),
    "knowledge": ("knowledge",),
    "math": ("arithmetic",),
    "preference": ("preference",),
    "corpus": ("prose",),
}
"""Category -> modules of this package. Identity lies ready in `dataset/identity_cn_sample.jsonl`."""
MANIFEST = "samples_manifest.json"


def write_samples(directory: Path, categories: Collection[str] = tuple(GENERATORS)) -> dict[str, Path]:
    """Write `{category}_cn_sample.jsonl` for each category asked for; files made by the same generators are kept.

    Returns: category -> file.
    """
    sources = _sources_fingerprint()
    manifest_path = directory / MANIFEST
    manifest = _read_manifest(manifest_path)
    paths = {}
    for category in (name for name in GENERATORS if name in categories):
        path = directory / f"{category}_cn_sample.jsonl"
        made = manifest.get(path.name, {})
        if made.get("generators") != sources or not path.is_file() or made.get("sha256") != sha256_file(path):
            generators = [importlib.import_module(f"dataset.samples.{name}") for name in GENERATORS[category]]
            with atomic_write(path) as file:
                for generator in generators:
                    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in generator.records())
            manifest[path.name] = {"generators": sources, "sha256": sha256_file(path)}
            write_json(manifest_path, manifest)
        paths[category] = path
    return paths


def _sources_fingerprint() -> str:
    """Hash of everything that the generators are made of: code and tables."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.is_file():
            digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # missing or torn: everything is made again
    return manifest if isinstance(manifest, dict) else {}
