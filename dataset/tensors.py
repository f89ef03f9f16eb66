"""Token tensors: made once from a record file, packed into rows, read back by memory map.

A folder holds one .npy file an array and manifest.json, which says what they were made from:

    documents       input_ids, labels, document_ids              (rows, max_length)
    conversations   input_ids, labels, document_ids, loss_mask   (rows, max_length)
    pairs           chosen_input_ids, chosen_labels (tokens,), chosen_offsets (pairs + 1,), and the same for rejected_*

`labels[t]` is `input_ids[t + 1]` where that token is to be learnt, else -100; `document_ids` numbers the documents of a
row from 0, with -1 for padding. A sub-folder `validation/` of the same format is made from held-out records.

Records stream from the file through the processes that encode them into the files: memory stays flat. The folder is
built under another name and moved when whole, so one that exists is complete, whatever was killed.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.artifacts import fingerprint, read_json, sha256_file, write_error, write_json
from configs.messages import warn
from configs.paths import display, heldout_beside
from configs.schema import LARGEST_COUNT, UserError
from configs.stage_table import DATA_STEMS, RECIPE_VERSION, STAGE_TABLE
from dataset.chat import BOS
from dataset.encoding import IGNORE as IGNORE  # part of the format
from dataset.encoding import RecordEncoder, encode_records
from dataset.packing import WRITERS
from dataset.tokenizer import RustBPETokenizer

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Of the folder: raised when its files are laid out otherwise. Where the same records give other tensors,
`RECIPE_VERSION["export"]` is raised."""
MANIFEST_FILE = "manifest.json"
VALIDATION_FOLDER = "validation"
EXPORT_COMMAND = "python scripts/export_embeddings.py"
CHECKED_FILE = ".checked.json"
"""Size and times of each array when its content was last compared with the manifest's checksum."""

Manifest = dict[str, Any]
MANIFEST_PARTS: dict[str, Any] = {
    "max_length": int, "vocab_size": int, "pad_id": int, "tokenizer_sha256": str, "source": dict,
    "validation": dict | None, "rows": int, "num_tokens": int, "fingerprint": str, "files": dict,
}  # fmt: skip
"""What a manifest must hold for its tensors to be trained on, with the types."""
FILE_PARTS: dict[str, type] = {"bytes": int, "sha256": str, "shape": list, "dtype": str}
"""What it must hold of each file."""


# --- reading --------------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> Manifest:
    """What a tensor folder says about itself. Raises: UserError when it has no manifest that this version can read."""
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
    """Documents, conversations or pairs; manifests of before name the first stage that learnt from them."""
    stage = str(manifest.get("stage"))
    return str(manifest.get("data", STAGE_TABLE[stage].data if stage in STAGE_TABLE else ""))


def require_kind(path: Path, manifest: Mapping[str, Any], data: str) -> None:
    """Raises: UserError where the tensors of a folder are of another kind than `data`."""
    found = data_kind(manifest)
    if found != data:
        raise UserError(
            f"{display(path)}: tensors of {found}; this needs {data}. Name another folder with --data_path, or make it: "
            f"{EXPORT_COMMAND} {DATA_STEMS[data]}.",
            "张量的数据类型不对：请用 --data_path 另指定，或运行该命令生成",
        )


def _wrong_types(manifest: Manifest) -> list[str]:
    """The parts of a manifest that are of another type than MiniLLM writes."""
    wrong = [name for name, kind in MANIFEST_PARTS.items() if not isinstance(manifest[name], kind)]
    if wrong:
        return wrong
    parts = [(f"files: {name}", facts, FILE_PARTS) for name, facts in manifest["files"].items()]
    parts.append(("source", manifest["source"], {"sha256": str}))
    if manifest["validation"] is not None:
        parts.append(("validation", manifest["validation"], {"sha256": str, "rows": int, "fingerprint": str}))
    return [name for name, facts, kinds in parts if not _is_of(facts, kinds)]


def _is_of(facts: Any, kinds: dict[str, type]) -> bool:
    return isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in kinds.items())


