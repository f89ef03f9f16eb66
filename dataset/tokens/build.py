"""One record file to one tensor folder: what the job is, when it is done, and the building.

Records are read, encoded and written as a stream, so memory stays small for a large file. The
folder is built under another name and renamed at the end. So a folder that exists is complete, even
when a build was killed.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from configs.artifacts import fingerprint, sha256_file, write_json
from configs.folders import new_folder
from configs.messages import warn
from configs.paths import display, heldout_beside
from configs.schema import LARGEST_COUNT, UserError
from configs.stage_table import DATA_STEMS, RECIPE_VERSION
from dataset.chat import BOS
from dataset.tensors import (
    FORMAT,
    MANIFEST_FILE,
    VALIDATION_FOLDER,
    Manifest,
    SourceFacts,
    TruncatedFacts,
    ValidationFacts,
    check_contents,
    read_manifest,
)
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.encoding import RecordEncoder
from dataset.tokens.packing import WRITERS
from dataset.tokens.workers import encode_records


@dataclass(frozen=True)
class TensorJob:
    """One record file to be turned into one tensor folder."""

    data: str
    """Documents, conversations or pairs (configs/stage_table.py)."""
    source: Path
    output: Path
    tokenizer: RustBPETokenizer
    max_length: int = 2048
    """Tokens in a row. For pairs: the most tokens that a side may have."""
    num_workers: int = 0
    """Processes that encode; 0: one a core. The tensors are the same with any number."""
    bos_token: str | None = BOS
    """The special token that opens each sequence; None: none."""
    append_eos: bool | None = None
    """Whether <|endoftext|> closes each sequence. It is a target only in documents. None: it closes
    documents, but not conversations, which already end with <|assistant_end|>."""
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
        """Hash of all that the tensors depend on. Jobs with equal hashes write equal files."""
        return fingerprint(
            {
                "format": FORMAT,
                "recipe_version": RECIPE_VERSION["export"],
                "stage": DATA_STEMS[self.data],  # an older name of `data`, so that older tensors stay valid
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
    """The manifest of a record file's tensors in `output`. They are built unless they are current.

    Once they exist, the record file may be deleted.
    Raises: UserError as `current_tensors` and `build_tensors`.
    """
    job = TensorJob(
        data,
        source,
        output,
        tokenizer,
        max_length,
        num_workers,
        bos_token=tokenizer.chat_format.opening(data),
        heldout=heldout_beside(source),
        progress=progress,
    )
    return current_tensors(job) or build_tensors(job)


def current_tensors(job: TensorJob) -> Manifest | None:
    """The manifest of the job's output if it is complete and made by exactly this job, else None.

    If the record file was deleted, its hash is taken from the manifest.
    Raises: UserError when the record file was deleted and the tensors are missing or do not fit.
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
        validation = manifest.validation
        hashes = manifest.source.sha256, validation.sha256 if validation else None
    else:
        hashes = _source_state(job.source)[0], _source_state(job.heldout)[0] if job.heldout else None
    if manifest.fingerprint == job.fingerprint(*hashes):
        return manifest
    if deleted:
        raise UserError(
            f"{display(job.output)}: made with other settings or another tokenizer, and {display(job.source)}, "
            "from which it could be made anew, is gone. Bring it back, or give the settings of before.",
            "设置或分词器变了，而原数据已删除：请找回数据，或用原来的设置",
        )
    return None


# --- building -------------------------------------------------------------------------------------


def build_tensors(job: TensorJob) -> Manifest:
    """Make the tensors of a job. They replace what is in `job.output`.

    Warns on stderr about records that were cut or left out.
    Raises: UserError when a record is bad or no record gives a target. Then the output is
    unchanged.
    """
    with new_folder(job.output, _is_tensor_file) as folder:
        # The held-out part is made first, because the manifest of the whole names its fingerprint.
        validation = None
        if job.heldout is not None:
            held = replace(
                job, source=job.heldout, output=folder / VALIDATION_FOLDER, heldout=None, split=VALIDATION_FOLDER
            )
            part = _write_tensors(held, None)
            validation = ValidationFacts(**asdict(part.source), rows=part.rows, fingerprint=part.fingerprint)
            if part.rows == 0:
                shutil.rmtree(held.output)
        manifest = _write_tensors(replace(job, output=folder), validation)
        if manifest.rows == 0:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.dropped.items())
            raise UserError(
                f"{display(job.source)}: no record to train on ({reasons or 'the file is empty'}). "
                "Give another --input" + (", or a greater --max-length." if manifest.dropped else "."),
                "没有可训练的记录：请换 --input" + ("，或加大 --max-length" if manifest.dropped else ""),
            )
    return manifest


def _write_tensors(job: TensorJob, validation: ValidationFacts | None) -> Manifest:
    """Encode, pack and write one folder, the manifest last.

    Raises: UserError at the first bad record, or when the record file changes while it is read.
    """
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
    manifest = Manifest(
        data=job.data,
        max_length=job.max_length,
        bos_token=job.bos_token,
        append_eos=job.eos,
        split=job.split,
        vocab_size=job.tokenizer.get_vocab_size(),
        pad_id=job.tokenizer.end_of_text_id,
        tokenizer_sha256=job.tokenizer.sha256,
        source=SourceFacts(path=display(job.source), sha256=source_sha256, records=counts["records"]),
        validation=validation,
        rows=writer.num_rows,
        num_tokens=writer.num_tokens,
        num_targets=counts["num_targets"],
        num_bytes=counts["num_bytes"],
        truncated=TruncatedFacts(
            records=counts["truncated"], share=round(counts["truncated"] / max(1, counts["records"]), 6)
        ),
        dropped=dict(sorted(dropped.items())),
        fingerprint=job.fingerprint(source_sha256, validation.sha256 if validation else None),
        files=files,
    )
    write_json(job.output / MANIFEST_FILE, manifest.as_json())
    return manifest


def _source_state(path: Path) -> tuple[str, int, int]:
    """SHA-256, size in bytes and mtime in nanoseconds of a file.

    Raises: UserError when it can't be read.
    """
    try:
        status = path.stat()
        return sha256_file(path), status.st_size, status.st_mtime_ns
    except OSError as error:
        raise UserError(
            f"{display(path)}: can't be read ({error.strerror}). Check the path and permissions.",
            "无法读取：请检查路径和权限",
        ) from error


def _warn(job: TensorJob, counts: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    """Warn of records that were cut, changed or left out: training does not see them whole."""
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


def _is_tensor_file(name: str) -> bool:
    """Whether a file of this name in a tensor folder is one that this module writes."""
    return name in {MANIFEST_FILE, VALIDATION_FOLDER} or name.endswith(".npy") or name.startswith(".")
