"""Packing: puts token sequences into rows of the same length, and writes the rows to .npy files.

    documents       are joined into one long stream, and the stream is cut into rows
    conversations   stay whole. They fill a row so well that mostly less than 2% of it is padding
    pairs           are written one after another, without rows and without padding

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
"""How many tokens of rows are made at once. A larger number needs more memory."""


class ArrayFile:
    """A .npy file that grows. At the end, its header is written again with the number of rows."""

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
        """Finish the file. Returns: facts about the written file."""
        self.file.seek(0)
        self._write_header()
        assert self.file.tell() == self.data_start  # numpy leaves space in the header for a larger number of rows
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
    """Writes the arrays of one kind of data. A subclass decides which arrays, and fills them."""

    def __init__(self, folder: Path, length: int, tokenizer: RustBPETokenizer) -> None:
        self.folder, self.length = folder, length
        self.dtype = token_dtype(tokenizer)
        self.pad_id = tokenizer.end_of_text_id
        self.files: dict[str, ArrayFile] = {}
        self.num_rows = 0
        """Rows, or pairs."""
        self.num_tokens = 0
        """Number of written tokens, without padding."""

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            with suppress(OSError):  # if the disk is full, a write has already raised this error
                file.file.close()

    def create(self, name: str, dtype: np.dtype | type, *row_shape: int) -> None:
        """Start an array."""
        self.files[name] = ArrayFile(self.folder / f"{name}.npy", np.dtype(dtype), row_shape)

    @abstractmethod
    def add(self, sequences: Sequences) -> None:
        """Add the next sequences."""

    def finish(self) -> dict[str, FileFacts]:
        """Write all sequences that are not written yet, and finish the files.

        Returns: name of an array -> facts about its file.
        """
        return {name: file.finish() for name, file in self.files.items()}


class PackedRows(TensorWriter):
    """Rows of `length` tokens. A row can hold one or several documents."""

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
    """Joins documents into one stream of tokens, and cuts the stream into rows.

    The last token of a row has no label, because the token after it is in the next row. If a
    document continues in the next row, the next row begins with the same token again, now with its
    label. So every token of a document is predicted exactly once, except its first token.
    """

    def __init__(self, folder: Path, length: int, tokenizer: RustBPETokenizer) -> None:
        super().__init__(folder, length, tokenizer)
        self.ids = np.empty(0, self.dtype)
        self.labels = np.empty(0, self.dtype)
        self.starts = np.empty(0, np.bool_)
        """`ids`, `labels` and `starts` hold the rest of the stream, which is not written yet. This
        rest has at most `length` tokens. `starts` is true at the first token of a document."""

    def add(self, sequences: Sequences) -> None:
        starts = np.zeros(len(sequences.ids), np.bool_)
        starts[sequences.starts] = True
        self.ids = np.concatenate([self.ids, sequences.ids])
        self.labels = np.concatenate([self.labels, sequences.labels])
        self.starts = np.concatenate([self.starts, starts])
        # Find the places in the stream where rows begin. A row begins with the last token of the
        # row before, because this token had no label there. But if a new document starts right
        # after this token, the token needs no label, and the row begins with the new document.
        places = []
        place = 0
        while place + self.length < len(self.ids):
            places.append(place)
            place += self.length if self.starts[place + self.length] else self.length - 1
        # For each token the number of its document, counted from the start of `ids`.
        documents = np.cumsum(self.starts, dtype=np.int64)
        rows_at_once = max(1, ROW_BLOCK_TOKENS // self.length)
        for first in range(0, len(places), rows_at_once):
            # `window[r]` holds the places in the stream of all tokens of row r.
            window = np.array(places[first : first + rows_at_once])[:, None] + np.arange(self.length)  # (R, L)
            labels = self.labels[window]
            labels[:, -1] = IGNORE  # the next token is in the next row
            document_ids = documents[window]
            # The first document of each row becomes number 0.
            self.write_rows(self.ids[window], labels, document_ids - document_ids[:, :1])
        self.ids, self.labels, self.starts = self.ids[place:], self.labels[place:], self.starts[place:]

    def finish(self) -> dict[str, FileFacts]:
        if len(self.ids):
            # The last row holds the rest of the stream, then padding.
            padding = (0, self.length - len(self.ids))
            documents = np.cumsum(self.starts, dtype=np.int64)
            self.write_rows(
                np.pad(self.ids, padding, constant_values=self.pad_id)[None],
                np.pad(self.labels, padding, constant_values=IGNORE)[None],
                np.pad(documents - documents[0], padding, constant_values=-1)[None],
            )
        return super().finish()


class ConversationRows(PackedRows):
    """Rows of whole conversations. `fill_rows` decides which conversations share a row.

    Conversations are collected until they have HELD_TOKENS tokens. Then they are packed together.
    Rows with too much padding are not written: their conversations wait, and are packed again with
    the next collection.
    """

    HELD_TOKENS = 1 << 22
    """How many tokens are collected before they are packed."""
    MAX_WAITING_SHARE = 0.25
    """Share of HELD_TOKENS that may wait for the next collection."""
    FULL_SHARE = 0.98
    """If at least this share of a row is real tokens, the row is written at once."""

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
        """Pack all collected conversations into rows and write the rows.

        Rows below FULL_SHARE may wait. The `max_waiting` emptiest of them are not written yet.
        """
        if not self.held:
            return
        held = Sequences(
            np.concatenate([part.ids for part in self.held]),
            np.concatenate([part.labels for part in self.held]),
            np.concatenate([part.lengths for part in self.held]),
        )
        rows = fill_rows(held.lengths.tolist(), self.length)
        # The emptiest rows wait, because later conversations may fill them better.
        used = [int(held.lengths[row].sum()) for row in rows]
        too_empty = [number for number in range(len(rows)) if used[number] < self.FULL_SHARE * self.length]
        waiting = set(sorted(too_empty, key=lambda number: used[number])[:max_waiting])
        self._write(held, [row for number, row in enumerate(rows) if number not in waiting])
        rest = sorted(chain.from_iterable(rows[number] for number in waiting))
        tokens = _tokens_of(held, rest)
        self.held = [Sequences(held.ids[tokens], held.labels[tokens], held.lengths[rest])] if rest else []
        self.num_held_tokens = len(tokens)

    def _write(self, held: Sequences, rows: Sequence[Sequence[int]]) -> None:
        """Write rows. Each row is given as the numbers of its sequences."""
        rows_at_once = max(1, ROW_BLOCK_TOKENS // self.length)
        for first in range(0, len(rows), rows_at_once):
            block = rows[first : first + rows_at_once]
            numbers = list(chain.from_iterable(block))
            documents = np.concatenate([np.arange(len(row)) for row in block])
            tokens = _tokens_of(held, numbers)
            # A row holds first its tokens, then padding. `real` is true at the tokens. NumPy fills
            # these places row by row, and `tokens` has the same order.
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
    """The places of all tokens of the sequences with these numbers, sequence after sequence."""
    chosen = np.array(numbers, np.int64)
    lengths = sequences.lengths[chosen]
    # Number the chosen tokens 0, 1, 2, ... All tokens of a sequence have the same shift from this
    # number to their place. The shift is the start of the sequence minus the number of its first
    # token. Example: there are sequences of 2 and 3 tokens, and only the second one is chosen. Its
    # tokens have the numbers 0, 1, 2 and the places 2, 3, 4, so the shift is 2.
    shifts = sequences.starts[chosen] - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(lengths.sum())


def fill_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Pack sequences of 1 to `row_length` tokens into rows.

    Each row begins with the longest sequence that is left, because this one is the hardest to
    place. Other sequences fill the rest of the row, and longer ones are tried first. 1 of 128
    tokens in a row may stay empty. If every row were filled to the last token, the short sequences
    would be used up too early, and later rows need them. Sequences with the same length are taken
    in the order of `lengths`, so the result depends only on `lengths`.

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
        # Offer all sizes that fit, the longest first. Offer a size as many times as there are such
        # sequences, but not more times than fit into the room.
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
    """Choose some of `sizes` so that their sum is at most `room` and at least `room - slack`.

    The sizes are tried in the given order until such a sum exists. If there is no such sum, the
    largest possible sum below it is taken. This is the subset-sum problem, solved by dynamic
    programming. The sums that can be reached are stored as the bits of one integer. So one shift
    adds a size to all of these sums.
    """
    reach = 1  # bit n is 1: some of the sizes so far have the sum n
    within = (2 << room) - 1  # bits 0 to room, because larger sums do not fit
    enough = max(1, room - slack)
    tried = []  # each size, and the sums that can be reached without it
    for size in sizes:
        tried.append((size, reach))
        reach = (reach | reach << size) & within
        if reach >> enough:
            break
    # Go back from the largest sum. If the sum can't be reached without a size, the size is part of
    # the sum.
    chosen = []
    filled = reach.bit_length() - 1
    for size, before in reversed(tried):
        if not before >> filled & 1:
            chosen.append(size)
            filled -= size
    return chosen


class PairArrays(TensorWriter):
    """The sides of all pairs, one after another without padding, and where each side begins."""

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
        # The sequences alternate: chosen, rejected, chosen, rejected. So every second sequence
        # belongs to the same side.
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
