"""Records to token sequences, in several processes.

Each record becomes one sequence (a document, a conversation) or two (the sides of a pair), with a label at each token:
the id that follows, where it is to be learnt, else -100. What is learnt is known while a record is rendered.

Shapes: T tokens, S sequences.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from configs.hardware import num_cores
from configs.paths import ROOT, display
from configs.progress import Progress, progress_bar
from configs.schema import UserError
from configs.stage_table import DATA_STEMS
from dataset.chat import Message
from dataset.marks import without_foreign_marks
from dataset.records import (
    BadRecord,
    ChatRecord,
    Item,
    LeftOut,
    PreferenceRecord,
    bad_line,
    decode_item,
    parse_record,
    read_items,
)
from dataset.tokenizer import RustBPETokenizer

IGNORE = -100
"""Label of a position whose next token is not learnt."""
BATCH_BYTES = 1 << 20
"""Bytes of records that go to a worker at one time."""
BYTES_PER_WORKER = 4 << 20
"""A smaller file is encoded before a second process has even started."""

Batch = list[tuple[int, Item]]
"""Lines of a file with their numbers."""
Sequenced = tuple[np.ndarray, np.ndarray]
"""Ids of a sequence (T,), and which of them are learnt, bool (T,); never the first, which nothing predicts."""


def token_dtype(tokenizer: RustBPETokenizer) -> np.dtype:
    """The smallest type that holds all ids and IGNORE."""
    return np.dtype(np.int16 if tokenizer.get_vocab_size() <= np.iinfo(np.int16).max else np.int32)


# --- records to token ids ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sequences:
    """Token sequences end to end."""

    ids: np.ndarray
    """(T,)"""
    labels: np.ndarray
    """(T,), the id that follows where it is learnt, else IGNORE."""
    lengths: np.ndarray
    """(S,)"""

    @property
    def starts(self) -> np.ndarray:
        """Where each sequence begins, (S,)."""
        return np.cumsum(self.lengths) - self.lengths


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a batch of records became."""

    sequences: Sequences
    """Documents, conversations, or chosen and rejected sides by turns."""
    counts: Mapping[str, int]
    """records, truncated and marked ones (dataset/marks.py), num_targets, num_bytes (UTF-8 bytes of the targets; special
    tokens have none)."""
    dropped: Mapping[str, int]
    """Reason -> records that gave no sequence."""
    error: UserError | None = None
    """Set when a record was bad; what stands before it in the batch is not to be used either."""


class Dropped(Exception):
    """A record that gives nothing to learn; the message is the reason, by which such records are counted."""


@dataclass(frozen=True)
class RecordEncoder:
    """Turns records of one kind into token ids and labels. Can be sent to another process."""

    data: str
    """Documents, conversations or pairs (configs/stage_table.py)."""
    source: Path
    tokenizer: RustBPETokenizer
    max_length: int
    """Tokens to which conversations are cut; documents never are."""
    bos_token: str | None
    append_eos: bool
    split: str
    """Take only the records whose `split` is this; empty: all of them."""

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each token, (vocabulary,); 0 for special tokens."""
        sizes = np.zeros(self.tokenizer.get_vocab_size(), np.int64)
        for token, token_id in self.tokenizer.mergeable_ranks.items():
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
            except (Dropped, LeftOut) as reason:
                dropped[str(reason)] += 1
            except (BadRecord, UserError) as problem:
                error = bad_line(f"{display(self.source)}:{number}", problem)
                return Encoded(_joined([], self._dtype)[0], {}, {}, error)
            else:
                kept += sequences
                counts["truncated"] += truncated
                counts["marked"] += self.data == "documents" and _is_marked(fields.get("text"))
        joined, learnt_ids = _joined(kept, self._dtype)
        counts["num_targets"] = len(learnt_ids)
        counts["num_bytes"] = int(self.token_bytes[learnt_ids].sum())
        return Encoded(joined, counts, dropped)

    @cached_property
    def _dtype(self) -> np.dtype:
        return token_dtype(self.tokenizer)

    def _sequences(self, fields: Mapping[str, Any]) -> tuple[list[Sequenced], bool]:
        """Ids of a record and which of them are learnt, and whether anything was cut off."""
        if self.data == "documents":
            return [self._document(fields)], False
        record = parse_record(fields)
        if self.data == "conversations":
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
        if self.data == "pairs" and np.array_equal(cut[0][0], cut[1][0]):
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
        text, _ = without_foreign_marks(text)
        if not text:
            raise BadRecord("empty text")
        ids = self.tokenizer.encode(text)
        if self.bos_token is not None:
            ids.insert(0, self.tokenizer.encode_special(self.bos_token))
        if self.append_eos:
            ids.append(self.tokenizer.end_of_text_id)
        return np.array(ids, self._dtype), np.arange(len(ids)) > 0

    def _conversation(self, messages: Sequence[Message]) -> Sequenced:
        """A conversation; every assistant turn is learnt, its end too, nothing else."""
        ids, mask = self.tokenizer.render_conversation(messages)
        if self.bos_token is None:
            ids, mask = ids[1:], mask[1:]
        else:
            ids[0] = self.tokenizer.encode_special(self.bos_token)
        if self.append_eos:
            ids, mask = [*ids, self.tokenizer.end_of_text_id], [*mask, 0]
        return np.array(ids, self._dtype), np.array(mask, np.bool_)

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


def _is_marked(text: Any) -> bool:
    """Whether a text holds marks of other chat formats, which are not learnt."""
    return isinstance(text, str) and without_foreign_marks(text)[1] > 0


def _joined(sequences: list[Sequenced], dtype: np.dtype) -> tuple[Sequences, np.ndarray]:
    """Sequences end to end with their labels, and the ids that are learnt."""
    ids = np.concatenate([np.empty(0, dtype), *(ids for ids, _ in sequences)])
    learnt = np.concatenate([np.empty(0, np.bool_), *(learnt for _, learnt in sequences)])
    labels = np.full_like(ids, IGNORE)
    np.copyto(labels[:-1], ids[1:], where=learnt[1:])  # a sequence's first token is not learnt: no label crosses
    lengths = np.array([len(ids) for ids, _ in sequences], np.int64)
    return Sequences(ids, labels, lengths), ids[learnt]


# --- several processes ------------------------------------------------------------------------------------------------


def encode_records(encoder: RecordEncoder, num_workers: int, *, progress: bool) -> Generator[Encoded, None, None]:
    """The records of a file, encoded, in the order of the file whatever the number of workers (0: one a core).

    Raises: UserError at the first bad record of the file.
    """
    num_bytes = encoder.source.stat().st_size
    num_workers = min(num_workers or num_cores(), -(-num_bytes // BYTES_PER_WORKER))
    label = f"{DATA_STEMS[encoder.data]} tokens" + (f" ({encoder.split})" if encoder.split else "")
    with progress_bar(num_bytes, desc=label, unit="B", unit_scale=True, disable=not progress) as bar:
        batches = _batches(encoder.source, bar)
        stream = map(encoder.encode, batches) if num_workers <= 1 else _in_workers(encoder, batches, num_workers)
        for encoded in stream:
            if encoded.error is not None:
                raise encoded.error
            yield encoded


def _batches(source: Path, bar: Progress) -> Iterator[Batch]:
    """The lines of a file with their numbers, about BATCH_BYTES at one time."""
    batch: Batch = []
    size = 0
    for number, item in read_items(source, lambda block: bar.update(len(block))):
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
        program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from dataset.encoding import serve_batches; serve_batches()"
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
            "Rerun with a smaller --num-workers.",
            "编码进程意外退出，多因内存不足：请减小 --num-workers",
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
