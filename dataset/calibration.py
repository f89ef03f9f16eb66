"""Training text as token ids, for rounding weights by what they compute on it (model/gptq.py).

Shapes: B rows, T tokens of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.artifacts import sha256_file
from configs.paths import display
from configs.schema import UserError
from configs.stage_table import DATA_STEMS
from dataset.chat import training_views
from dataset.lm_dataset import PretrainDataset, SFTDataset
from dataset.records.files import bad_line, numbered_records
from dataset.records.keys import split_of
from dataset.records.record import ChatRecord, PreferenceRecord
from dataset.records.shapes import parse_record
from dataset.tensors import read_manifest
from dataset.tokenizer import RustBPETokenizer

CALIBRATION_TOKENS = 65536
"""Tokens that are read. docs/results.md compares numbers of them."""
LONGEST_ROW = 512
"""Tokens of a row that is made of records. Longer rows would only take longer."""
HELD_OUT = "Give training text: weights that are fitted to held-out text would look better on it than they are."
HELD_OUT_CHINESE = "这是留出文本：请用训练文本校准，否则评测会偏高"


@dataclass(frozen=True)
class CalibrationText:
    """Rows as a training step has them: several documents or conversations each."""

    input_ids: Tensor
    """(B, T) int64."""
    document_ids: Tensor
    """(B, T) int64: a token sees only its own document. -1: padding."""
    sha256: str
    """Hash of the record file that the text is from."""


def calibration_text(
    path: Path, tokenizer: RustBPETokenizer, *, row_tokens: int, num_tokens: int = CALIBRATION_TOKENS
) -> CalibrationText:
    """Rows of training text, about `num_tokens` tokens of it, or all if there are fewer.

    Args: path: token tensors of documents or conversations, of which rows are taken at equal
    distances; or a record file, which is read from its beginning until there is enough. The mix
    writes records in random order. row_tokens: the longest row that the model was trained on.
    Raises: UserError when it is held-out text, made with another tokenizer, of pairs, or too short.
    """
    if path.is_dir():
        return _of_tensors(path, tokenizer, num_tokens)
    return _of_records(path, tokenizer, min(row_tokens, LONGEST_ROW), num_tokens)


def _of_tensors(path: Path, tokenizer: RustBPETokenizer, num_tokens: int) -> CalibrationText:
    """Rows of a tensor folder."""
    manifest = read_manifest(path)
    if manifest.split:
        raise UserError(f"{display(path)}: held-out text. {HELD_OUT}", HELD_OUT_CHINESE)
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(
            f"{display(path)}: made with another tokenizer ({manifest.tokenizer_sha256[:8]}) than the weights "
            f"({tokenizer.sha256[:8]}). Give the record file with --calibration.",
            "张量由另一个分词器生成：请改用记录文件",
        )
    kinds = {kind.data: kind for kind in (PretrainDataset, SFTDataset)}
    if manifest.data not in kinds:
        raise UserError(
            f"{display(path)}: tensors of {manifest.data}. Give those of {' or '.join(kinds)} with --calibration, made "
            f"by: python scripts/export_embeddings.py {DATA_STEMS[PretrainDataset.data]}.",
            "张量类型不对：请用文档或对话的张量",
        )
    rows = kinds[manifest.data](path)
    count = min(len(rows), max(1, num_tokens // manifest.max_length))
    batch = rows.batch(np.linspace(0, len(rows) - 1, count).round().astype(np.int64))
    return CalibrationText(batch["input_ids"], batch["document_ids"], manifest.source.sha256)


def _of_records(path: Path, tokenizer: RustBPETokenizer, length: int, num_tokens: int) -> CalibrationText:
    """Records end to end, cut into rows."""
    ids: list[int] = []
    owners: list[int] = []
    for owner, record in enumerate(_encoded(path, tokenizer)):
        ids += record
        owners += [owner] * len(record)
        if len(ids) >= num_tokens:
            break
    count = len(ids) // length
    if not count:
        raise UserError(
            f"{display(path)}: {len(ids)} tokens. Give --calibration a file with at least {length}, better "
            f"{CALIBRATION_TOKENS:,}.",
            "校准文本太短：请换一个更大的训练文件",
        )
    shaped = torch.tensor([ids, owners])[:, : count * length].view(2, count, length)
    return CalibrationText(shaped[0], shaped[1] - shaped[1, :, :1], sha256_file(path))


def _encoded(path: Path, tokenizer: RustBPETokenizer) -> Iterator[list[int]]:
    """The ids of each record, as training sees it: of a pair, the chosen conversation.

    Raises: UserError at a held-out or a bad record.
    """
    for number, fields in numbered_records(path):
        if split_of(fields) not in (None, "train"):
            raise UserError(f"{display(path)}:{number}: a held-out record. {HELD_OUT}", HELD_OUT_CHINESE)
        record = parse_record(fields)
        try:
            if isinstance(record, ChatRecord):
                yield from (tokenizer.render_conversation(view)[0] for view in training_views(record.messages))
            elif isinstance(record, PreferenceRecord):
                yield tokenizer.render_conversation(record.chosen)[0]
            else:
                yield [tokenizer.get_bos_token_id(), *tokenizer.encode(record.text), tokenizer.end_of_text_id]
        except UserError as error:  # a conversation that the format can't hold
            raise bad_line(f"{display(path)}:{number}", error) from None
