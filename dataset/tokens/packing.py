"""Packing: token sequences to rows of one length, and rows to .npy files.

    documents       all of them end to end, cut into rows
    conversations   rows of whole conversations, filled so that at least 98% of a row is no padding
    pairs           the sides of all pairs end to end, without padding

Shapes: T tokens, S sequences (documents, conversations, or sides), R rows, L tokens in a row.
"""

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np

from configs.artifacts import sha256_file
from dataset.tensors import IGNORE, FileFacts
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.encoding import Sequences, token_dtype

ROW_BLOCK_TOKENS = 1 << 20
"""Tokens of the rows that are made in one block, which bounds the memory."""


class ArrayFile:
    """A .npy file that grows. Its header holds the number of rows and is rewritten at the end."""

    def __init__(self, path: Path, dtype: np.dtype, row_shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row_shape = path, np.dtype(dtype), row_shape
        self.num_rows = 0
        self.file = path.open("wb")
        self._write_header()
        self.data_start = self.file.tell()

    def append(self, rows: np.ndarray) -> None:
        """Write rows (R, *row_shape) at the end."""
        assert rows.shape[1:] == self.row_shape
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.num_rows += len(rows)

    def finish(self) -> FileFacts:
        """Complete the file on the disk. Returns: what was written."""
        self.file.seek(0)
        self._write_header()
        assert self.file.tell() == self.data_start  # numpy leaves room for the first axis to grow
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return FileFacts(
            dtype=str(self.dtype),
            shape=(self.num_rows, *self.row_shape),
            bytes=self.path.stat().st_size,
            sha256=sha256_file(self.path),
        )

    def _write_header(self) -> None:
        shape = (self.num_rows, *self.row_shape)
        descr = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(self.file, {"descr": descr, "fortran_order": False, "shape": shape})


class TensorWriter(ABC):
    """The arrays of one kind of data. A subclass says which arrays, and how sequences fill them."""

    def __init__(self, folder: Path, length: int, tokenizer: RustBPETokenizer) -> None:
        self.folder, self.length = folder, length
        self.dtype = token_dtype(tokenizer)
        self.pad_id = tokenizer.end_of_text_id
        self.files: dict[str, ArrayFile] = {}
        self.num_rows = 0
        """Rows, or pairs."""
        self.num_tokens = 0
        """Tokens written that are not padding."""

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            with suppress(OSError):  # a full disk has raised already, at the write that failed
                file.file.close()

    def create(self, name: str, dtype: np.dtype | type, *row_shape: int) -> None:
        """Start an array."""
        self.files[name] = ArrayFile(self.folder / f"{name}.npy", np.dtype(dtype), row_shape)

    @abstractmethod
    def add(self, sequences: Sequences) -> None:
        """Take the next sequences."""

    def finish(self) -> dict[str, FileFacts]:
        """Write what still waits for its row, and complete the files.

        Returns: name of an array -> what was written.
        """
        return {name: file.finish() for name, file in self.files.items()}


class PackedRows(TensorWriter):
    """Rows of `length` tokens, of one or several documents each."""

    def __init__(self, folder: Path, length: int, tokenizer: RustBPETokenizer) -> None:
        super().__init__(folder, length, tokenizer)
        self.create("input_ids", self.dtype, self.length)
        self.create("labels", self.dtype, self.length)
        self.create("document_ids", np.int16 if self.length <= np.iinfo(np.int16).max else np.int32, self.length)

    def write_rows(self, ids: np.ndarray, labels: np.ndarray, document_ids: np.ndarray) -> None:
        """Write finished rows, three arrays (R, L)."""
        self.files["input_ids"].append(ids)
        self.files["labels"].append(labels)
        self.files["document_ids"].append(document_ids)
        self.num_rows += len(ids)
        self.num_tokens += int(np.count_nonzero(document_ids >= 0))


class DocumentRows(PackedRows):
    """Documents form one stream, and each row is a window of it.

    The last token of a row has no label, because the next token is in the next row. If a document
    continues in the next row, that row begins with the same token again, now with its label. So
    every token of a document but the first is predicted exactly once.
    """

    def __init__(self, folder: Path, length: int, tokenizer: RustBPETokenizer) -> None:
        super().__init__(folder, length, tokenizer)
        self.ids = np.empty(0, self.dtype)
        self.labels = np.empty(0, self.dtype)
        self.starts = np.empty(0, np.bool_)
        """These three hold the rest of the stream, from the start of the next row: at most `length`
        tokens. `starts` is true at the first token of a document."""

    def add(self, sequences: Sequences) -> None:
        starts = np.zeros(len(sequences.ids), np.bool_)
        starts[sequences.starts] = True
        self.ids = np.concatenate([self.ids, sequences.ids])
        self.labels = np.concatenate([self.labels, sequences.labels])
        self.starts = np.concatenate([self.starts, starts])
        # The places in the stream at which rows begin. A row begins with the last token of the row
        # before it, which had no label there. But if a document starts right after that token, the
        # token has no label anyway, and the row begins with the document.
        places = []
        place = 0
        while place + self.length < len(self.ids):
            places.append(place)
            place += self.length if self.starts[place + self.length] else self.length - 1
        # Number of the document at each token, counted from the start of the stream that is left.
        documents = np.cumsum(self.starts, dtype=np.int64)
        rows_at_once = max(1, ROW_BLOCK_TOKENS // self.length)
        for first in range(0, len(places), rows_at_once):
            # A row of `window` holds the places of a row's tokens in the stream.
            window = np.array(places[first : first + rows_at_once])[:, None] + np.arange(self.length)  # (R, L)
            labels = self.labels[window]
            labels[:, -1] = IGNORE  # the next token is in the next row
            document_ids = documents[window]
            # The first document of each row becomes number 0.
            self.write_rows(self.ids[window], labels, document_ids - document_ids[:, :1])
        self.ids, self.labels, self.starts = self.ids[place:], self.labels[place:], self.starts[place:]

    def finish(self) -> dict[str, FileFacts]:
        if len(self.ids):
            # The last row is the rest of the stream, and padding.
            padding = (0, self.length - len(self.ids))
            documents = np.cumsum(self.starts, dtype=np.int64)
            self.write_rows(
                np.pad(self.ids, padding, constant_values=self.pad_id)[None],
                np.pad(self.labels, padding, constant_values=IGNORE)[None],
                np.pad(documents - documents[0], padding, constant_values=-1)[None],
            )
        return super().finish()


class ConversationRows(PackedRows):
    """Rows of whole conversations, filled by `fill_rows`.

    Conversations are collected until they have HELD_TOKENS, then packed together. Rows that are too
    empty are not written: their conversations wait and are packed with the next collection.
    """

    HELD_TOKENS = 1 << 22
    """Tokens that are collected before they are packed."""
    MAX_WAITING_SHARE = 0.25
    """Share of HELD_TOKENS that may wait for the next collection."""
    FULL_SHARE = 0.98
    """A row whose share of real tokens is at least this is written without waiting."""

    def __init__(self, folder: Path, length: int, tokenizer: RustBPETokenizer) -> None:
        super().__init__(folder, length, tokenizer)
        self.create("loss_mask", np.bool_, self.length)
        self.held: list[Sequences] = []
        self.num_held_tokens = 0

    def add(self, sequences: Sequences) -> None:
        self.held.append(sequences)
        self.num_held_tokens += len(sequences.ids)
        if self.num_held_tokens >= self.HELD_TOKENS:
            self._pack(int(self.MAX_WAITING_SHARE * self.HELD_TOKENS) // self.length)

    def finish(self) -> dict[str, FileFacts]:
        self._pack(0)
        return super().finish()

    def _pack(self, max_waiting: int) -> None:
        """Pack all that is held into rows and write them.

        Of the rows below FULL_SHARE the `max_waiting` emptiest are not written yet.
        """
        if not self.held:
            return
        held = Sequences(
            np.concatenate([part.ids for part in self.held]),
            np.concatenate([part.labels for part in self.held]),
            np.concatenate([part.lengths for part in self.held]),
        )
        rows = fill_rows(held.lengths.tolist(), self.length)
        # The emptiest rows wait: shorter conversations that come later may fill them better.
        used = [int(held.lengths[row].sum()) for row in rows]
        too_empty = [number for number in range(len(rows)) if used[number] < self.FULL_SHARE * self.length]
        waiting = set(sorted(too_empty, key=lambda number: used[number])[:max_waiting])
        self._write(held, [row for number, row in enumerate(rows) if number not in waiting])
        rest = sorted(chain.from_iterable(rows[number] for number in waiting))
        tokens = _tokens_of(held, rest)
        self.held = [Sequences(held.ids[tokens], held.labels[tokens], held.lengths[rest])] if rest else []
        self.num_held_tokens = len(tokens)

    def _write(self, held: Sequences, rows: Sequence[Sequence[int]]) -> None:
        """Write rows, each given by the numbers of its sequences."""
        rows_at_once = max(1, ROW_BLOCK_TOKENS // self.length)
        for first in range(0, len(rows), rows_at_once):
            block = rows[first : first + rows_at_once]
            numbers = list(chain.from_iterable(block))
            documents = np.concatenate([np.arange(len(row)) for row in block])
            tokens = _tokens_of(held, numbers)
            # A row's tokens come first, then padding. `real` is true at the tokens. NumPy goes
            # through it row after row, which is the order of `tokens`.
            used = np.array([held.lengths[row].sum() for row in block])
            real = np.arange(self.length) < used[:, None]  # (R, L)
            ids = np.full(real.shape, self.pad_id, self.dtype)
            labels = np.full(real.shape, IGNORE, self.dtype)
            document_ids = np.full(real.shape, -1, self.files["document_ids"].dtype)
            ids[real] = held.ids[tokens]
            labels[real] = held.labels[tokens]
            document_ids[real] = np.repeat(documents, held.lengths[numbers])
            self.write_rows(ids, labels, document_ids)
            self.files["loss_mask"].append(labels != IGNORE)


def _tokens_of(sequences: Sequences, numbers: Sequence[int]) -> np.ndarray:
    """Places of the tokens of the sequences with these numbers, one sequence after the other."""
    chosen = np.array(numbers, np.int64)
    lengths = sequences.lengths[chosen]
    # Count the chosen tokens from 0. The place of a token is its number plus the shift of its
    # sequence: where the sequence starts, minus the number of its first token. Example: sequences
    # of 2 and 3 tokens, only the second chosen: its tokens are numbers 0, 1, 2, its shift is 2.
    shifts = sequences.starts[chosen] - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(lengths.sum())


def fill_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Pack sequences of 1 to `row_length` tokens into rows.

    Each row begins with the longest sequence that is left, because it is the hardest to place.
    Others fill the rest of the row, the longest first. 1 in 128 tokens of a row may stay empty: to
    fill every row to the last token would use up the short sequences, and later rows need them. Of
    sequences of one length the first in `lengths` comes first, so the result depends on nothing but
    `lengths`.

    Returns: for each row the numbers of its sequences.
    """
    slack = row_length // 128
    waiting: list[list[int]] = [[] for _ in range(row_length + 1)]  # length -> numbers, the first at the end
    for number in reversed(range(len(lengths))):
        waiting[lengths[number]].append(number)
    sizes = [size for size in range(1, row_length + 1) if waiting[size]]
    rows = []
    while sizes:
        longest = sizes[-1]
        row = [waiting[longest].pop()]
        room = row_length - longest
        # Sizes that fit, the longest first. Each is offered as often as there are such sequences,
        # but not more often than it fits.
        shorter = reversed(sizes[: bisect_right(sizes, room)])
        on_offer = (size for size in shorter for _ in range(min(len(waiting[size]), room // size)))
        chosen = fill(room, on_offer, slack)
        row += [waiting[size].pop() for size in chosen]
        for size in {longest, *chosen}:
            if not waiting[size]:
                sizes.remove(size)
        rows.append(row)
    return rows


def fill(room: int, sizes: Iterable[int], slack: int) -> list[int]:
    """Those of `sizes` whose sum is at most `room` and at least `room - slack`.

    Sizes are tried in their order until such a sum exists. If there is none, the sum that comes
    closest is taken. This is the subset-sum problem, solved by dynamic programming: the sums that
    can be reached are the bits of an integer, so that one shift adds a size to all of them.
    """
    reach = 1  # bit n is 1: some of the sizes so far have the sum n
    within = (2 << room) - 1  # bits 0 to room: larger sums do not fit
    enough = max(1, room - slack)
    tried = []  # each size, and the sums that could be reached without it
    for size in sizes:
        tried.append((size, reach))
        reach = (reach | reach << size) & within
        if reach >> enough:
            break
    # Go back from the largest sum. A size belongs to it if the sum can't be reached without it.
    chosen = []
    filled = reach.bit_length() - 1
    for size, before in reversed(tried):
        if not before >> filled & 1:
            chosen.append(size)
            filled -= size
    return chosen


class PairArrays(TensorWriter):
    """The sides of all pairs end to end, without padding, and the offset at which each begins."""

    SIDES = ("chosen", "rejected")

    def __init__(self, folder: Path, length: int, tokenizer: RustBPETokenizer) -> None:
        super().__init__(folder, length, tokenizer)
        self.ends = dict.fromkeys(self.SIDES, 0)
        for side in self.SIDES:
            self.create(f"{side}_input_ids", self.dtype)
            self.create(f"{side}_labels", self.dtype)
            self.create(f"{side}_offsets", np.int64)
            self.files[f"{side}_offsets"].append(np.zeros(1, np.int64))

    def add(self, sequences: Sequences) -> None:
        # Sequences alternate: chosen, rejected, chosen, rejected. So each side is every second one.
        is_rejected = np.repeat(np.arange(len(sequences.lengths)) % 2 == 1, sequences.lengths)  # (T,)
        for number, side in enumerate(self.SIDES):
            mine = is_rejected == bool(number)
            ends = self.ends[side] + np.cumsum(sequences.lengths[number::2])
            self.files[f"{side}_input_ids"].append(sequences.ids[mine])
            self.files[f"{side}_labels"].append(sequences.labels[mine])
            self.files[f"{side}_offsets"].append(ends)
            self.ends[side] += int(np.count_nonzero(mine))
        self.num_rows += len(sequences.lengths) // 2
        self.num_tokens += len(sequences.ids)


WRITERS: dict[str, type[TensorWriter]] = {
    "documents": DocumentRows,
    "conversations": ConversationRows,
    "pairs": PairArrays,
}
