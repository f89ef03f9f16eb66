"""The text of the training benchmarks, tokenised before any clock runs.

From every record but each twentieth: the rows that our trainer reads, made by the product's own
code, and the same documents cut to WINDOW_TOKENS for the baseline. Of the twentieth ones: documents
that both arms are scored on.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from configs.artifacts import atomic_write, fingerprint, read_json, require_writable, sha256_file, write_json
from configs.paths import display
from configs.schema import UserError
from dataset.records.files import read_records
from dataset.tensors import IGNORE, MANIFEST_FILE, Manifest, read_manifest
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.build import TensorJob, build_tensors, current_tensors
from dataset.tokens.encoding import Sequences, token_dtype
from dataset.tokens.packing import PackedRows

FORMAT = 1
WINDOW_TOKENS = 340
"""The baseline's documents are cut or padded to this, and both arms are scored in windows of it."""
HOLD_OUT_EVERY = 20
NUM_HELDOUT = 300
BATCH_TEXTS = 512
MANIFEST, HELDOUT, IDS, OFFSETS, TEXTS = "corpus.json", "heldout.jsonl", "ids.npy", "offsets.npy", "train.jsonl"


@dataclass(frozen=True, slots=True)
class Corpus:
    """A prepared folder."""

    folder: Path
    facts: dict[str, Any]
    """What it was made from, and its sizes."""
    tensors: Path
    """Our rows."""

    def heldout_texts(self) -> list[str]:
        """The documents to score."""
        with (self.folder / HELDOUT).open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line in lines]

    def tensor_facts(self) -> Manifest:
        """Manifest of our rows."""
        return read_manifest(self.tensors)


