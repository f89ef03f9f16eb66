"""Record to token ids and labels: which tokens of a document, a conversation or a pair are targets.

Each record becomes one sequence (a document, a conversation) or two (the sides of a pair). A
conversation with thoughts becomes one for each question that is answered with a thought. A token
that the model is trained to predict is a target. Rendering a record also says which tokens are
targets. The label at a token is the next token's id if that token is a target, else -100.

Shapes: T tokens, S sequences.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from configs.paths import display
from configs.schema import UserError
from dataset.chat import Message, training_views
from dataset.records.files import bad_line
from dataset.records.foreign_marks import without_foreign_marks
from dataset.records.lines import Item, decode_item
from dataset.records.record import BadRecord, ChatRecord, LeftOut, PreferenceRecord
from dataset.records.shapes import parse_record
from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer

Batch = list[tuple[int, Item]]
"""Lines of a file with their numbers."""
Sequenced = tuple[np.ndarray, np.ndarray]
"""Ids of a sequence (T,), and which of them are targets, bool (T,). The first token never is one,
because there is nothing before it to predict it from."""


def token_dtype(tokenizer: RustBPETokenizer) -> np.dtype:
    """The smallest type that holds all ids and IGNORE."""
    return np.dtype(np.int16 if tokenizer.get_vocab_size() <= np.iinfo(np.int16).max else np.int32)


@dataclass(frozen=True, slots=True)
class Sequences:
    """Token sequences end to end."""

    ids: np.ndarray
    """(T,)"""
    labels: np.ndarray
    """(T,): the next token's id if that token is a target, else IGNORE."""
    lengths: np.ndarray
    """(S,), in tokens."""

    @property
    def starts(self) -> np.ndarray:
        """Where each sequence begins, (S,)."""
        return np.cumsum(self.lengths) - self.lengths


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a batch of records became."""

    sequences: Sequences
    """Documents, or conversations (one for each view: dataset/chat.py), or the sides of pairs:
    chosen, rejected, chosen, rejected ..."""
    counts: Mapping[str, int]
    """`records`; `truncated` ones; `marked` ones (dataset/records/foreign_marks.py); `num_targets`;
    and `num_bytes`: UTF-8 bytes of the targets. A special token has no bytes."""
    dropped: Mapping[str, int]
    """Reason -> records that gave no sequence."""
    error: UserError | None = None
    """Set when a record is bad. Then the rest of this object is empty."""


class Dropped(Exception):
    """A record that teaches nothing.

    The message is the reason, by which the records are counted.
    """


@dataclass(frozen=True)
class RecordEncoder:
    """Turns records of one kind of data into token ids and labels. It can be sent to a process."""

    data: str
    """Documents, conversations or pairs (configs/stage_table.py)."""
    source: Path
    tokenizer: RustBPETokenizer
    max_length: int
    """Conversations are cut to this many tokens. Documents are never cut."""
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
        """The sequences of a batch of records, with counts. A bad record sets `error`."""
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
        joined, targets = _joined(kept, self._dtype)
        counts["num_targets"] = len(targets)
        counts["num_bytes"] = int(self.token_bytes[targets].sum())
        return Encoded(joined, counts, dropped)

    @cached_property
    def _dtype(self) -> np.dtype:
        return token_dtype(self.tokenizer)

    def _sequences(self, fields: Mapping[str, Any]) -> tuple[list[Sequenced], bool]:
        """The sequences of a record, and whether anything was cut off.

        Raises: Dropped when no target is left within `max_length`, or the two sides of a pair are
        equal there. BadRecord when it can't be read, or is of another kind of data.
        """
        if self.data == "documents":
            return [self._document(fields)], False
        record = parse_record(fields)
        if self.data == "conversations":
            if not isinstance(record, ChatRecord):
                raise BadRecord("no conversation")
            whole = [self._conversation(view) for view in training_views(record.messages)]
        else:
            if not isinstance(record, PreferenceRecord):
                raise BadRecord("no preference pair")
            whole = self._pair(record)
        # A cut may remove all targets of a side, or the difference between the two sides of a pair.
        cut = [(ids[: self.max_length], is_target[: self.max_length]) for ids, is_target in whole]
        if self.data == "conversations":  # of several views, those that still have targets
            cut = [(ids, is_target) for ids, is_target in cut if is_target.any()]
        if not cut or not all(is_target.any() for _, is_target in cut):
            raise Dropped(f"no answer within {self.max_length} tokens")
        if self.data == "pairs" and np.array_equal(cut[0][0], cut[1][0]):
            raise Dropped(f"both answers equal within {self.max_length} tokens")
        return cut, any(len(ids) > self.max_length for ids, _ in whole)

    def _document(self, fields: Mapping[str, Any]) -> Sequenced:
        """A text. Every token but the first is a target, also the end."""
        text = fields.get("text")
        if not isinstance(text, str) or not text.strip():
            # No `text`: a record of another shape, such as a conversation, gives its plain text.
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
        """A conversation. The tokens of every assistant turn are targets, also its end."""
        ids, mask = self.tokenizer.render_conversation(messages)
        if self.tokenizer.chat_format.begins_conversations:  # with <|bos|>
            ids, mask = ids[1:], mask[1:]
        if self.bos_token is not None:
            ids, mask = [self.tokenizer.encode_special(self.bos_token), *ids], [0, *mask]
        if self.append_eos:
            ids, mask = [*ids, self.tokenizer.end_of_text_id], [*mask, 0]
        return np.array(ids, self._dtype), np.array(mask, np.bool_)

    def _pair(self, record: PreferenceRecord) -> list[Sequenced]:
        """Both sides of a pair. Only the last answer has targets; the tokens before it are equal.

        Raises: BadRecord when the two sides answer different questions.
        """
        sides = []
        prompts = []
        for messages in (record.chosen, record.rejected):
            ids, is_target = self._conversation(messages)
            # Rendered alone, the messages before the answer are the beginning of the whole, but for
            # an <|endoftext|> that closes them.
            prompt, _ = self._conversation(messages[:-1])
            length = len(prompt) - self.append_eos
            is_target[:length] = False
            sides.append((ids, is_target))
            prompts.append(ids[:length])
        if not np.array_equal(prompts[0], prompts[1]):
            raise BadRecord("chosen and rejected answer different questions")
        return sides


def _is_marked(text: Any) -> bool:
    """Whether a text holds marks of other chat formats, which are taken out."""
    return isinstance(text, str) and without_foreign_marks(text)[1] > 0


def _joined(sequences: list[Sequenced], dtype: np.dtype) -> tuple[Sequences, np.ndarray]:
    """Sequences end to end with their labels, and the ids of all targets."""
    ids = np.concatenate([np.empty(0, dtype), *(ids for ids, _ in sequences)])
    is_target = np.concatenate([np.empty(0, np.bool_), *(target for _, target in sequences)])
    # A label is the next token's id, so labels are the ids moved one place to the left. The last
    # token of a sequence gets no label, because the first token of the next one is no target.
    labels = np.full_like(ids, IGNORE)
    np.copyto(labels[:-1], ids[1:], where=is_target[1:])
    lengths = np.array([len(ids) for ids, _ in sequences], np.int64)
    return Sequences(ids, labels, lengths), ids[is_target]
