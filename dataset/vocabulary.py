"""The vocabulary of a tokenizer: the text to train and measure it on, and its statistics."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from configs.paths import DATA_DIR, IDENTITY_SAMPLE, IDENTITY_SOURCE, env_path, sample_dir, source_dir
from configs.progress import progress_bar
from configs.schema import UserError
from configs.stage_table import DATA_STEMS, record_file
from dataset.chat import render_conversation, training_views
from dataset.records.files import is_source, read_items
from dataset.records.keys import split_of
from dataset.records.lines import decode_item
from dataset.records.record import BadRecord, ChatRecord, PreferenceRecord, Record, TextRecord
from dataset.records.shapes import parse_record
from dataset.samples.files import SAMPLE_FILES, write_samples
from dataset.tokenizer import RustBPETokenizer, without_surrogates

SLICE_CHARACTERS = 1_000_000
"""Texts are measured in slices of this size, so that a huge text needs little memory."""
BATCH_CHARACTERS = 4_000_000
"""Characters that are measured at once, on all cores."""
NUM_SHOWN = 30
"""How many of the longest tokens are listed, and of the unused ones."""


@dataclass(slots=True)
class Corpus:
    """The texts of record files, read anew in each pass. Held-out records are not trained on."""

    paths: list[Path]
    heldout_paths: list[Path] = field(default_factory=list)
    """Held-out records to measure on. A record's `split` must be validation, or missing."""
    leave_out_every: int = 0
    """If there are no such files: one line in so many is held out; 0: none."""
    doc_cap: int = 0
    """Characters of each text that are trained on; 0: all."""
    max_chars: int = 0
    """Characters of all texts together that are trained on, in the order of the files; 0: all."""

    num_texts: int = 0
    """Texts of the last pass over the training texts. The next three also belong to that pass."""
    num_characters: int = 0
    num_capped: int = 0
    """Texts cut at `doc_cap`."""
    reached_max_chars: bool = False
    """Whether the pass stopped at `max_chars`."""
    unreadable: dict[tuple[Path, bool | None], Counter[str]] = field(default_factory=dict)
    """(file, kind of pass) -> reason -> records that could not be read and were skipped."""

    def training_texts(self, description: str = "") -> Iterator[str]:
        """The texts to train on, with a progress bar if a description is given."""
        self.num_texts = self.num_characters = self.num_capped = 0
        self.reached_max_chars = False
        for text in self._texts(self.paths, {None, "train"}, description, heldout=False):
            if self.doc_cap and len(text) > self.doc_cap:
                self.num_capped += 1
                text = text[: self.doc_cap]
            if self.max_chars and self.num_characters + len(text) > self.max_chars:
                self.reached_max_chars = True
                text = text[: self.max_chars - self.num_characters]
            if text:
                self.num_texts += 1
                self.num_characters += len(text)
                yield text
            if self.reached_max_chars:
                return

    def heldout_texts(self) -> Iterator[str]:
        """The texts to measure on."""
        if self.heldout_paths:
            yield from self._texts(self.heldout_paths, {None, "validation"})
        elif self.leave_out_every:
            yield from self._texts(self.paths, {None, "train"}, heldout=True)

    def _texts(
        self, paths: list[Path], splits: set[str | None], description: str = "", heldout: bool | None = None
    ) -> Iterator[str]:
        """The texts of some files.

        Args: splits: values of `split` that a record may have. heldout: True takes only the lines
        that `leave_out_every` holds out, False only the others, None all lines.
        """
        num_bytes = sum(path.stat().st_size for path in paths if path.exists())
        with progress_bar(num_bytes, desc=description, unit="B", unit_scale=True, disable=not description) as bar:
            for path in paths:
                self.unreadable.pop((path, heldout), None)
                items = read_items(path, lambda block: bar.update(len(block)))
                for index, (_, item) in enumerate(items):
                    is_left_out = bool(self.leave_out_every) and index % self.leave_out_every == 0
                    if heldout is not None and is_left_out != heldout:
                        continue
                    try:
                        fields = decode_item(item, {})
                        texts = texts_of(parse_record(fields)) if split_of(fields) in splits else []
                    except (BadRecord, UserError) as error:
                        self.unreadable.setdefault((path, heldout), Counter())[str(error)] += 1
                        continue
                    yield from texts


