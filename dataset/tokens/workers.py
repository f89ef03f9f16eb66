"""Encoding in several processes: records go to the workers in batches and come back in order."""

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue

from configs.hardware import num_cores
from configs.paths import ROOT
from configs.progress import Progress, progress_bar
from configs.schema import UserError
from configs.stage_table import DATA_STEMS
from dataset.records.files import read_items
from dataset.tokens.encoding import Batch, Encoded, RecordEncoder

BATCH_BYTES = 1 << 20
"""Bytes of records in a batch for a worker."""
BYTES_PER_WORKER = 4 << 20
"""There is one worker for each so many bytes of a file, at most. A smaller file needs one: it is
encoded before a second process has started."""


def encode_records(encoder: RecordEncoder, num_workers: int, *, progress: bool) -> Generator[Encoded, None, None]:
    """The records of a file, encoded, in the order of the file.

    The order does not depend on the number of workers (0: one a core).
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
    """The lines of a file with their numbers, in batches of about BATCH_BYTES."""
    batch: Batch = []
    size = 0
    for number, item in read_items(source, lambda block: bar.update(len(block))):
        batch.append((number, item))
        # A CSV row, or a line that can't be read, counts as a thousandth of a batch.
        size += len(item) if isinstance(item, bytes) else BATCH_BYTES // 1024
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_workers(encoder: RecordEncoder, batches: Iterable[Batch], num_workers: int) -> Iterator[Encoded]:
    """Encode batches in several processes, in order.

    No more than two batches for each worker are read ahead, so that memory stays small.
    """
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(num_workers))  # each waits for one process
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

    It is a plain subprocess. A process of `multiprocessing` would import the program that started
    it: for a trainer that is torch, which takes seconds and hundreds of megabytes. It ends together
    with this process, because its standard input ends then.
    """

    def __init__(self, encoder: RecordEncoder) -> None:
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
            "from dataset.tokens.workers import serve_batches; serve_batches()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches only the parent, which then ends its workers
        )
        self._send(encoder)

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # it has nothing to save
        with suppress(OSError):
            self.process.__exit__(None, None, None)

    def encode(self, batch: Batch) -> Encoded:
        """Encode a batch in that process. Raises: UserError when the process has died."""
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
    """The program of a worker.

    It reads a pickled encoder and then batches from standard input, and writes each `Encoded` to
    standard output.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end silently when the parent is gone
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints can't mix with the answers
    with suppress(EOFError):
        encoder: RecordEncoder = pickle.load(sys.stdin.buffer)
        while True:
            pickle.dump(encoder.encode(pickle.load(sys.stdin.buffer)), answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
