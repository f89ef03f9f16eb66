"""Token tensors: the folder that they are stored in, and how it is read by memory map.

A folder holds one .npy file for each array, and manifest.json, which says what they are made from:

    documents       input_ids, labels, document_ids              (rows, max_length)
    conversations   input_ids, labels, document_ids, loss_mask   (rows, max_length)
    pairs           chosen_input_ids, chosen_labels              (tokens,)
                    chosen_offsets                               (pairs + 1,)
                    and the same for rejected_*

`labels[t]` is `input_ids[t + 1]` if that token is a target, else -100. `document_ids` numbers the
documents of a row from 0, and is -1 for padding. The sub-folder `validation/` has the same format
and is made from held-out records. `dataset/tokens/` makes the tensors.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.artifacts import read_json, sha256_file, write_json
from configs.paths import display
from configs.schema import UserError
from configs.stage_table import DATA_STEMS, STAGE_TABLE

if TYPE_CHECKING:
    import torch

IGNORE = -100
"""Label of a position whose next token is no target."""
FORMAT = 1
"""Version of the folder's layout. A change of the layout raises it. A change that gives other
tensors for the same records raises `RECIPE_VERSION["export"]` instead."""
MANIFEST_FILE = "manifest.json"
VALIDATION_FOLDER = "validation"
EXPORT_COMMAND = "python scripts/export_embeddings.py"
CHECKED_FILE = ".checked.json"
"""Holds the size and times that each array had when its checksum was last computed."""

Manifest = dict[str, Any]
MANIFEST_PARTS: dict[str, Any] = {
    "max_length": int, "vocab_size": int, "pad_id": int, "tokenizer_sha256": str, "source": dict,
    "validation": dict | None, "rows": int, "num_tokens": int, "fingerprint": str, "files": dict,
}  # fmt: skip
"""What a manifest must hold, with the types. Without it nobody can train on the tensors."""
FILE_PARTS: dict[str, type] = {"bytes": int, "sha256": str, "shape": list, "dtype": str}
"""What a manifest must hold about each file, with the types."""


def read_manifest(path: Path) -> Manifest:
    """What a tensor folder says about itself.

    Raises: UserError when the manifest is missing, damaged, or made by another version.
    """
    file = path / MANIFEST_FILE
    manifest = read_json(
        file, f"Make the tensors: {EXPORT_COMMAND} STAGE.", f"张量缺失或损坏：请运行 {EXPORT_COMMAND} 阶段名"
    )
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or data_kind(manifest) not in DATA_STEMS:
        raise UserError(
            f"{display(file)}: made by another version. Delete the folder and rerun: {EXPORT_COMMAND} STAGE.",
            "由其他版本生成：请删除该目录后重新导出",
        )
    if missing := [name for name in MANIFEST_PARTS if name not in manifest]:
        raise UserError(
            f"{display(file)}: has no {missing[0]!r}. {_redo(path, manifest)}", "清单不完整：请删除后重新导出"
        )
    if wrong := _wrong_types(manifest):
        raise UserError(
            f"{display(file)}: {wrong[0]!r} is not as it was written. {_redo(path, manifest)}",
            "清单被改动：请删除后重新导出",
        )
    return manifest


def data_kind(manifest: Mapping[str, Any]) -> str:
    """Documents, conversations or pairs; "" when the manifest does not say it.

    An older manifest has no `data`: it names the stage that trains on the tensors.
    """
    stage = str(manifest.get("stage"))
    return str(manifest.get("data", STAGE_TABLE[stage].data if stage in STAGE_TABLE else ""))


def require_kind(path: Path, manifest: Mapping[str, Any], data: str) -> None:
    """Raises: UserError when the tensors of a folder are of another kind than `data`."""
    found = data_kind(manifest)
    if found != data:
        raise UserError(
            f"{display(path)}: tensors of {found}; this needs {data}. Name another folder with --data_path, or make it: "
            f"{EXPORT_COMMAND} {DATA_STEMS[data]}.",
            "张量的数据类型不对：请用 --data_path 另指定，或运行该命令生成",
        )


def _wrong_types(manifest: Manifest) -> list[str]:
    """The parts of a manifest that do not have the type that MiniLLM writes."""
    wrong = [name for name, kind in MANIFEST_PARTS.items() if not isinstance(manifest[name], kind)]
    if wrong:
        return wrong
    parts = [(f"files: {name}", facts, FILE_PARTS) for name, facts in manifest["files"].items()]
    parts.append(("source", manifest["source"], {"sha256": str}))
    if manifest["validation"] is not None:
        parts.append(("validation", manifest["validation"], {"sha256": str, "rows": int, "fingerprint": str}))
    return [name for name, facts, kinds in parts if not _is_of(facts, kinds)]


def _is_of(facts: Any, kinds: dict[str, type]) -> bool:
    """Whether `facts` is a dict that has all these names, with values of these types."""
    return isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in kinds.items())


def open_tensors(path: Path | str) -> dict[str, "torch.Tensor"]:
    """The arrays of a tensor folder as memory-mapped tensors, by name.

    The files never change, even when a program writes into a tensor.
    Raises: UserError when a file is missing, cut short, or not what the manifest says.
    """
    import torch  # here, so that encoding needs no torch

    path = Path(path)
    manifest = read_manifest(path)
    _check_sizes(path, manifest)
    tensors = {}
    for name, facts in manifest["files"].items():
        file = path / f"{name}.npy"
        try:
            array = np.load(file, mmap_mode="c", allow_pickle=False)  # c: copy on write
        except (OSError, ValueError) as error:
            raise UserError(
                f"{display(file)}: damaged ({error}). {_redo(path, manifest)}", "文件损坏：请删除后重新导出"
            ) from None
        if list(array.shape) != facts["shape"] or str(array.dtype) != facts["dtype"]:
            raise UserError(
                f"{display(file)}: not the array that the manifest describes. {_redo(path, manifest)}",
                "数组与清单不符：请删除后重新导出",
            )
        tensors[name] = torch.from_numpy(array)
    return tensors


def _check_sizes(path: Path, manifest: Manifest) -> None:
    """Raises: UserError when a file is missing or has another size than the manifest says."""
    for name, facts in manifest["files"].items():
        file = path / f"{name}.npy"
        size = file.stat().st_size if file.is_file() else None
        if size != facts["bytes"]:
            found = "missing" if size is None else f"{size:,} bytes instead of {facts['bytes']:,}"
            raise UserError(
                f"{display(file)}: {found}. {_redo(path, manifest)}", "文件缺失或大小不对：请删除后重新导出"
            )


def check_contents(path: Path, manifest: Manifest) -> None:
    """Check that each byte of the folder is as it was written, that of `validation/` included.

    The first check reads each array whole. Later ones compare its size and times, which is quick
    for large data too. Any change of a byte also changes the file's ctime. A program can set the
    mtime back, but not the ctime.
    Raises: UserError when anything has changed.
    """
    _check_sizes(path, manifest)
    # An array is read only if its stamp is not the one of the last check.
    stamps = {name: _stamp(path / f"{name}.npy", facts["sha256"]) for name, facts in manifest["files"].items()}
    checked = _read_checked(path)
    for name, facts in manifest["files"].items():
        file = path / f"{name}.npy"
        if checked.get(name) != stamps[name] and sha256_file(file) != facts["sha256"]:
            raise UserError(
                f"{display(file)}: its bytes have changed. {_redo(path, manifest)}", "文件内容变了：请删除后重新导出"
            )
    if checked != stamps:
        with suppress(UserError):  # a read-only folder can't store them, so it is read whole each time
            write_json(path / CHECKED_FILE, stamps)
    if manifest["validation"] is not None and manifest["validation"]["rows"]:
        folder = path / VALIDATION_FOLDER
        validation = read_manifest(folder)
        if validation["fingerprint"] != manifest["validation"]["fingerprint"]:
            raise UserError(
                f"{display(folder)}: belongs to other tensors. {_redo(path, manifest)}",
                "验证集与训练张量不配套：请删除后重新导出",
            )
        check_contents(folder, validation)


def _stamp(file: Path, sha256: str) -> dict[str, Any]:
    """Size and times of a file, and the checksum that its content had at that time."""
    status = file.stat()
    return {
        "size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns, "sha256": sha256,
    }  # fmt: skip


def _read_checked(path: Path) -> dict[str, Any]:
    """The stamps of the last check; empty when there are none."""
    try:
        checked = json.loads((path / CHECKED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return checked if isinstance(checked, dict) else {}


def _redo(path: Path, manifest: Manifest) -> str:
    """The remedy for a damaged folder, as the last sentence of an error."""
    return f"Delete {display(path)} and rerun: {EXPORT_COMMAND} {DATA_STEMS[data_kind(manifest)]}."
