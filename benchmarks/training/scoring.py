"""Bits per byte of both arms, by one function over the same windows of the same documents.

Shapes: B windows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from evaluation.likelihood import bits_per_byte as bits_of_nats
from evaluation.likelihood import windows

Window = tuple[list[int], list[int]]
"""Inputs, and the id that follows each."""


def text_windows(tokenizer: RustBPETokenizer, texts: Sequence[str], length: int) -> tuple[list[Window], int]:
    """The windows of all texts, and the bytes that their labels stand for.

    A text's first token is predicted from <|bos|>. A later window starts from the last token of the
    one before, and sees no more of it. So each token of each text is a label once; the end of a
    text, which has no bytes, is none.
    """
    found: list[Window] = []
    for ids in tokenizer.encode_batch(list(texts)):
        row = [tokenizer.get_bos_token_id(), *ids]
        found += [window for window in windows(row, [0] + [1] * len(ids), length) if window[1]]
    return found, sum(len(text.encode("utf-8", errors="replace")) for text in texts)


@torch.inference_mode()
def summed_nats(
    logits: Callable[[Tensor], Tensor], rows: Sequence[Window], *, device: torch.device, batch_size: int
) -> float:
    """Negative log-likelihood of all labels in nats, from logits in float32.

    Args: logits: maps ids (B, T) to (B, T, V).
    """
    # Windows of a batch are padded to the longest: alike ones together need the least padding.
    order = sorted(rows, key=lambda row: len(row[0]))
    total = 0.0
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        longest = len(part[-1][0])
        inputs = torch.zeros(len(part), longest, dtype=torch.long)
        labels = torch.full_like(inputs, IGNORE)
        for place, (ids, following) in enumerate(part):
            inputs[place, : len(ids)] = torch.tensor(ids)
            labels[place, : len(ids)] = torch.tensor(following)
        shown = logits(inputs.to(device)).float().flatten(0, 1)
        targets = labels.flatten().to(device)
        total += F.cross_entropy(shown, targets, ignore_index=IGNORE, reduction="sum").item()
    return total


def bits_per_byte(
    logits: Callable[[Tensor], Tensor],
    tokenizer: RustBPETokenizer,
    texts: Sequence[str],
    *,
    length: int,
    device: torch.device,
) -> tuple[float, int]:
    """Bits per byte of texts in windows of `length` tokens, and the bytes scored."""
    rows, num_bytes = text_windows(tokenizer, texts, length)
    nats = summed_nats(logits, rows, device=device, batch_size=8 if device.type == "cpu" else 64)
    return bits_of_nats(nats, num_bytes), num_bytes