class CutDocuments:
    """The baseline's rows, by memory map: one document each, cut or padded to WINDOW_TOKENS."""

    def __init__(self, folder: Path, pad_id: int) -> None:
        self.ids = np.load(folder / IDS, mmap_mode="r", allow_pickle=False)  # (tokens,)
        self.offsets = np.load(folder / OFFSETS, allow_pickle=False)  # (documents + 1,)
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def targets_per_row(self) -> float:
        """Mean of the tokens predicted in a row: all of a document but its first."""
        return (len(self.ids) - len(self)) / len(self)

    @property
    def padded_share(self) -> float:
        """Share of the places that hold no token of a document."""
        return 1 - len(self.ids) / (len(self) * WINDOW_TOKENS)

    def batch(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Input ids and labels, int64 (B, WINDOW_TOKENS); -100 on padding.

        A label is its own place's id: transformers moves the labels by one place itself.
        """
        input_ids = np.full((len(numbers), WINDOW_TOKENS), self.pad_id, np.int64)
        labels = np.full_like(input_ids, -100)
        for row, number in enumerate(numbers):
            ids = self.ids[self.offsets[number] : self.offsets[number + 1]]
            input_ids[row, : len(ids)] = labels[row, : len(ids)] = ids
        return input_ids, labels


def prepare(
    folder: Path,
    text: Path | None,
    tokenizer: RustBPETokenizer,
    *,
    row_tokens: int,
    max_tokens: int | None = None,
    num_heldout: int | None = None,
) -> Corpus:
    """The corpus in a folder, made from `text` where it isn't there yet.

    Without a text it must be there.

    Args: row_tokens: length of our rows. max_tokens: take documents until they have so many; 0 or
    None: all. num_heldout: most documents to score, 300 if None. Raises: UserError, also where the
    folder was prepared with other numbers.
    """
    tensors = folder / f"rows_{row_tokens}"
    if text is None:
        facts = read_json(folder / MANIFEST, "Give the text to make it from with --text.")
        if facts["tokenizer_sha256"] != tokenizer.sha256 or not tensors.is_dir():
            raise UserError(
                f"{display(folder)}: prepared for another tokenizer, or has no rows of {row_tokens} tokens. Give --text."
            )
        for flag, name, value in (
            ("max_tokens", "max_tokens", max_tokens),
            ("heldout_docs", "num_heldout", num_heldout),
        ):
            if value is not None and value != facts[name]:
                raise UserError(f"--{flag} {value}: {display(folder)} was prepared with {facts[name]}. Give --text.")
        return Corpus(folder, facts, tensors)
    max_tokens, num_heldout = max_tokens or 0, NUM_HELDOUT if num_heldout is None else num_heldout
    wanted = {
        "format": FORMAT,
        "text": text.name,
        "text_sha256": sha256_file(text),
        "tokenizer_sha256": tokenizer.sha256,
        "max_tokens": max_tokens,
        "num_heldout": num_heldout,
    }
    job = TensorJob("documents", folder / TEXTS, tensors, tokenizer, row_tokens)
    facts = read_json(folder / MANIFEST, "Delete it and rerun.") if (folder / MANIFEST).exists() else {}
    same_text = wanted.items() <= facts.items()
    if same_text and tensors.is_dir() and current_tensors(job) is not None:
        return Corpus(folder, facts, tensors)
    print(f"tokenising {display(text)} into {display(folder)}", file=sys.stderr, flush=True)
    require_writable(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    if not same_text:
        for other in folder.glob("rows_*"):
            shutil.rmtree(other)
    facts = wanted | _write_documents(folder, text, tokenizer, max_tokens, num_heldout)
    build_tensors(job)
    (folder / TEXTS).unlink()  # the tensors know what they were made from
    write_json(folder / MANIFEST, facts)
    return Corpus(folder, facts, tensors)


def _write_documents(
    folder: Path, text: Path, tokenizer: RustBPETokenizer, max_tokens: int, num_heldout: int
) -> dict[str, Any]:
    """Write texts, cut documents and held-out documents. Returns: their sizes."""
    bos, eos = tokenizer.get_bos_token_id(), tokenizer.end_of_text_id
    heldout: list[str] = []
    cut: list[np.ndarray] = []
    num_tokens = num_cut = 0

    def training_texts() -> Iterator[str]:
        for number, record in enumerate(read_records(text)):
            enough = max_tokens and num_tokens >= max_tokens
            if number % HOLD_OUT_EVERY == 0:
                if len(heldout) < num_heldout:
                    heldout.append(record["text"])
                elif enough:
                    return
            elif not enough:
                yield record["text"]

    with atomic_write(folder / TEXTS) as file:
        texts = training_texts()
        while batch := list(islice(texts, BATCH_TEXTS)):
            for document, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                if max_tokens and num_tokens >= max_tokens:
                    break
                file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
                ids = [bos, *ids, eos]
                num_tokens += len(ids)
                num_cut += len(ids) > WINDOW_TOKENS
                cut.append(np.array(ids[:WINDOW_TOKENS], token_dtype(tokenizer)))
    if not cut or not heldout:
        raise UserError(f"{display(text)}: too few records, since every {HOLD_OUT_EVERY}th is held out. Give more.")
    np.save(folder / IDS, np.concatenate(cut))
    np.save(folder / OFFSETS, np.cumsum([0, *map(len, cut)]))
    with atomic_write(folder / HELDOUT) as file:
        file.writelines(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in heldout)
    return {
        "documents": len(cut),
        "tokens": num_tokens,
        "documents_cut": num_cut,
        "tokens_after_cut": int(sum(map(len, cut))),
        "heldout_documents": len(heldout),
        "heldout_bytes": sum(len(document.encode("utf-8", errors="replace")) for document in heldout),
    }


class PaddedRows(PackedRows):
    """Rows of one sequence each, cut or padded."""

    def add(self, sequences: Sequences) -> None:
        real = np.arange(self.length) < sequences.lengths[:, None]  # (R, L)
        ids = np.full(real.shape, self.pad_id, self.dtype)
        labels = np.full(real.shape, IGNORE, self.dtype)
        # `sequences.ids` holds all sequences, one after another. `kept` is True for the first
        # tokens of each sequence, as many as fit into a row.
        kept = np.concatenate([np.arange(length) < self.length for length in sequences.lengths])
        ids[real], labels[real] = sequences.ids[kept], sequences.labels[kept]
        self.write_rows(ids, labels, np.where(real, 0, -1))


def padded_rows(corpus: Corpus, tokenizer: RustBPETokenizer) -> Path:
    """The baseline's rows in the format of our tensors, made where they are not there yet."""
    folder = corpus.folder / f"padded_{WINDOW_TOKENS}"
    if folder.is_dir():
        return folder
    building = folder.with_suffix(".partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    ids, offsets = np.load(corpus.folder / IDS), np.load(corpus.folder / OFFSETS)
    labels = np.append(ids[1:], 0)
    labels[offsets[1:] - 1] = IGNORE  # what follows is another document
    with PaddedRows(building, WINDOW_TOKENS, tokenizer) as writer:
        for start in range(0, len(offsets) - 1, BATCH_TEXTS):
            ends = offsets[start : start + BATCH_TEXTS + 1]
            part = slice(ends[0], ends[-1])
            writer.add(Sequences(ids[part], labels[part], np.diff(ends)))
        files = writer.finish()
    manifest = replace(
        corpus.tensor_facts(),
        max_length=WINDOW_TOKENS,
        rows=writer.num_rows,
        num_tokens=writer.num_tokens,
        num_targets=writer.num_tokens - writer.num_rows,
        validation=None,
        files=files,
    )
    manifest = replace(manifest, fingerprint=fingerprint([manifest.as_json()]))
    write_json(building / MANIFEST_FILE, manifest.as_json())
    building.rename(folder)
    return folder
