"""The vocabulary of a tokenizer: the text it is trained and measured on, and its statistics."""

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
from dataset.chat import render_conversation
from dataset.records.files import is_source, read_items
from dataset.records.keys import split_of
from dataset.records.lines import decode_item
from dataset.records.record import BadRecord, ChatRecord, PreferenceRecord, Record, TextRecord
from dataset.records.shapes import parse_record
from dataset.samples.files import SAMPLE_FILES, write_samples
from dataset.tokenizer import RustBPETokenizer, without_surrogates

SLICE_CHARACTERS = 1_000_000
"""Texts are encoded in slices of this size to be measured, so that a huge one needs little
memory."""
BATCH_CHARACTERS = 4_000_000
"""Characters that are measured at once, on all cores."""
NUM_SHOWN = 30
"""Longest and unused tokens that are listed."""


@dataclass(slots=True)
class Corpus:
    """Record files, read line by line as often as needed. No held-out record is trained on."""

    paths: list[Path]
    heldout_paths: list[Path] = field(default_factory=list)
    """Held-out records to measure on; of those with a `split`, the validation half."""
    leave_out_every: int = 0
    """Without such files: every so many lines one is held out; 0: none."""
    doc_cap: int = 0
    """Characters of a text that are trained on; 0: all."""
    max_chars: int = 0
    """Characters that are trained on in all, in the order of the files; 0: all."""

    num_texts: int = 0
    """What the last pass over the training texts gave."""
    num_characters: int = 0
    num_capped: int = 0
    """Texts cut at `doc_cap`."""
    reached_max_chars: bool = False
    unreadable: dict[tuple[Path, bool | None], Counter[str]] = field(default_factory=dict)
    """Why records of each file and pass could not be read, and how many; they are skipped."""

    def training_texts(self, description: str = "") -> Iterator[str]:
        """The texts to train on, with a progress bar where a description is given."""
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
    """Stands in for a tokenizer while a conversation is rendered, and keeps the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return []

    def encode_special(self, name: str) -> int:
        return 0


def texts_of(record: Record) -> list[str]:
    """What the stages encode of a record: its text, or what is rendered of its turns.

    Raises: UserError for a conversation that can't be rendered.
    """
    if isinstance(record, TextRecord):
        texts = [record.text]
    else:
        listener = _Listener()
        render_conversation(listener, record.messages if isinstance(record, ChatRecord) else record.chosen)
        texts = listener.texts
        if isinstance(record, PreferenceRecord):
            texts.append(record.rejected[-1]["content"])
    return [without_surrogates(text) for text in texts if text]


def default_inputs() -> list[Path]:
    """The mixed training files, else the user's sources, else the bundled samples."""
    processed = env_path("DATA_DIR", DATA_DIR)
    mixed = [path for data in DATA_STEMS if (path := processed / record_file(data)).exists()]
    sources = sorted(path for path in source_dir(processed).glob("[!.]*") if path.is_file() and is_source(path))
    if mixed or any(path.name != IDENTITY_SOURCE for path in sources):  # that one is put there by the mix
        return mixed or sources
    written = write_samples(sample_dir(processed), [name for name in SAMPLE_FILES if name != "preference"])
    return [*written.values(), IDENTITY_SAMPLE]


# --- statistics -----------------------------------------------------------------------------------

_HAN = regex.compile(r"\p{Han}")


def measure_vocabulary(
    tokenizer: RustBPETokenizer, heldout_texts: Iterable[str], training_texts: Iterable[str]
) -> dict[str, Any]:
    """How well a vocabulary serves: density on text it was not trained on, and what it is made of.

    `characters_per_token` and `bytes_per_token` are of the held-out texts; `unused_tokens` are
    those that neither they nor the training texts need.
    """
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
    whole = [token_id for token_id, word in words.items() if "\\x" not in word]  # torn characters would look long
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