def open_tensors(path: Path | str) -> dict[str, "torch.Tensor"]:
    """The arrays of a tensor folder as memory-mapped tensors, by name; writing into one never reaches its file.

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
            array = np.load(file, mmap_mode="c", allow_pickle=False)
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
    """Raises: UserError when a byte of the folder is not as it was written.

    Each array is read once. After that its size and times are compared, which takes no longer for large data; a change
    of any byte moves the time of change, which unlike that of the last writing nobody can set.
    """
    _check_sizes(path, manifest)
    stamps = {name: _stamp(path / f"{name}.npy", facts["sha256"]) for name, facts in manifest["files"].items()}
    checked = _read_checked(path)
    for name, facts in manifest["files"].items():
        file = path / f"{name}.npy"
        if checked.get(name) != stamps[name] and sha256_file(file) != facts["sha256"]:
            raise UserError(
                f"{display(file)}: its bytes have changed. {_redo(path, manifest)}", "文件内容变了：请删除后重新导出"
            )
    if checked != stamps:
        with suppress(UserError):  # a folder that can't be written is read again each time
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
    """What changes with a file's content, or with the checksum that it was compared with."""
    status = file.stat()
    return {
        "size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns, "sha256": sha256,
    }  # fmt: skip


def _read_checked(path: Path) -> dict[str, Any]:
    try:
        checked = json.loads((path / CHECKED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return checked if isinstance(checked, dict) else {}


def _redo(path: Path, manifest: Manifest) -> str:
    return f"Delete {display(path)} and rerun: {EXPORT_COMMAND} {DATA_STEMS[data_kind(manifest)]}."


# --- what to build --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorJob:
    """One record file to be turned into one tensor folder."""

    data: str
    """Documents, conversations or pairs (configs/stage_table.py)."""
    source: Path
    output: Path
    tokenizer: RustBPETokenizer
    max_length: int = 2048
    """Tokens in a row; for DPO the most tokens of a pair's side."""
    num_workers: int = 0
    """Processes that encode; 0: one a core. The tensors are the same with any number."""
    bos_token: str | None = BOS
    """The special token that opens each sequence; None: none."""
    append_eos: bool | None = None
    """Whether <|endoftext|> closes each sequence, learnt in documents alone; None: in documents, whose end nothing else
    would mark. A conversation ends with <|assistant_end|>."""
    heldout: Path | None = None
    """Records with `"split": "validation"` in this file become the folder `validation/`."""
    split: str = ""
    """Take only the records whose `split` is this; empty: all of them."""
    progress: bool = True

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise UserError(
                f"--max-length {self.max_length}: must be 2 or more, since one token predicts the next.",
                "长度至少为 2",
            )
        if self.max_length > LARGEST_COUNT:
            raise UserError(f"--max-length {self.max_length}: must be at most {LARGEST_COUNT}.", "长度过大")
        if self.num_workers < 0:
            raise UserError(
                f"--num-workers {self.num_workers}: must be 0 (one a core) or more.", "进程数不能为负；0 为每核一个"
            )
        if self.bos_token is not None and self.bos_token not in self.tokenizer.special_tokens:
            known = ", ".join(self.tokenizer.special_tokens)
            raise UserError(
                f"--bos-token {self.bos_token}: no special token of this tokenizer. Use one of {known}, or none.",
                "分词器没有这个特殊词元：请用所列之一，或 none",
            )

    @property
    def eos(self) -> bool:
        """Whether <|endoftext|> closes each sequence."""
        return self.data == "documents" if self.append_eos is None else self.append_eos

    def fingerprint(self, source_sha256: str, heldout_sha256: str | None) -> str:
        """What the tensors depend on, as one hash; two jobs of equal fingerprints write equal files."""
        return fingerprint(
            {
                "format": FORMAT,
                "recipe_version": RECIPE_VERSION["export"],
                "stage": DATA_STEMS[self.data],  # under its name of before, so that tensors of before stay valid
                "max_length": self.max_length,
                "bos_token": self.bos_token,
                "append_eos": self.eos,
                "split": self.split,
                "tokenizer_sha256": self.tokenizer.sha256,
                "source_sha256": source_sha256,
                "validation_sha256": heldout_sha256,
            }
        )


def ensure_tensors(
    data: str,
    source: Path,
    output: Path,
    tokenizer: RustBPETokenizer,
    *,
    max_length: int,
    num_workers: int = 0,
    progress: bool = True,
) -> Manifest:
    """Tensors of a record file: those in `output` where they fit, else new ones.

    Once they exist the record file may be deleted. Raises: UserError.
    """
    job = TensorJob(
        data, source, output, tokenizer, max_length, num_workers, heldout=heldout_beside(source), progress=progress
    )
    return current_tensors(job) or build_tensors(job)


def current_tensors(job: TensorJob) -> Manifest | None:
    """The manifest of the job's output when it is whole and made by just this job, else None.

    Where the record file was deleted, what it was is taken from the manifest.
    Raises: UserError when there are neither records nor tensors that fit.
    """
    deleted = not job.source.exists()
    if not (job.output / MANIFEST_FILE).exists():
        if deleted:
            raise UserError(
                f"{display(job.source)}: no such file, and {display(job.output)} holds no tensors. Check the path.",
                "既没有数据文件，也没有已导出的张量：请检查路径",
            )
        return None
    try:
        manifest = read_manifest(job.output)
        check_contents(job.output, manifest)
    except UserError:
        if deleted:
            raise
        return None
    if deleted:
        validation = manifest["validation"]
        hashes = manifest["source"]["sha256"], validation["sha256"] if validation else None
    else:
        hashes = _source_state(job.source)[0], _source_state(job.heldout)[0] if job.heldout else None
    if manifest["fingerprint"] == job.fingerprint(*hashes):
        return manifest
    if deleted:
        raise UserError(
            f"{display(job.output)}: made with other settings or another tokenizer, and {display(job.source)}, "
            "from which it could be made anew, is gone. Bring it back, or give the settings of before.",
            "设置或分词器变了，而原数据已删除：请找回数据，或用原来的设置",
        )
    return None


# --- building ------------------------------------------------------------------------------------------------------


def build_tensors(job: TensorJob) -> Manifest:
    """Make the tensors of a job and move them to `job.output`, in the place of what is there.

    Warns on stderr about records that were cut or left out. Raises: UserError; then the output is as it was.
    """
    with _new_folder(job.output) as folder:
        validation = None
        if job.heldout is not None:
            held = replace(
                job, source=job.heldout, output=folder / VALIDATION_FOLDER, heldout=None, split=VALIDATION_FOLDER
            )
            part = _write_tensors(held, None)
            validation = part["source"] | {"rows": part["rows"], "fingerprint": part["fingerprint"]}
            if part["rows"] == 0:
                shutil.rmtree(held.output)
        manifest = _write_tensors(replace(job, output=folder), validation)
        if manifest["rows"] == 0:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest["dropped"].items())
            raise UserError(
                f"{display(job.source)}: no record to train on ({reasons or 'the file is empty'}). "
                "Give another --input" + (", or a greater --max-length." if manifest["dropped"] else "."),
                "没有可训练的记录：请换 --input" + ("，或加大 --max-length" if manifest["dropped"] else ""),
            )
    return manifest


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """An empty folder beside `output`, which takes its place at the end and is removed after an error.

    A lock, which ends with the process that holds it, tells a folder being filled from what a killed run left behind.
    Raises: UserError when another process fills it, when `output` holds other things, or when writing fails.
    """
    output = output.resolve()
    _check_replaceable(output)
    folder = output.with_name(f".{output.name}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, output):
            try:
                for leftover in folder.iterdir():
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                yield folder
                _move_folder(folder, output)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        raise write_error(output, error) from error


def _check_replaceable(output: Path) -> None:
    """Raises: UserError when `output` is no tensor folder, so that a mistyped path costs nobody their files."""
    if not output.exists():
        return
    others = [] if output.is_dir() else [output]
    if output.is_dir():
        known = {MANIFEST_FILE, VALIDATION_FOLDER}
        ours = known | {path.name for path in output.glob("*.npy")}
        others = [path for path in output.iterdir() if path.name not in ours and not path.name.startswith(".")]
    if others:
        raise UserError(
            f"{display(output)}: holds other things ({others[0].name}). Name a folder of its own with --output.",
            "该目录里有别的文件：请用 --output 另指定一个目录",
        )


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises: UserError when another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = folder.exists() and folder.stat().st_ino == os.fstat(descriptor).st_ino  # else: just moved away
        except BlockingIOError:
            mine = False
        except OSError:
            mine = True  # a file system without locks: two at once are the user's to avoid
        if not mine:
            raise UserError(
                f"{display(output)}: another process is making it. Wait until it ends, then rerun.",
                "另一个进程正在生成：请等它结束后再运行",
            )
        yield
    finally:
        os.close(descriptor)


def _move_folder(folder: Path, output: Path) -> None:
    """Put a finished folder in the place of an older one."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    folder.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _write_tensors(job: TensorJob, validation: dict[str, Any] | None) -> Manifest:
    """Encode, pack and write one folder, manifest last."""
    job.output.mkdir(exist_ok=True)
    source_sha256, *state = _source_state(job.source)
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    encoder = RecordEncoder(
        job.data, job.source, job.tokenizer, job.max_length, job.bos_token, append_eos=job.eos, split=job.split
    )
    with (
        WRITERS[job.data](job.output, job.max_length, job.tokenizer) as writer,
        closing(encode_records(encoder, job.num_workers, progress=job.progress)) as stream,
    ):
        for encoded in stream:
            writer.add(encoded.sequences)
            counts.update(encoded.counts)
            dropped.update(encoded.dropped)
        files = writer.finish()
    status = job.source.stat()
    if [status.st_size, status.st_mtime_ns] != state:
        raise UserError(f"{display(job.source)}: changed while it was read. Rerun.", "读取期间文件被改动：请重新运行")
    _warn(job, counts, dropped)
    manifest = {
        "format": FORMAT,
        "data": job.data,
        "max_length": job.max_length,
        "bos_token": job.bos_token,
        "append_eos": job.eos,
        "split": job.split,
        "vocab_size": job.tokenizer.get_vocab_size(),
        "pad_id": job.tokenizer.end_of_text_id,
        "tokenizer_sha256": job.tokenizer.sha256,
        "source": {"path": display(job.source), "sha256": source_sha256, "records": counts["records"]},
        "validation": validation,
        "rows": writer.num_rows,
        "num_tokens": writer.num_tokens,
        "num_targets": counts["num_targets"],
        "num_bytes": counts["num_bytes"],
        "truncated": {
            "records": counts["truncated"],
            "share": round(counts["truncated"] / max(1, counts["records"]), 6),
        },
        "dropped": dict(sorted(dropped.items())),
        "fingerprint": job.fingerprint(source_sha256, validation["sha256"] if validation else None),
        "files": files,
    }
    write_json(job.output / MANIFEST_FILE, manifest)
    return manifest


def _source_state(path: Path) -> tuple[str, int, int]:
    """SHA-256, size and time of change of a record file. Raises: UserError when it can't be read."""
    try:
        status = path.stat()
        return sha256_file(path), status.st_size, status.st_mtime_ns
    except OSError as error:
        raise UserError(
            f"{display(path)}: can't be read ({error.strerror}). Check the path and permissions.",
            "无法读取：请检查路径和权限",
        ) from error


def _warn(job: TensorJob, counts: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    """Say what training will not see."""
    cut = f"are longer than {job.max_length} tokens and were cut there", f"超过 {job.max_length} 个词元，已截断"
    marked = (
        "hold marks of other chat formats (<|im_start|>, <s>), which became line ends",
        "含有其他对话格式的标记，已换成换行",
    )
    lines = [(counts["truncated"], *cut), (counts["marked"], *marked)]
    lines += [(count, f"were left out: {reason}", "未采用") for reason, count in sorted(dropped.items())]
    for count, what, chinese in lines:
        if count:
            told = f"{count:,} of {counts['records']:,} records ({count / counts['records']:.1%}) {what}"
            warn(f"{display(job.source)}: {told}", f"{count:,} 条{chinese}")
