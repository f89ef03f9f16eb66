"""Are greedy answers those of transformers' `generate`, token by token?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from configs.schema import UserError
from dataset.records.files import read_records
from dataset.tokenizer import RustBPETokenizer
from inference.engine import Engine
from inference.loading import OpenModel
from inference.other_programs import Transformers
from inference.sampling import Sampling
from inference.verify import NEAR_TIE, verification_texts

LENGTHS = (16, 32, 48, 64)
"""Tokens of prompts. transformers reads those of one length together, so that it fills nothing."""
NEW_TOKENS = 64
TEXT_TOKENS = 400_000
"""Tokens of text that prompts are cut from at random."""


@dataclass(frozen=True)
class Parity:
    """What was compared."""

    answers: int
    equal: int
    gaps: tuple[float, ...]
    """Of answers that differ: how far the two best logits are apart at the first difference."""

    @property
    def near_ties(self) -> int:
        """Answers that differ at a near tie, where rounding alone decides."""
        return sum(gap < NEAR_TIE for gap in self.gaps)

    def __str__(self) -> str:
        others = sorted(gap for gap in self.gaps if gap >= NEAR_TIE)
        told = f"; gaps of the others: {', '.join(f'{gap:.1e}' for gap in others)}" if others else ""
        return (
            f"{self.equal} of {self.answers} answers equal, {self.near_ties} differ at a near tie, "
            f"{len(others)} otherwise{told}"
        )


def text_ids(tokenizer: RustBPETokenizer, text: Path | None) -> list[int]:
    """Tokens to cut prompts from: documents of a file with a field `text`, else bundled texts.

    Raises: UserError where there is too little text.
    """
    texts = (
        verification_texts(tokenizer)
        if text is None
        else (record["text"] for record in read_records(text) if isinstance(record.get("text"), str))
    )
    ids: list[int] = []
    for one in texts:
        ids += tokenizer.encode(one)
        if len(ids) >= TEXT_TOKENS:
            break
    if len(ids) <= max(LENGTHS):
        raise UserError(f"{text}: no documents with a field `text`. Give a JSONL file of such.", "没有 text 字段的文档")
    return ids


def prompts_of(ids: Sequence[int], count: int) -> list[list[int]]:
    """So many prompts, a quarter of each length."""
    draw = random.Random(0)
    starts = [draw.randrange(len(ids) - max(LENGTHS)) for _ in range(count)]
    return [list(ids[start : start + LENGTHS[number % len(LENGTHS)]]) for number, start in enumerate(starts)]


@torch.no_grad()
def compare(opened: OpenModel, folder: Path, prompts: Sequence[list[int]], batch: int) -> Parity:
    """Both programs answer. Args: folder: the same model for transformers. batch: answers at
    once."""
    engine = Engine(opened.model, opened.tokenizer, max_batch_size=batch)
    # All at once: prompts of every length come and go beside each other.
    requests = [engine.add(prompt, Sampling(max_new_tokens=NEW_TOKENS))[0] for prompt in prompts]
    engine.run()
    ours = [request.ids for request in requests]
    reader, theirs = Transformers(folder), dict[int, list[int]]()
    for length in LENGTHS:
        numbers = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
        for part in (numbers[start : start + batch] for start in range(0, len(numbers), batch)):
            rows = torch.tensor([prompts[number] for number in part])
            theirs |= dict(zip(part, reader.greedy(rows, NEW_TOKENS), strict=True))
    differing = [number for number in range(len(prompts)) if ours[number] != theirs[number]]
    gaps = [gap_of(reader, prompts[number], ours[number], theirs[number]) for number in differing]
    return Parity(len(prompts), len(prompts) - len(differing), tuple(gaps))


def gap_of(reader: Transformers, prompt: list[int], ours: list[int], theirs: list[int]) -> float:
    """How far the two best logits are apart where two answers part."""
    shorter = min(len(ours), len(theirs))
    common = next((place for place in range(shorter) if ours[place] != theirs[place]), shorter)
    logits: Tensor = reader.scores(torch.tensor([prompt + ours[:common]]))[0, -1]
    best = logits.topk(2).values
    return float(best[0] - best[1])
