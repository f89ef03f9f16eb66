"""How likely held-out text is to a model: loss, perplexity, bits per byte.

Bits per byte, everywhere in this project: the negative log-likelihood of the targets that stand for
text, in bits, over the UTF-8 bytes of these targets. Special tokens, such as the end of a text,
have no bytes and are left out here; the loss in nats a token counts them. Bytes do not depend on
the tokenizer, so bits per byte can be compared between tokenizers.

Shapes: B rows, T tokens, N targets, V vocabulary.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.progress import progress_bar
from configs.schema import UserError
from dataset.chat import Message, training_views
from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from evaluation.intervals import Metric, exponential, ratio
from model.likelihood import nats_of_logits, target_nats
from model.model_minillm import MiniLLM
from model.quantize import QuantizedEmbedding

SCORE_BATCH = 32
"""Most rows scored at once."""
SCORE_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65536}
"""Kind of device -> most tokens scored at once, padding included. More would not be faster, and
each takes memory in every layer."""
CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once. It is the same on every device and never changes, because the
last bit of a score may depend on it."""

Row = tuple[list[int], list[int]]
"""Input ids, and the label of each: the id that follows it if that is a target, else IGNORE."""


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Bits per byte of targets that stand for text: their nats over their bytes, in bits."""
    return nats / math.log(2) / num_bytes


def token_bytes(tokenizer: RustBPETokenizer) -> Tensor:
    """UTF-8 bytes that each token stands for, (V,) int64; 0 for special tokens."""
    sizes = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.long)
    for token, token_id in tokenizer.mergeable_ranks.items():
        sizes[token_id] = len(token)
    return sizes


@dataclass(frozen=True)
class Text:
    """Token ids of a record, and which of them are targets."""

    ids: list[int]
    mask: list[int]
    """1 for a target, 0 for a given token; as long as `ids`."""
    cluster: Hashable = None
    """What counts once in an interval; None: the record itself."""


@dataclass(frozen=True)
class Scored:
    """Negative log-likelihood of the targets of one record, in nats."""

    nats: float
    num_tokens: int
    """Targets."""
    text_nats: float
    """Nats of those targets that stand for text."""
    num_bytes: int
    """UTF-8 bytes of the same."""
    cluster: Hashable = None


def windows(ids: Sequence[int], mask: Sequence[int], length: int) -> Iterator[Row]:
    """Cut a record into rows of at most `length` inputs. Each token but the first is a label once.

    The last input of a row predicts the first input of the next row.
    """
    for start in range(0, max(1, len(ids) - 1), length):
        inputs = list(ids[start : start + length])
        following, are_targets = ids[start + 1 : start + length + 1], mask[start + 1 : start + length + 1]
        labels = [token if is_target else IGNORE for token, is_target in zip(following, are_targets, strict=True)]
        yield inputs[: len(labels)], labels


@torch.inference_mode()
def row_nats(
    model: MiniLLM, rows: Sequence[Row], batch_size: int, label: str, sizes: Tensor | None = None
) -> list[tuple[float, float]]:
    """Negative log-likelihood of the targets of each row, summed, in nats.

    Rows of about the same length run together.
    Args: batch_size: most rows at once. label: name of the progress bar. sizes: bytes of each
    token, (V,); without it every token counts as text.
    Returns: for each row the nats of all its targets, and of those that have bytes.
    """
    device = model.device
    sizes = torch.ones(model.config.vocab_size, dtype=torch.long) if sizes is None else sizes
    result = [(0.0, 0.0)] * len(rows)
    with progress_bar(len(rows), desc=label, unit="rows", leave=False) as bar:
        for numbers in batches([len(inputs) for inputs, _ in rows], batch_size, SCORE_TOKENS[device.type]):
            # Pad shorter rows at the end. This is safe: attention looks only backwards, so real
            # tokens never see the padding, and the label of padding is IGNORE.
            longest = max(len(rows[number][0]) for number in numbers)
            inputs = torch.zeros(len(numbers), longest, dtype=torch.long)
            labels = torch.full((len(numbers), longest), IGNORE)
            for place, number in enumerate(numbers):
                row_inputs, row_labels = rows[number]
                inputs[place, : len(row_inputs)] = torch.tensor(row_inputs)
                labels[place, : len(row_labels)] = torch.tensor(row_labels)
            hidden, _ = model.hidden_states(inputs.to(device))
            places = (labels.flatten() != IGNORE).nonzero()[:, 0]  # (N,)
            targets = labels.flatten()[places]  # (N,)
            where = (labels.to(device), places.to(device))
            if isinstance(model.model.embed_tokens, QuantizedEmbedding):
                nats = nats_of_logits(model.logits, hidden, *where, chunk_tokens=CHUNK_TOKENS)  # (N,)
            else:
                nats = target_nats(hidden, model.output_weight, *where, chunk_tokens=CHUNK_TOKENS)  # (N,)
            nats = nats.cpu().double()  # on the CPU, because MPS has no float64
            # Add up the nats of each row: once of all its targets, once of those with bytes.
            owners, is_text = places // longest, sizes[targets] > 0
            sums = torch.zeros(2, len(numbers), dtype=torch.float64)
            sums[0].index_add_(0, owners, nats)
            sums[1].index_add_(0, owners, nats * is_text)
            for number, (whole, text) in zip(numbers, sums.T.tolist(), strict=True):
                result[number] = (whole, text)
            bar.update(len(numbers))
    return result


def batches(lengths: Sequence[int], most_rows: int, most_tokens: int) -> Iterator[list[int]]:
    """Numbers of the rows that run together, shortest rows first.

    A batch has as many rows as both limits allow once all are padded to its longest; at least one.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        # Rows come sorted, so the next one would be the longest of the batch.
        if batch and (len(batch) == most_rows or (len(batch) + 1) * lengths[number] > most_tokens):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def score(
    model: MiniLLM, texts: Sequence[Text], sizes: Tensor, *, length: int, label: str, batch_size: int = SCORE_BATCH
) -> list[Scored]:
    """Likelihood of each record, in their order.

    Args: sizes: bytes of each token, (V,) (`token_bytes`). length: tokens of one row.
    """
    rows, owners = [], []  # owners: the number of the record that a row is cut from
    for number, text in enumerate(texts):
        for row in windows(text.ids, text.mask, length):
            rows.append(row)
            owners.append(number)
    sums = [[0.0, 0.0, 0, 0] for _ in texts]  # nats, nats of text, targets, bytes
    for owner, (_, labels), (nats, text_nats) in zip(
        owners, rows, row_nats(model, rows, batch_size, label, sizes), strict=True
    ):
        targets = [token for token in labels if token != IGNORE]
        for place, value in enumerate((nats, text_nats, len(targets), int(sizes[targets].sum()))):
            sums[owner][place] += value
    return [
        Scored(nats, int(tokens), text_nats, int(num_bytes), text.cluster)
        for (nats, text_nats, tokens, num_bytes), text in zip(sums, texts, strict=True)
    ]


