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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from configs.artifacts import optional_part, read_json, sha256_file, write_json
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

Part = TypeVar("Part")


# --- what a folder says about itself --------------------------------------------------------------


class ManifestError(Exception):
    """A manifest lacks a part, or a part has another type. The text says which."""

    def __init__(self, text: str, chinese: str) -> None:
        super().__init__(text)
        self.chinese = chinese


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One array, as it was written."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    """Size of the .npy file."""
    sha256: str
    """Hash of the .npy file."""

    @classmethod
    def from_json(cls, content: object) -> "FileFacts":
        """Raises: ManifestError."""
        return cls(
            dtype=_needed(content, "dtype", str),
            shape=tuple(_needed(content, "shape", list)),
            bytes=_needed(content, "bytes", int),
            sha256=_needed(content, "sha256", str),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """A record file that tensors were made from."""

    path: str = ""
    records: int = 0
    sha256: str

    @classmethod
    def from_json(cls, content: object) -> "SourceFacts":
        """Raises: ManifestError."""
        return cls(
            path=optional_part(content, "path", ""),
            records=optional_part(content, "records", 0),
            sha256=_needed(content, "sha256", str),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationFacts:
    """The file of held-out records, and what `validation/` holds of it."""

    path: str = ""
    records: int = 0
    sha256: str
    rows: int
    """Rows or pairs in `validation/`. 0: there is no such folder."""
    fingerprint: str
    """The fingerprint in the manifest of `validation/`."""

    @classmethod
    def from_json(cls, content: object) -> "ValidationFacts":
        """Raises: ManifestError."""
        return cls(
            **asdict(SourceFacts.from_json(content)),
            rows=_needed(content, "rows", int),
            fingerprint=_needed(content, "fingerprint", str),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedFacts:
    """Records that were longer than `max_length` and were cut there."""

    records: int = 0
    share: float = 0.0
    """Share of all records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a tensor folder says about itself (docs/formats.md).

    Nobody can train without the parts that have no default, so they must be there when a manifest
    is read.
    """

    data: str
    """Documents, conversations or pairs."""
    max_length: int
    """Tokens of a row. For pairs: the most tokens that a side may have."""
    bos_token: str | None = None
    """The special token that opens each sequence."""
    append_eos: bool = False
    """Whether <|endoftext|> closes each sequence."""
    split: str = ""
    """Only records whose `split` is this were taken; empty: all of them."""
    vocab_size: int
    pad_id: int
    tokenizer_sha256: str
    source: SourceFacts
    validation: ValidationFacts | None
    """None: no file of held-out records was given."""
    rows: int
    """Rows, or pairs."""
    num_tokens: int
    """Tokens without padding."""
    num_targets: int = 0
    """Tokens that count in the loss."""
    num_bytes: int = 0
    """UTF-8 bytes of the text that is learnt."""
    truncated: TruncatedFacts = TruncatedFacts()
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> how many records were left out for it."""
    fingerprint: str
    """Hash of all that the tensors depend on."""
    files: Mapping[str, FileFacts]
    """Name of an array -> what is in its file."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Manifest":
        """The manifest that a JSON object holds. Raises: ManifestError."""
        cut: dict[str, Any] = optional_part(content, "truncated", {})
        return cls(
            data=_data_kind(content),
            max_length=_needed(content, "max_length", int),
            bos_token=optional_part(content, "bos_token", "") or None,
            append_eos=optional_part(content, "append_eos", False),
            split=optional_part(content, "split", ""),
            vocab_size=_needed(content, "vocab_size", int),
            pad_id=_needed(content, "pad_id", int),
            tokenizer_sha256=_needed(content, "tokenizer_sha256", str),
            source=_facts("source", SourceFacts.from_json, _needed(content, "source", dict)),
            validation=_validation(content),
            rows=_needed(content, "rows", int),
            num_tokens=_needed(content, "num_tokens", int),
            num_targets=optional_part(content, "num_targets", 0),
            num_bytes=optional_part(content, "num_bytes", 0),
            truncated=TruncatedFacts(records=optional_part(cut, "records", 0), share=optional_part(cut, "share", 0.0)),
            dropped=optional_part(content, "dropped", {}),
            fingerprint=_needed(content, "fingerprint", str),
            files={
                name: _facts(f"files: {name}", FileFacts.from_json, facts)
                for name, facts in _needed(content, "files", dict).items()
            },
        )

    def as_json(self) -> dict[str, Any]:
        """The JSON object that manifest.json holds."""
        return {"format": FORMAT} | asdict(self)


def read_manifest(path: Path) -> Manifest:
    """What a tensor folder says about itself.

    Raises: UserError when the manifest is missing, damaged, or made by another version.
    """
    file = path / MANIFEST_FILE
    content = read_json(
        file, f"Make the tensors: {EXPORT_COMMAND} STAGE.", f"张量缺失或损坏：请运行 {EXPORT_COMMAND} 阶段名"
    )
    if not isinstance(content, dict) or content.get("format") != FORMAT or _data_kind(content) not in DATA_STEMS:
        raise UserError(
            f"{display(file)}: made by another version. Delete the folder and rerun: {EXPORT_COMMAND} STAGE.",
            "由其他版本生成：请删除该目录后重新导出",
        )
    try:
        return Manifest.from_json(content)
    except ManifestError as error:
        raise UserError(
            f"{display(file)}: {error}. {_redo(path, _data_kind(content))}", f"{error.chinese}：请删除后重新导出"
        ) from None


def _data_kind(content: Mapping[str, Any]) -> str:
    """Documents, conversations or pairs; "" when the manifest does not say it.

    An older manifest has no `data`: it names the stage that trains on the tensors.
    """
    stage = str(content.get("stage"))
    return str(content.get("data", STAGE_TABLE[stage].data if stage in STAGE_TABLE else ""))


def _validation(content: Mapping[str, Any]) -> ValidationFacts | None:
    """The part `validation`, which may be null. Raises: ManifestError."""
    facts = _needed(content, "validation", object)
    return None if facts is None else _facts("validation", ValidationFacts.from_json, facts)


def _facts(name: str, read: Callable[[object], Part], content: object) -> Part:
    """What `read` makes of a part. Raises: ManifestError that names the whole part."""
    try:
        return read(content)
    except ManifestError:
        raise _of_another_type(name) from None


def _needed(content: object, name: str, kind: type[Part]) -> Part:
    """A value of a JSON object. Raises: ManifestError when it is missing or of another type."""
    if not isinstance(content, dict) or name not in content:
        raise ManifestError(f"has no {name!r}", "清单不完整")
    value = content[name]
    if not isinstance(value, kind):
        raise _of_another_type(name)
    return value


def _of_another_type(name: str) -> ManifestError:
    return ManifestError(f"{name!r} is not as it was written", "清单被改动")


# --- the folder -----------------------------------------------------------------------------------


def require_kind(path: Path, manifest: Manifest, data: str) -> None:
    """Raises: UserError when the tensors of a folder are of another kind than `data`."""
    if manifest.data != data:
        raise UserError(
            f"{display(path)}: tensors of {manifest.data}; this needs {data}. Name another folder with --data_path, or "
            f"make it: {EXPORT_COMMAND} {DATA_STEMS[data]}.",
            "张量的数据类型不对：请用 --data_path 另指定，或运行该命令生成",
        )


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
    for name, facts in manifest.files.items():
        file = path / f"{name}.npy"
        try:
            array = np.load(file, mmap_mode="c", allow_pickle=False)  # c: copy on write
        except (OSError, ValueError) as error:
            raise UserError(
                f"{display(file)}: damaged ({error}). {_redo(path, manifest.data)}", "文件损坏：请删除后重新导出"
            ) from None
        if array.shape != facts.shape or str(array.dtype) != facts.dtype:
            raise UserError(
                f"{display(file)}: not the array that the manifest describes. {_redo(path, manifest.data)}",
                "数组与清单不符：请删除后重新导出",
            )
        tensors[name] = torch.from_numpy(array)
    return tensors


def _check_sizes(path: Path, manifest: Manifest) -> None:
    """Raises: UserError when a file is missing or has another size than the manifest says."""
    for name, facts in manifest.files.items():
        file = path / f"{name}.npy"
        size = file.stat().st_size if file.is_file() else None
        if size != facts.bytes:
            found = "missing" if size is None else f"{size:,} bytes instead of {facts.bytes:,}"
            raise UserError(
                f"{display(file)}: {found}. {_redo(path, manifest.data)}", "文件缺失或大小不对：请删除后重新导出"
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
    stamps = {name: _stamp(path / f"{name}.npy", facts.sha256) for name, facts in manifest.files.items()}
    checked = _read_checked(path)
    for name, facts in manifest.files.items():
        file = path / f"{name}.npy"
        if checked.get(name) != stamps[name] and sha256_file(file) != facts.sha256:
            raise UserError(
                f"{display(file)}: its bytes have changed. {_redo(path, manifest.data)}",
                "文件内容变了：请删除后重新导出",
            )
    if checked != stamps:
        with suppress(UserError):  # a read-only folder can't store them, so it is read whole each time
            write_json(path / CHECKED_FILE, stamps)
    if manifest.validation is not None and manifest.validation.rows:
        folder = path / VALIDATION_FOLDER
        validation = read_manifest(folder)
        if validation.fingerprint != manifest.validation.fingerprint:
            raise UserError(
                f"{display(folder)}: belongs to other tensors. {_redo(path, manifest.data)}",
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


def _redo(path: Path, data: str) -> str:
    """The remedy for a damaged folder, as the last sentence of an error."""
    return f"Delete {display(path)} and rerun: {EXPORT_COMMAND} {DATA_STEMS[data]}."