class _Listener:
    """A stand-in for a tokenizer: it keeps the texts that it is told to encode."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return []

    def encode_special(self, name: str) -> int:
        return 0


def texts_of(record: Record) -> list[str]:
    """The texts of a record that the stages encode: its text, or the rendered texts of its turns.

    Raises: UserError for a conversation that can't be rendered.
    """
    if isinstance(record, TextRecord):
        texts = [record.text]
    else:
        # Rendering itself decides which texts are encoded, so we render, and listen.
        listener = _Listener()
        views = training_views(record.messages) if isinstance(record, ChatRecord) else [record.chosen]
        for view in views:
            render_conversation(listener, view)
        texts = listener.texts
        if isinstance(record, PreferenceRecord):
            texts.append(record.rejected[-1]["content"])  # the other turns are equal
    return [without_surrogates(text) for text in texts if text]


def default_inputs() -> list[Path]:
    """The files of the mix; without them the user's sources; without those the bundled samples."""
    processed = env_path("DATA_DIR", DATA_DIR)
    mixed = [path for data in DATA_STEMS if (path := processed / record_file(data)).exists()]
    sources = sorted(path for path in source_dir(processed).glob("[!.]*") if path.is_file() and is_source(path))
    if mixed or any(path.name != IDENTITY_SOURCE for path in sources):  # the mix itself wrote that one
        return mixed or sources
    written = write_samples(sample_dir(processed), [name for name in SAMPLE_FILES if name != "preference"])
    return [*written.values(), IDENTITY_SAMPLE]


# --- statistics -----------------------------------------------------------------------------------

_HAN = regex.compile(r"\p{Han}")


def measure_vocabulary(
    tokenizer: RustBPETokenizer, heldout_texts: Iterable[str], training_texts: Iterable[str]
) -> dict[str, Any]:
    """How good a vocabulary is: characters per token on held-out text, and which tokens it has.

    `characters_per_token` and `bytes_per_token` are measured on the held-out texts (None without
    any). `unused_tokens` are those that encode neither the held-out nor the training texts.
    """
    # Density is measured on held-out text only. A token counts as used if any text needs it.
    num_characters = num_bytes = num_tokens = 0
    used: set[int] = set()
    for batch in _batches(heldout_texts):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            used.update(ids)
            num_characters += len(text)
            num_bytes += len(text.encode("utf-8", "replace"))
            num_tokens += len(ids)
    for batch in _batches(training_texts):
        used.update(*tokenizer.encode_batch(batch))
    words = {token_id: tokenizer.id_to_token(token_id) for token_id in range(len(tokenizer.mergeable_ranks))}
    # A byte of a cut character is shown as \xe4, four characters, so it would look long.
    whole = [token_id for token_id, word in words.items() if "\\x" not in word]
    longest = sorted(whole, key=lambda token_id: (-len(words[token_id]), token_id))[:NUM_SHOWN]
    unused = [token_id for token_id in words if token_id not in used]
    return {
        "size": tokenizer.get_vocab_size(),
        "heldout": {"characters": num_characters, "bytes": num_bytes, "tokens": num_tokens},
        "characters_per_token": round(num_characters / num_tokens, 4) if num_tokens else None,
        "bytes_per_token": round(num_bytes / num_tokens, 4) if num_tokens else None,
        "share_of_han_tokens": round(sum(bool(_HAN.search(word)) for word in words.values()) / len(words), 4),
        "longest_tokens": [words[token_id] for token_id in longest],
        "unused_tokens": {"count": len(unused), "tokens": [words[token_id] for token_id in unused[:NUM_SHOWN]]},
    }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in slices, about BATCH_CHARACTERS at once."""
    batch: list[str] = []
    size = 0
    for text in texts:
        for start in range(0, len(text), SLICE_CHARACTERS):
            batch.append(text[start : start + SLICE_CHARACTERS])
            size += len(batch[-1])
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