def likelihood_metrics(scored: Sequence[Scored]) -> dict[str, Metric]:
    """Loss in nats a target, perplexity, and bits per byte. Raises: UserError without targets."""
    kept = [one for one in scored if one.num_tokens]
    if not kept:
        raise UserError(
            "the held-out file has no text to score. Give another --data_path.", "没有可评测的文本：请换 --data_path"
        )
    clusters = [number if one.cluster is None else one.cluster for number, one in enumerate(kept)]
    loss = ratio(
        [one.nats for one in kept], [one.num_tokens for one in kept], sum(one.num_tokens for one in kept), clusters
    )
    return {"loss": loss, "perplexity": exponential(loss), "bits_per_byte": bits_metric(kept)}


def bits_metric(scored: Sequence[Scored]) -> Metric:
    """Bits per byte of records; `n` counts bytes."""
    clusters = [number if one.cluster is None else one.cluster for number, one in enumerate(scored)]
    sizes = [one.num_bytes for one in scored]
    return ratio([one.text_nats / math.log(2) for one in scored], sizes, sum(sizes), clusters)


def raw_text(tokenizer: RustBPETokenizer, text: str, cluster: Hashable = None) -> Text:
    """A document: the tokens of its text and its end are targets."""
    ids = [tokenizer.get_bos_token_id(), *tokenizer.encode(text), tokenizer.end_of_text_id]
    return Text(ids, [0] + [1] * (len(ids) - 1), cluster)


def chat_texts(tokenizer: RustBPETokenizer, messages: Sequence[Message], cluster: Hashable = None) -> list[Text]:
    """A conversation: what the assistant says, and the end of each of its turns, are targets.

    With thoughts it is several texts, as in training (`training_views`).
    """
    rendered = [tokenizer.render_conversation(view) for view in training_views(messages)]
    return [Text(ids, mask, cluster) for ids, mask in rendered if any(mask)]
