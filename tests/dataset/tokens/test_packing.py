"""Packing: every conversation is in one row, whole and once, and rows are at least 98% full."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset.tensors import IGNORE
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from dataset.tokens.encoding import Sequences
from dataset.tokens.packing import ArrayFile, ConversationRows, TensorWriter, fill, fill_rows

tokenizer = RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)})

LENGTHS: dict[str, Callable[[random.Random], int]] = {
    "short templates": lambda draw: draw.choice([21, 21, 21, 22, 24, 24, 25, 47, 47, 60]),
    "mostly short": lambda draw: draw.randint(14, 30) if draw.random() < 0.6 else draw.randint(31, 120),
    "half of one length": lambda draw: 19 if draw.random() < 0.5 else draw.randint(20, 100),
    "questions and answers": lambda draw: min(240, max(8, int(draw.lognormvariate(4.2, 0.8)))),
}


def draw_lengths(kind: str, num_tokens: int) -> list[int]:
    draw = random.Random(1)
    lengths: list[int] = []
    while num_tokens > 0:
        lengths.append(LENGTHS[kind](draw))
        num_tokens -= lengths[-1]
    return lengths


def sequences_of(lengths: list[int], first: int = 0) -> Sequences:
    """Sequences whose tokens all have the sequence's own id. All but the first are targets."""
    ids = np.repeat(np.arange(first, first + len(lengths)) % 6000, lengths).astype(np.int16)
    sequences = Sequences(ids, ids.copy(), np.array(lengths, np.int64))
    sequences.labels[np.cumsum(lengths) - 1] = IGNORE
    return sequences


def written(writer: TensorWriter, parts: list[Sequences]) -> dict[str, np.ndarray]:
    with writer:
        for part in parts:
            writer.add(part)
        files = writer.finish()
    return {name: np.load(writer.folder / f"{name}.npy") for name in files}


# --- which sequences share a row ------------------------------------------------------------------


def test_a_room_is_filled_exactly_where_that_is_possible() -> None:
    assert sum(fill(100, [60, 45, 33, 22, 12], slack=0)) == 100
    assert fill(100, [60, 40, 30, 30, 20], slack=0) == [40, 60]
    assert fill(100, [70, 70, 20], slack=0) == [20, 70]
    assert fill(5, [], slack=2) == []


def test_a_room_that_is_full_enough_leaves_the_short_sequences_alone() -> None:
    assert fill(100, [99, 1], slack=1) == [99]
    assert fill(100, [99, 1], slack=0) == [1, 99]


@pytest.mark.parametrize("kind", LENGTHS)
def test_each_sequence_is_in_one_row_that_holds_it(kind: str) -> None:
    lengths = draw_lengths(kind, 20_000)
    rows = fill_rows(lengths, 256)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert max(sum(lengths[number] for number in row) for row in rows) <= 256


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("row_length", [256, 2048])
@pytest.mark.parametrize("num_rows", [102, 500])
def test_from_100_rows_on_98_percent_of_the_tokens_are_real(kind: str, row_length: int, num_rows: int) -> None:
    lengths = draw_lengths(kind, num_rows * row_length)
    assert sum(lengths) >= 0.98 * row_length * len(fill_rows(lengths, row_length))


def test_answers_of_half_a_row_and_more_are_paired_well() -> None:
    draw = random.Random(1)
    lengths = [min(2048, max(50, int(draw.lognormvariate(6.8, 0.6)))) for _ in range(800)]
    assert sum(lengths) >= 0.98 * 2048 * len(fill_rows(lengths, 2048))


def test_of_equal_lengths_the_first_comes_first() -> None:
    assert fill_rows([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]


# --- rows of conversations ------------------------------------------------------------------------


def conversation_rows(folder: Path, parts: list[Sequences], row_length: int = 256) -> dict[str, np.ndarray]:
    return written(ConversationRows(folder, row_length, tokenizer), parts)


def check_conversations(arrays: dict[str, np.ndarray], lengths: list[int]) -> None:
    """Each conversation is there once and whole, with its labels. Padding comes only at the end."""
    ids, labels, documents = arrays["input_ids"], arrays["labels"], arrays["document_ids"]
    found = []
    for row in range(len(ids)):
        for document in range(documents[row].max() + 1):
            (places,) = np.nonzero(documents[row] == document)
            assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))
            assert len(set(ids[row, places])) == 1
            assert (labels[row, places] == [*ids[row, places[1:]], IGNORE]).all()
            found.append((int(ids[row, places[0]]), len(places)))
    assert sorted(found) == sorted((number % 6000, length) for number, length in enumerate(lengths))
    padding = documents < 0
    assert (np.diff(padding.astype(int)) >= 0).all()
    assert (ids[padding] == tokenizer.end_of_text_id).all()
    assert (arrays["loss_mask"] == (labels != IGNORE)).all()


def test_conversations_are_written_whole_with_their_labels(tmp_path: Path) -> None:
    lengths = draw_lengths("mostly short", 10_000)
    check_conversations(conversation_rows(tmp_path, [sequences_of(lengths)]), lengths)


def in_parts(lengths: list[int], size: int) -> list[Sequences]:
    return [sequences_of(lengths[first : first + size], first) for first in range(0, len(lengths), size)]


@pytest.mark.parametrize("kind", LENGTHS)
def test_packing_in_parts_stays_as_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(ConversationRows, "HELD_TOKENS", 1 << 13)  # 32 rows
    lengths = draw_lengths(kind, 200 * 256)
    arrays = conversation_rows(tmp_path, in_parts(lengths, 7))
    check_conversations(arrays, lengths)
    assert (arrays["document_ids"] >= 0).mean() >= 0.98


def test_rows_too_empty_to_write_wait_for_shorter_conversations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConversationRows, "HELD_TOKENS", 1600)
    lengths = [200] * 8 + [56]
    arrays = conversation_rows(tmp_path, in_parts(lengths, 8))
    check_conversations(arrays, lengths)
    used = (arrays["document_ids"] >= 0).sum(axis=1)
    assert used.tolist() == [200] * 7 + [256]  # a quarter of what is held may wait: one row


def test_what_waits_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConversationRows, "HELD_TOKENS", 4096)
    with ConversationRows(tmp_path, 256, tokenizer) as writer:
        for part in in_parts([129] * 640, 16):  # no two fit into a row
            writer.add(part)
            assert writer.num_held_tokens <= 4096
        writer.finish()
    assert writer.num_rows == 640


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,)])
def test_an_array_that_grows_is_read_back_as_it_was_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = ArrayFile(tmp_path / "a.npy", np.dtype(np.int16), shape)
    blocks = [np.full((size, *shape), size) for size in (2, 0, 5)]
    for block in blocks:
        file.append(block)
    facts = file.finish()
    array = np.load(tmp_path / "a.npy")
    assert np.array_equal(array, np.concatenate(blocks))
    assert (facts.dtype, facts.shape) == ("int16", array.shape)
    assert facts.bytes == (tmp_path / "a.npy").stat().st_size
