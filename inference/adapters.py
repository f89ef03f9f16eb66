"""Adapters by name or path: found, opened, and merged into the weights of a model."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from configs.paths import OUT_DIR, ROOT, display, env_path, latest_weights
from configs.schema import ModelConfig, UserError
from model.manifest import WeightsManifest
from model.model_lora import (
    FOLDER,
    Adapter,
    adapter_file,
    attach_adapter,
    base_fingerprint,
    merge,
    merged_manifest,
    read_adapter,
)
from model.model_minillm import MiniLLM
from model.peft_export import read_peft


def find_adapter(given: str | Path, weights: Path, model: ModelConfig) -> Path:
    """The file of `out/lora/`, or the folder of peft, that `--lora_name` means.

    A name is looked for in `lora/` beside the weights, then in `OUT_DIR/lora`: `lora_medical` is
    `lora_medical_512.pth` where the weights are 512 wide.
    Args: given: a name or a path. weights: where the model is from. model: its shape.
    Raises: UserError when there is none, with the names that there are.
    """
    folders = [folder / FOLDER for folder in (weights.parent, env_path("OUT_DIR", OUT_DIR))]
    is_name = Path(given).name == str(given)
    named = [folder / adapter_file(str(given), model) for folder in folders] if is_name else []
    candidates = [*named, Path(given), ROOT / given]
    for path in candidates:
        if path.exists():
            return path
    ending = adapter_file("", model)
    names = {path.name.removesuffix(ending) for folder in folders for path in folder.glob(f"*{ending}")}
    known = f"Those for this model: {', '.join(sorted(names))}." if names else "Give the path of one."
    places = ", ".join(dict.fromkeys(display(path) for path in candidates))
    raise UserError(
        f"--lora_name {given}: no such adapter (looked for {places}). {known}",
        "没有这个适配器：请用列出的名称，或给出路径",
    )


def base_of(given: str | Path, out_dir: Path | None, hidden_size: int | None = None) -> Path | None:
    """The weights that an adapter was trained on, beside the folder of adapters.

    So a person who names an adapter need not name them too.
    Args: given: a name or a path. out_dir: without it `OUT_DIR`. hidden_size: which of several
    adapters of this name; without it the newest.
    Returns: None where there are none of the name that the adapter notes.
    """
    folder = (out_dir or env_path("OUT_DIR", OUT_DIR)) / FOLDER
    path = Path(given)
    if path.name == str(given):
        with suppress(UserError):
            path = latest_weights(path.name, folder, hidden_size=hidden_size)
    start = read_adapter(path).manifest.start if path.is_file() else None
    base = path.parent.parent / start.path if start else None
    return base if base and base.exists() else None


def open_adapter(path: Path) -> Adapter:
    """The adapter in a file of ours or in a folder of peft. Raises: UserError."""
    return read_peft(path) if path.is_dir() else read_adapter(path)


def attach_found(model: MiniLLM, manifest: WeightsManifest, given: str | Path, weights: Path) -> Adapter:
    """Put an adapter on a model.

    Args: manifest: how the model was made. given: name or path of the adapter. weights: where the
    model is from.
    Returns: the adapter; what was not known of it (peft) is as for these weights now.
    Raises: UserError when it is missing, damaged, or made for other weights.
    """
    path = find_adapter(given, weights, model.config)
    adapter = open_adapter(path)
    attach_adapter(model, adapter, path, weights)
    made = adapter.manifest if adapter.manifest.stage else merged_manifest(manifest, adapter)
    return replace(adapter, base=base_fingerprint(model), manifest=made)


def merge_adapter(
    model: MiniLLM, manifest: WeightsManifest, given: str | Path, weights: Path
) -> tuple[MiniLLM, WeightsManifest]:
    """Merge an adapter into the float32 weights of a model, where it stands.

    Args, Raises: as `attach_found`. Returns: the model, and how it is made now.
    """
    adapter = attach_found(model, manifest, given, weights)
    merge(model)
    return model, merged_manifest(manifest, adapter)
