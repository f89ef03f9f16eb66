"""Token tensors: made once from a record file, packed into rows, read back by memory map.

A folder holds one .npy file an array and manifest.json, which says what they were made from:

    pretrain  input_ids, labels, document_ids              (rows, max_length)
    sft       input_ids, labels, document_ids, loss_mask   (rows, max_length)
    dpo       chosen_input_ids, chosen_labels (tokens,), chosen_offsets (pairs + 1,), and the same for rejected_*

`labels[t]` is `input_ids[t + 1]` where that token is to be learnt, else -100; `document_ids` numbers the documents of a
row from 0, with -1 for padding. A sub-folder `validation/` of the same format is made from held-out records.

Records stream from the file through the processes that encode them into the files: memory stays flat. The folder is
built under another name and moved when whole, so one that exists is complete, whatever was killed.

Shapes: T tokens, S sequences (documents, conversations, or answers), R rows, L max_length.
"""

import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from configs.artifacts import fingerprint, read_json, sha256_file, write_error, write_json
from configs.paths import ROOT, display
from configs.schema import STAGES, UserError
from dataset.chat import BOS, Message
from dataset.records import (
    BadRecord,
    ChatRecord,
    Item,
    PreferenceRecord,
    decode_item,
    parse_record,
    read_items,
)
from dataset.tokenizer import RustBPETokenizer

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Raised when the same records would give other tensors, so that old folders are made again."""
IGNORE = -100
"""Label of a position whose next token is not learnt."""
MANIFEST_FILE = "manifest.json"
VALIDATION_FOLDER = "validation"
BATCH_BYTES = 1 << 20
"""Bytes of records that go to a worker at one time."""
BYTES_PER_WORKER = 4 << 20
"""A smaller file is encoded before a second process has even started."""
ROW_BLOCK_TOKENS = 1 << 20
"""Tokens of rows that are put together at one time."""
FULL_SHARE = 0.98
"""A row filled to this share is written; an emptier one waits for short conversations."""

Manifest = dict[str, Any]
Batch = list[tuple[int, Item]]
"""Lines of a file with their numbers."""
Sequenced = tuple[np.ndarray, np.ndarray]
"""Ids of a sequence (T,), and which of them are learnt, bool (T,); never the first, which nothing predicts."""


# --- reading --------------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> Manifest:
    """What a tensor folder says about itself. Raises: UserError when it has no manifest that this version can read."""
    file = path / MANIFEST_FILE
    manifest = read_json(file, "Make the tensors with scripts/export_embeddings.py.")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("stage") not in STAGES:
        raise UserError(f"{display(file)}: made by another version. Delete the folder and rerun export_embeddings.py.")
    return manifest


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
            raise UserError(f"{display(file)}: damaged ({error}). {_redo(path, manifest)}") from None
        if list(array.shape) != facts["shape"] or str(array.dtype) != facts["dtype"]:
            raise UserError(f"{display(file)}: not the array that the manifest describes. {_redo(path, manifest)}")
        tensors[name] = torch.from_numpy(array)
    return tensors


def _check_sizes(path: Path, manifest: Manifest) -> None:
    """Raises: UserError when a file is missing or has another size than the manifest says."""
    for name, facts in manifest["files"].items():
        file = path / f"{name}.npy"
        size = file.stat().st_size if file.is_file() else None
        if size != facts["bytes"]:
            found = "missing" if size is None else f"{size:,} bytes instead of {facts['bytes']:,}"
            raise UserError(f"{display(file)}: {found}. {_redo(path, manifest)}")


def _check_contents(path: Path, manifest: Manifest) -> None:
    """Raises: UserError when a byte of the folder is not as it was written."""
    _check_sizes(path, manifest)
    for name, facts in manifest["files"].items():
        file = path / f"{name}.npy"
        if sha256_file(file) != facts["sha256"]:
            raise UserError(f"{display(file)}: its bytes have changed. {_redo(path, manifest)}")
    if manifest["validation"] is not None and manifest["validation"]["rows"]:
        folder = path / VALIDATION_FOLDER
        validation = read_manifest(folder)
        if validation["fingerprint"] != manifest["validation"]["fingerprint"]:
            raise UserError(f"{display(folder)}: belongs to other tensors. {_redo(path, manifest)}")
        _check_contents(folder, validation)


def _redo(path: Path, manifest: Manifest) -> str:
    return f"Delete {display(path)} and rerun export_embeddings.py {manifest['stage']}."


# --- what to build --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorJob:
    """One record file to be turned into one tensor folder."""

    stage: str
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
            raise UserError(f"--max-length {self.max_length}: must be 2 or more, since one token predicts the next.")
        if self.num_workers < 0:
            raise UserError(f"--num-workers {self.num_workers}: must be 0 (one a core) or more.")
        if self.bos_token is not None and self.bos_token not in self.tokenizer.special_tokens:
            known = ", ".join(self.tokenizer.special_tokens)
            raise UserError(
                f"--bos-token {self.bos_token}: no special token of this tokenizer. Use one of {known}, or none."
            )

    @property
    def eos(self) -> bool:
        """Whether <|endoftext|> closes each sequence."""
        return self.stage == "pretrain" if self.append_eos is None else self.append_eos

    def fingerprint(self, source_sha256: str, heldout_sha256: str | None) -> str:
        """What the tensors depend on, as one hash; two jobs of equal fingerprints write equal files."""
        return fingerprint(
            {
                "format": FORMAT,
                "stage": self.stage,
                "max_length": self.max_length,
                "bos_token": self.bos_token,
                "append_eos": self.eos,
                "split": self.split,
                "tokenizer_sha256": self.tokenizer.sha256,
                "source_sha256": source_sha256,
                "validation_sha256": heldout_sha256,
            }
        )


def heldout_beside(source: Path) -> Path | None:
    """`pretrain_chinese_heldout.jsonl` beside `pretrain_chinese.jsonl`, where there is one."""
    name, dot, suffix = source.name.partition(".")
    path = source.with_name(f"{name}_heldout{dot}{suffix}")
    return path if path.is_file() else None


def ensure_tensors(
    stage: str,
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
        stage, source, output, tokenizer, max_length, num_workers, heldout=heldout_beside(source), progress=progress
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
                f"{display(job.source)}: no such file, and {display(job.output)} holds no tensors. Check the path."
            )
        return None
    try:
        manifest = read_manifest(job.output)
        _check_contents(job.output, manifest)
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
            "from which it could be made anew, is gone. Bring it back, or give the settings of before."
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
                "Give another --input" + (", or a greater --max-length." if manifest["dropped"] else ".")
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
            f"{display(output)}: holds other things ({others[0].name}). Name a folder of its own with --output."
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
            raise UserError(f"{display(output)}: another process is making it. Wait until it ends, then rerun.")
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
    with WRITERS[job.stage](job) as writer, closing(_encoded(job)) as stream:
        for encoded in stream:
            writer.add(encoded)
            counts.update(encoded.counts)
            dropped.update(encoded.dropped)
        files = writer.finish()
    status = job.source.stat()
    if [status.st_size, status.st_mtime_ns] != state:
        raise UserError(f"{display(job.source)}: changed while it was read. Rerun.")
    _warn(job, counts, dropped)
    manifest = {
        "format": FORMAT,
        "stage": job.stage,
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
            f"{display(path)}: can't be read ({error.strerror}). Check the path and permissions."
        ) from error


def _warn(job: TensorJob, counts: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    """Say what training will not see."""
    lines = []
    if counts["truncated"]:
        lines.append((counts["truncated"], f"are longer than {job.max_length} tokens and were cut there"))
    lines += [(count, f"were left out: {reason}") for reason, count in sorted(dropped.items())]
    for count, what in lines:
        share = count / counts["records"]
        print(
            f"warning: {display(job.source)}: {count:,} of {counts['records']:,} records ({share:.1%}) {what}",
            file=sys.stderr,
        )


# --- records to token ids ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded:
    """The sequences of a batch of records, end to end: documents, conversations, or chosen and rejected by turns."""

    ids: np.ndarray
    """(T,)"""
    labels: np.ndarray
    """(T,), the id that follows where it is learnt, else IGNORE."""
    lengths: np.ndarray
    """(S,)"""
    counts: Mapping[str, int]
    """records, truncated (records), num_targets, num_bytes (UTF-8 bytes of the targets; special tokens have none)."""
    dropped: Mapping[str, int]
    """Reason -> records that gave no sequence."""
    error: str = ""
    """Set when a record was bad; what stands before it in the batch is not to be used either."""


class Dropped(Exception):
    """A record that gives nothing to learn; the message is the reason, by which such records are counted."""


@dataclass(frozen=True)
class RecordEncoder:
    """Turns records of one stage into token ids and labels. Plain data, so that it can be sent to another process."""

    stage: str
    source: str
    max_length: int
    bos_token: str | None
    append_eos: bool
    split: str
    pattern: str
    mergeable_ranks: Mapping[bytes, int]
    special_tokens: Mapping[str, int]

    @classmethod
    def of(cls, job: TensorJob) -> "RecordEncoder":
        """The encoder of a job."""
        return cls(
            stage=job.stage,
            source=display(job.source),
            max_length=job.max_length,
            bos_token=job.bos_token,
            append_eos=job.eos,
            split=job.split,
            pattern=job.tokenizer.pattern,
            mergeable_ranks=job.tokenizer.mergeable_ranks,
            special_tokens=job.tokenizer.special_tokens,
        )

    @cached_property
    def tokenizer(self) -> RustBPETokenizer:
        """The job's tokenizer, made again in this process."""
        return RustBPETokenizer(self.pattern, self.mergeable_ranks, self.special_tokens)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each token, (vocabulary,); 0 for special tokens."""
        sizes = np.zeros(self.tokenizer.get_vocab_size(), np.int64)
        for token, token_id in self.mergeable_ranks.items():
            sizes[token_id] = len(token)
        return sizes

    def encode(self, batch: Batch) -> Encoded:
        """The sequences of a batch."""
        kept: list[Sequenced] = []
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for number, item in batch:
            try:
                fields = decode_item(item, {})
                if self.split and fields.get("split") != self.split:
                    continue
                counts["records"] += 1
                sequences, truncated = self._sequences(fields)
            except Dropped as reason:
                dropped[str(reason)] += 1
            except (BadRecord, UserError) as problem:
                error = f"{self.source}:{number}: {str(problem).rstrip('.')}. Mend or remove that line."
                return Encoded(self._no_ids, self._no_ids, np.empty(0, np.int64), {}, {}, error)
            else:
                kept += sequences
                counts["truncated"] += truncated
        ids = np.concatenate([self._no_ids, *(ids for ids, _ in kept)])
        learnt = np.concatenate([np.empty(0, np.bool_), *(learnt for _, learnt in kept)])
        labels = np.full_like(ids, IGNORE)
        np.copyto(labels[:-1], ids[1:], where=learnt[1:])  # a sequence's first token is not learnt: no label crosses
        counts["num_targets"] = int(np.count_nonzero(learnt))
        counts["num_bytes"] = int(self.token_bytes[ids[learnt]].sum())
        return Encoded(ids, labels, np.array([len(ids) for ids, _ in kept], np.int64), counts, dropped)

    @cached_property
    def _no_ids(self) -> np.ndarray:
        return np.empty(0, token_dtype(self.tokenizer))

    def _sequences(self, fields: Mapping[str, Any]) -> tuple[list[Sequenced], bool]:
        """Ids of a record and which of them are learnt, and whether anything was cut off."""
        if self.stage == "pretrain":
            return [self._document(fields)], False
        record = parse_record(fields)
        if self.stage == "sft":
            if not isinstance(record, ChatRecord):
                raise BadRecord("no conversation")
            whole = [self._conversation(record.messages)]
        else:
            if not isinstance(record, PreferenceRecord):
                raise BadRecord("no preference pair")
            whole = self._pair(record)
        cut = [(ids[: self.max_length], learnt[: self.max_length]) for ids, learnt in whole]
        if not all(learnt.any() for _, learnt in cut):
            raise Dropped(f"no answer within {self.max_length} tokens")
        if self.stage == "dpo" and np.array_equal(cut[0][0], cut[1][0]):
            raise Dropped(f"both answers equal within {self.max_length} tokens")
        return cut, any(len(ids) > self.max_length for ids, _ in whole)

    def _document(self, fields: Mapping[str, Any]) -> Sequenced:
        """A text; all of it is learnt, and that it ends."""
        text = fields.get("text")
        if not isinstance(text, str) or not text.strip():
            record = parse_record(fields)
            if isinstance(record, PreferenceRecord):
                raise BadRecord("no text")
            text = record.plain_text()
        ids = self.tokenizer.encode(text)
        if self.bos_token is not None:
            ids.insert(0, self.tokenizer.encode_special(self.bos_token))
        if self.append_eos:
            ids.append(self.tokenizer.end_of_text_id)
        return np.array(ids, self._no_ids.dtype), np.arange(len(ids)) > 0

    def _conversation(self, messages: Sequence[Message]) -> Sequenced:
        """A conversation; every assistant turn is learnt, its end too, nothing else."""
        ids, mask = self.tokenizer.render_conversation(messages)
        if self.bos_token is None:
            ids, mask = ids[1:], mask[1:]
        else:
            ids[0] = self.tokenizer.encode_special(self.bos_token)
        if self.append_eos:
            ids, mask = [*ids, self.tokenizer.end_of_text_id], [*mask, 0]
        return np.array(ids, self._no_ids.dtype), np.array(mask, np.bool_)

    def _pair(self, record: PreferenceRecord) -> list[Sequenced]:
        """Both sides of a pair; the last answer alone is learnt, since what stands before it is the same."""
        sides = []
        prompts = []
        for messages in (record.chosen, record.rejected):
            ids, learnt = self._conversation(messages)
            prompt, _ = self._conversation(messages[:-1])
            length = len(prompt) - self.append_eos
            learnt[:length] = False
            sides.append((ids, learnt))
            prompts.append(ids[:length])
        if not np.array_equal(prompts[0], prompts[1]):
            raise BadRecord("chosen and rejected answer different questions")
        return sides


def token_dtype(tokenizer: RustBPETokenizer) -> np.dtype:
    """The smallest type that holds all ids and IGNORE."""
    return np.dtype(np.int16 if tokenizer.get_vocab_size() <= np.iinfo(np.int16).max else np.int32)


# --- several processes ------------------------------------------------------------------------------------------------


def _encoded(job: TensorJob) -> Generator[Encoded, None, None]:
    """The records of a job, encoded, in the order of the file whatever the number of workers.

    Raises: UserError at the first bad record of the file.
    """
    encoder = RecordEncoder.of(job)
    num_bytes = job.source.stat().st_size
    num_workers = min(job.num_workers or _num_cores(), -(-num_bytes // BYTES_PER_WORKER))
    label = f"{job.stage} tokens" + (f" ({job.split})" if job.split else "")
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc=label, disable=not job.progress) as progress:
        batches = _batches(job.source, progress)
        stream = map(encoder.encode, batches) if num_workers <= 1 else _in_workers(encoder, batches, num_workers)
        for encoded in stream:
            if encoded.error:
                raise UserError(encoded.error)
            yield encoded


def _num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batches(source: Path, progress: "tqdm[Any]") -> Iterator[Batch]:
    """The lines of a file with their numbers, about BATCH_BYTES at one time."""
    batch: Batch = []
    size = 0
    for number, item in read_items(source, lambda block: progress.update(len(block))):
        batch.append((number, item))
        size += len(item) if isinstance(item, bytes) else BATCH_BYTES // 1024  # a CSV row or a line that can't be read
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_workers(encoder: RecordEncoder, batches: Iterable[Batch], num_workers: int) -> Iterator[Encoded]:
    """Encode batches in several processes, in order. At most two batches a worker are under way at any time."""
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(num_workers))  # each waits for one process at a time
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(num_workers):
            idle.put(stack.enter_context(_Worker(encoder)))

        def encode(batch: Batch) -> Encoded:
            worker = idle.get()
            try:
                return worker.encode(batch)
            finally:
                idle.put(worker)

        pending: deque[Future[Encoded]] = deque()
        for batch in batches:
            pending.append(threads.submit(encode, batch))
            if len(pending) >= 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Worker:
    """A process that encodes batches.

    A plain subprocess, because those of `multiprocessing` import the program that started them, and a trainer's torch
    takes seconds and hundreds of megabytes. It ends when this process does, since its standard input then ends.
    """

    def __init__(self, encoder: RecordEncoder) -> None:
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from dataset.tensors import serve_batches; serve_batches()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends its workers
        )
        self._send(encoder)

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # it holds nothing that could be lost
        with suppress(OSError):
            self.process.__exit__(None, None, None)

    def encode(self, batch: Batch) -> Encoded:
        """Encode a batch there. Raises: UserError when the process has died."""
        self._send(batch)
        assert self.process.stdout is not None
        try:
            encoded: Encoded = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._died() from None
        return encoded

    def _send(self, value: object) -> None:
        assert self.process.stdin is not None
        try:
            pickle.dump(value, self.process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self.process.stdin.flush()
        except OSError:
            raise self._died() from None

    def _died(self) -> UserError:
        code = self.process.wait()
        return UserError(
            f"a process that encodes text ended (exit code {code}), often for lack of memory. "
            "Rerun with a smaller --num-workers."
        )


def serve_batches() -> None:
    """What a worker does: read an encoder and batches from standard input, write what it makes of them."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a word when nobody listens any more
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print can't mix with the answers
    with suppress(EOFError):
        encoder: RecordEncoder = pickle.load(sys.stdin.buffer)
        while True:
            pickle.dump(encoder.encode(pickle.load(sys.stdin.buffer)), answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()


# --- sequences to arrays on disk --------------------------------------------------------------------------------------


class ArrayFile:
    """A .npy file that grows: its header, which states the number of rows, is written again at the end."""

    def __init__(self, path: Path, dtype: np.dtype, row_shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row_shape = path, np.dtype(dtype), row_shape
        self.num_rows = 0
        self.file = path.open("wb")
        self._write_header()
        self.data_start = self.file.tell()

    def append(self, rows: np.ndarray) -> None:
        """Write rows at the end."""
        assert rows.shape[1:] == self.row_shape
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.num_rows += len(rows)

    def finish(self) -> dict[str, Any]:
        """Complete the file on the disk. Returns: what the manifest says about it."""
        self.file.seek(0)
        self._write_header()
        assert self.file.tell() == self.data_start  # numpy leaves room for the first axis to grow
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {
            "dtype": str(self.dtype),
            "shape": [self.num_rows, *self.row_shape],
            "bytes": self.path.stat().st_size,
            "sha256": sha256_file(self.path),
        }

    def _write_header(self) -> None:
        shape = (self.num_rows, *self.row_shape)
        descr = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(self.file, {"descr": descr, "fortran_order": False, "shape": shape})


class TensorWriter:
    """The arrays of one stage. A subclass says which they are and how sequences are laid into them."""

    def __init__(self, job: TensorJob) -> None:
        self.length = job.max_length
        self.pad_id = job.tokenizer.end_of_text_id
        self.num_rows = 0
        """Rows, or pairs."""
        self.num_tokens = 0
        """Tokens written that are not padding."""
        self.folder = job.output
        self.dtype = token_dtype(job.tokenizer)
        self.files: dict[str, ArrayFile] = {}

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            with suppress(OSError):  # a full disk was reported where it was met
                file.file.close()

    def create(self, name: str, dtype: np.dtype | type, *row_shape: int) -> None:
        """Start an array."""
        self.files[name] = ArrayFile(self.folder / f"{name}.npy", np.dtype(dtype), row_shape)

    def add(self, encoded: Encoded) -> None:
        """Take the sequences of a batch."""
        raise NotImplementedError

    def finish(self) -> dict[str, dict[str, Any]]:
        """Write what is still held back and complete the files. Returns: name -> dtype, shape, bytes, sha256."""
        return {name: file.finish() for name, file in self.files.items()}


class PackedRows(TensorWriter):
    """Rows of `length` tokens that several documents share."""

    def __init__(self, job: TensorJob) -> None:
        super().__init__(job)
        self.create("input_ids", self.dtype, self.length)
        self.create("labels", self.dtype, self.length)
        self.create("document_ids", np.int16 if self.length <= np.iinfo(np.int16).max else np.int32, self.length)

    def write_rows(self, ids: np.ndarray, labels: np.ndarray, document_ids: np.ndarray) -> None:
        """Write finished rows, each (R, L)."""
        self.files["input_ids"].append(ids)
        self.files["labels"].append(labels)
        self.files["document_ids"].append(document_ids)
        self.num_rows += len(ids)
        self.num_tokens += int(np.count_nonzero(document_ids >= 0))


class DocumentRows(PackedRows):
    """Pretraining: the documents form one stream, and rows are windows of it.

    A document that goes on in the next row repeats its last token there, so that this token's label, which had no place
    in the row before, has one: every token but a document's first is predicted exactly once.
    """

    def __init__(self, job: TensorJob) -> None:
        super().__init__(job)
        self.ids = np.empty(0, self.dtype)
        self.labels = np.empty(0, self.dtype)
        self.starts = np.empty(0, np.bool_)
        """The stream from the start of the next row on, and where documents start in it: at most `length` tokens."""

    def add(self, encoded: Encoded) -> None:
        starts = np.zeros(len(encoded.ids), np.bool_)
        starts[np.cumsum(encoded.lengths)[:-1]] = True
        starts[:1] = True
        self.ids = np.concatenate([self.ids, encoded.ids])
        self.labels = np.concatenate([self.labels, encoded.labels])
        self.starts = np.concatenate([self.starts, starts])
        places = []
        place = 0
        while place + self.length < len(self.ids):
            places.append(place)
            place += self.length if self.starts[place + self.length] else self.length - 1
        documents = np.cumsum(self.starts, dtype=np.int64)
        rows_at_once = max(1, ROW_BLOCK_TOKENS // self.length)
        for first in range(0, len(places), rows_at_once):
            window = np.array(places[first : first + rows_at_once])[:, None] + np.arange(self.length)  # (R, L)
            labels = self.labels[window]
            labels[:, -1] = IGNORE  # what it predicts stands in the next row
            document_ids = documents[window]
            self.write_rows(self.ids[window], labels, document_ids - document_ids[:, :1])
        self.ids, self.labels, self.starts = (
            self.ids[place:].copy(),
            self.labels[place:].copy(),
            self.starts[place:].copy(),
        )

    def finish(self) -> dict[str, dict[str, Any]]:
        if len(self.ids):
            padding = (0, self.length - len(self.ids))
            documents = np.cumsum(self.starts, dtype=np.int64)
            self.write_rows(
                np.pad(self.ids, padding, constant_values=self.pad_id)[None],
                np.pad(self.labels, padding, constant_values=IGNORE)[None],
                np.pad(documents - documents[0], padding, constant_values=-1)[None],
            )
        return super().finish()


Row = list[tuple[np.ndarray, np.ndarray]]
"""Ids and labels of the conversations that share a row."""


class ConversationRows(PackedRows):
    """SFT: rows of whole conversations.

    Conversations are collected up to HELD_TOKENS; then, the longest first, each goes into the row whose free space it
    leaves the smallest, or into a new one. Rows that stay emptier than FULL_SHARE wait for the next collection, as long
    as they are few.
    """

    HELD_TOKENS = 1 << 22
    MAX_WAITING_ROWS = 256

    def __init__(self, job: TensorJob) -> None:
        super().__init__(job)
        self.create("loss_mask", np.bool_, self.length)
        self.held: Row = []
        self.num_held_tokens = 0
        self.waiting: list[tuple[int, Row]] = []
        """Free space of a row, and the row."""

    def add(self, encoded: Encoded) -> None:
        bounds = np.cumsum(encoded.lengths)[:-1]
        self.held += zip(np.split(encoded.ids, bounds), np.split(encoded.labels, bounds), strict=True)
        self.num_held_tokens += len(encoded.ids)
        if self.num_held_tokens >= self.HELD_TOKENS:
            self._pack(self.MAX_WAITING_ROWS)

    def finish(self) -> dict[str, dict[str, Any]]:
        self._pack(0)
        return super().finish()

    def _pack(self, max_waiting: int) -> None:
        """Lay all that is held into rows and write them, up to `max_waiting` of the emptiest."""
        rows: list[tuple[int, Row]] = best_fit(self.held, self.length, self.waiting)
        self.held, self.num_held_tokens = [], 0
        most_free = (1 - FULL_SHARE) * self.length
        emptiest = sorted(
            (number for number, (free, _) in enumerate(rows) if free > most_free), key=lambda n: -rows[n][0]
        )
        kept = set(emptiest[:max_waiting])
        self._write([row for number, (_, row) in enumerate(rows) if number not in kept])
        self.waiting = [rows[number] for number in sorted(kept)]

    def _write(self, rows: Sequence[Row]) -> None:
        rows_at_once = max(1, ROW_BLOCK_TOKENS // self.length)
        for first in range(0, len(rows), rows_at_once):
            block = rows[first : first + rows_at_once]
            shape = (len(block), self.length)
            ids = np.full(shape, self.pad_id, self.dtype)
            labels = np.full(shape, IGNORE, self.dtype)
            document_ids = np.full(shape, -1, self.files["document_ids"].dtype)
            for number, row in enumerate(block):
                place = 0
                for document, (row_ids, row_labels) in enumerate(row):
                    end = place + len(row_ids)
                    ids[number, place:end] = row_ids
                    labels[number, place:end] = row_labels
                    document_ids[number, place:end] = document
                    place = end
            self.write_rows(ids, labels, document_ids)
            self.files["loss_mask"].append(labels != IGNORE)


def best_fit(sequences: Row, length: int, rows: Iterable[tuple[int, Row]] = ()) -> list[tuple[int, Row]]:
    """Lay sequences into rows of `length` tokens: the longest first, each where it leaves the least free space.

    Ties go to the row that was touched last, so the result depends on the order of `sequences` alone.
    Args: rows: rows with free space to begin with. Returns: free space and content of every row.
    """
    packed = list(rows)
    with_space: list[list[int]] = [[] for _ in range(length + 1)]  # free tokens -> rows
    spaces = 0  # bit n is set when a row has n tokens free
    for number, (free, _) in enumerate(packed):
        with_space[free].append(number)
        spaces |= 1 << free
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence[0])):
        size = len(sequence[0])
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1  # the lowest bit set
            number = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
        else:
            space, number = length, len(packed)
            packed.append((length, []))
        free = space - size
        packed[number][1].append(sequence)
        packed[number] = (free, packed[number][1])
        with_space[free].append(number)
        spaces |= 1 << free
    return packed


class PairArrays(TensorWriter):
    """DPO: the sides of all pairs end to end, without padding, and where each begins."""

    SIDES = ("chosen", "rejected")

    def __init__(self, job: TensorJob) -> None:
        super().__init__(job)
        self.ends = dict.fromkeys(self.SIDES, 0)
        for side in self.SIDES:
            self.create(f"{side}_input_ids", self.dtype)
            self.create(f"{side}_labels", self.dtype)
            self.create(f"{side}_offsets", np.int64)
            self.files[f"{side}_offsets"].append(np.zeros(1, np.int64))

    def add(self, encoded: Encoded) -> None:
        is_rejected = np.repeat(np.arange(len(encoded.lengths)) % 2 == 1, encoded.lengths)  # (T,)
        for number, side in enumerate(self.SIDES):
            mine = is_rejected == bool(number)
            ends = self.ends[side] + np.cumsum(encoded.lengths[number::2])
            self.files[f"{side}_input_ids"].append(encoded.ids[mine])
            self.files[f"{side}_labels"].append(encoded.labels[mine])
            self.files[f"{side}_offsets"].append(ends)
            self.ends[side] = int(ends[-1]) if len(ends) else self.ends[side]
        self.num_rows += len(encoded.lengths) // 2
        self.num_tokens += len(encoded.ids)


WRITERS: dict[str, type[TensorWriter]] = {"pretrain": DocumentRows, "sft": ConversationRows, "dpo": PairArrays}
