"""Prompts for learning from rewards: conversations whose last answer the model does not see.

Each conversation file is also a file of prompts. What the user says last is the prompt, and the
answer after it is the gold answer. A rule (evaluation/rules.py) or a reward of the user's reads the
record, never the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import fingerprint, sha256_file
from configs.paths import display, heldout_beside
from configs.schema import UserError
from configs.stage_table import PROMPTS
from dataset.records.files import numbered_records
from dataset.records.keys import split_of
from dataset.tensors import Manifest, SourceFacts
from dataset.tokenizer import RustBPETokenizer

VALIDATION = "validation"
"""The `split` of the held-out prompts that choose the weights."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready to be continued."""

    ids: tuple[int, ...]
    """The conversation up to where the model's answer begins."""
    record: Mapping[str, Any]
    """The record as it stands in the file. Its last turn is the gold answer."""

    @property
    def text(self) -> str:
        """What the user said last."""
        return str(self.record["conversations"][-2]["content"])


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The prompts of a file."""

    prompts: list[Prompt]
    records: int
    """Records of the file, of all splits."""
    too_long: int
    """Prompts that were left out, because they leave no room for an answer."""


def read_prompts(path: Path, tokenizer: RustBPETokenizer, *, longest: int, split: str | None = None) -> PromptFile:
    """The prompts of a file, in its order.

    Args: longest: tokens of the longest prompt that is kept. split: only records of this split;
    None: all.
    Raises: UserError for a record that is no conversation, with file and line.
    """
    prompts, records, too_long = [], 0, 0
    for number, record in numbered_records(path):
        records += 1
        if "conversations" not in record:
            raise UserError(
                f"{display(path)}:{number}: no conversation. Each line of a prompt file has `conversations`, with the gold "
                "answer as its last turn.",
                "提示文件的每一行都应是对话，最后一轮是标准答案",
            )
        if split is not None and split_of(record) != split:
            continue
        ids = tuple(tokenizer.render_for_completion(record["conversations"][:-1]))
        if len(ids) > longest:
            too_long += 1
            continue
        prompts.append(Prompt(ids, record))
    return PromptFile(prompts, records, too_long)


def validation_prompts(path: Path, tokenizer: RustBPETokenizer, *, longest: int) -> list[Prompt]:
    """The held-out prompts beside a file that choose the weights; none where there are none."""
    heldout = heldout_beside(path)
    return read_prompts(heldout, tokenizer, longest=longest, split=VALIDATION).prompts if heldout else []


def prompt_manifest(path: Path, tokenizer: RustBPETokenizer, *, max_length: int, longest: int) -> Manifest:
    """What a run must know of its prompts, in the form in which token tensors describe themselves.

    Args: max_length: tokens of prompt and answer. longest: of a prompt.
    Raises: UserError if the file has no prompt that leaves room for an answer.
    """
    found, heldout = read_prompts(path, tokenizer, longest=longest), heldout_beside(path)
    if not found.prompts:
        raise UserError(
            f"{display(path)}: no prompt of at most {longest} tokens among {found.records} records. Give another --data_path, "
            "a larger --max_seq_len, or a smaller --max_gen_len.",
            "没有可用的提示：请换数据，或调大 --max_seq_len",
        )
    sha256 = sha256_file(path)
    return Manifest(
        data=PROMPTS,
        max_length=max_length,
        vocab_size=tokenizer.get_vocab_size(),
        pad_id=tokenizer.end_of_text_id,
        tokenizer_sha256=tokenizer.sha256,
        source=SourceFacts(path=display(path), records=found.records, sha256=sha256),
        validation=None,
        rows=len(found.prompts),
        num_tokens=sum(len(prompt.ids) for prompt in found.prompts),
        # The validation prompts choose the weights, so the result depends on them too.
        fingerprint=fingerprint([sha256, sha256_file(heldout) if heldout else "", tokenizer.sha256, longest]),
        files={},
        dropped={"too long": found.too_long} if found.too_long else {},
    )
