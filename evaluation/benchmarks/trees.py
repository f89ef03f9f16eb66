"""How likely continuations are to a model, where each token that several share is read once.

The prompts of a group begin alike (an instruction, five examples), and so do the continuations of
one question. The common beginning of a group is read first, and its keys and values are kept. Each
question is then a row: what its sequences share, and after it their different ends, as the branches
of a tree. A token sees the common beginning, the shared part, and its own branch; its position is
that in its own sequence. So every token gets the likelihood that it has in its sequence alone.

Shapes: B rows, T tokens of a row, P tokens of the common beginning, N targets, C hidden size,
H query heads, K key/value heads, D head size.
"""

import math
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.progress import Progress, progress_bar
from evaluation.likelihood import SCORE_TOKENS, batches
from inference.conversation import context_tokens
from model.attention import Plan, product_attention
from model.device import compute_dtype
from model.likelihood import nats_of_logits
from model.model_minillm import Context, MiniLLM, rope_tables

MOST_ROWS = 64
CHUNK_TOKENS = 1024
"""Targets whose logits exist at once."""
LEAST_SHARED = 8
"""A common beginning of fewer tokens is not worth a cache of its own."""
MOST_TOKENS = 16384
"""Tokens of a batch on any device: all scores of a block exist at once."""


@dataclass(frozen=True)
class TokenSequence:
    """A context and one continuation, as token ids."""

    ids: tuple[int, ...]
    num_targets: int
    """So many of the last ids are the continuation."""


@dataclass
class Reading:
    """How much was read, and how fast."""

    tokens: int = 0
    """Tokens that went through the network."""
    tokens_alone: int = 0
    """Tokens that would have, had each sequence been read by itself."""
    seconds: float = 0.0
    cut: int = 0
    """Sequences whose beginning was cut off, because they are longer than the model's context."""


@dataclass
class _Row:
    """One question as a tree."""

    number: int
    """Of the question."""
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    """0 for the shared part, then the number of the branch."""
    targets: list[tuple[int, int, int]] = field(default_factory=list)
    """(place that predicts, id, sequence) of each target."""


@torch.inference_mode()
def continuation_nats(
    model: MiniLLM,
    questions: Sequence[Sequence[TokenSequence]],
    groups: Sequence[Hashable],
    *,
    label: str,
    reading: Reading | None = None,
) -> list[list[float]]:
    """Log-probability of each continuation of each question, in nats.

    Args: groups: one for each question; those of a group share their beginning. label: name of the
    progress bar. reading: gets what was read.
    """
    reading = Reading() if reading is None else reading
    started = time.perf_counter()
    longest = context_tokens(model)
    result: list[list[float]] = [[] for _ in questions]
    by_group: dict[Hashable, list[int]] = defaultdict(list)
    kept: list[list[TokenSequence]] = []
    for number, sequences in enumerate(questions):
        kept.append([_cut(sequence, longest) for sequence in sequences])
        cut = sum(len(sequence.ids) > longest + 1 for sequence in sequences)
        reading.cut += cut
        reading.tokens_alone += sum(len(sequence.ids) - 1 for sequence in kept[-1])
        # A sequence that lost its beginning no longer begins as its group does.
        by_group[("cut", number) if cut else ("whole", groups[number])].append(number)
    with progress_bar(len(questions), desc=label, unit="items", leave=False) as bar:
        for numbers in by_group.values():
            _score_group(model, kept, numbers, result, reading, bar)
    reading.seconds += time.perf_counter() - started
    return result


def _cut(sequence: TokenSequence, longest: int) -> TokenSequence:
    """The end of a sequence that fits; its last token is never an input."""
    return TokenSequence(sequence.ids[-(longest + 1) :], min(sequence.num_targets, longest))


def _score_group(
    model: MiniLLM,
    questions: Sequence[Sequence[TokenSequence]],
    numbers: Sequence[int],
    result: list[list[float]],
    reading: Reading,
    bar: Progress,
) -> None:
    """Score the questions of one group: their common beginning once, then batches of rows."""
    everything = [sequence for number in numbers for sequence in questions[number]]
    shared = common_beginning(everything)
    start = len(shared) if len(shared) >= LEAST_SHARED and len(numbers) > 1 else 0
    cache = Beginning(model, shared[:start])
    reading.tokens += start
    rows = [_row(number, questions[number], start) for number in numbers]
    most = min(SCORE_TOKENS[model.device.type], MOST_TOKENS)
    for batch in batches([len(row.ids) for row in rows], MOST_ROWS, most):
        chosen = [rows[place] for place in batch]
        reading.tokens += sum(len(row.ids) for row in chosen)
        for row, nats in zip(chosen, _batch_nats(model, cache, chosen, questions), strict=True):
            result[row.number] = nats
        bar.update(len(chosen))


def common_beginning(sequences: Sequence[TokenSequence]) -> tuple[int, ...]:
    """The ids with which all sequences begin, up to the token before the first target."""
    # The last context token stays outside: the first target of each row is predicted there.
    length = min(len(sequence.ids) - sequence.num_targets - 1 for sequence in sequences)
    equal = num_shared([sequence.ids for sequence in sequences])
    return sequences[0].ids[: max(0, min(length, equal))]


def num_shared(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many ids all sequences begin with."""
    # What the first and the last in alphabetical order share, all between them share too.
    low, high = min(sequences), max(sequences)
    most = min(len(low), len(high))
    return next((place for place in range(most) if low[place] != high[place]), most)


def _row(number: int, sequences: Sequence[TokenSequence], start: int) -> _Row:
    """A question as a tree. Args: start: tokens of the common beginning."""
    row = _Row(number)
    inputs = [sequence.ids[start:-1] for sequence in sequences]
    stem = num_shared(inputs)
    row.ids += inputs[0][:stem]
    row.positions += range(start, start + stem)
    row.branches += [0] * stem
    for place, (sequence, own) in enumerate(zip(sequences, inputs, strict=True)):
        offset = len(row.ids) - stem
        row.ids += own[stem:]
        row.positions += range(start + stem, start + len(own))
        row.branches += [place + 1] * (len(own) - stem)
        for target in range(len(sequence.ids) - sequence.num_targets, len(sequence.ids)):
            before = target - 1 - start
            row.targets.append((before if before < stem else before + offset, sequence.ids[target], place))
    return row


class Beginning:
    """Keys and values of the tokens that all rows of a group begin with."""

    def __init__(self, model: MiniLLM, ids: Sequence[int]) -> None:
        self.length = len(ids)
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each block, (1, K, P, D)."""
        if ids:
            tokens = torch.tensor([list(ids)], device=model.device)
            causal = torch.ones(self.length, self.length, dtype=torch.bool, device=model.device).tril()
            _forward(model, tokens, torch.arange(self.length, device=model.device)[None], causal[None], self._keep)

    def _keep(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        self.layers.append((k, v))
        return product_attention(q, k, v, bias)

    def hidden(self, model: MiniLLM, ids: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        """The output of the network for rows that follow.

        Args: ids, positions (B, T). allowed (B, T, T). Returns: (B, T, C).
        """
        if not self.length:
            return _forward(model, ids, positions, allowed, product_attention)
        B, T = ids.shape
        seen = torch.ones(B, T, self.length, dtype=torch.bool, device=ids.device)
        layers = iter(self.layers)

        def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            keys, values = (part.expand(B, -1, -1, -1) for part in next(layers))
            return product_attention(q, torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2), bias)

        return _forward(model, ids, positions, torch.cat((seen, allowed), dim=2), attend)


def _forward(model: MiniLLM, ids: Tensor, positions: Tensor, allowed: Tensor, attend: object) -> Tensor:
    """The network with its own positions and its own attention; blocks come in their order.

    Args: allowed (B, T, S): which query may look at which key. Returns: (B, T, C), normalised.
    """
    x = model.model.embed_tokens(ids)  # (B, T, C)
    cos, sin = (table[:, None] for table in rope_tables(positions, model.config))  # (B, 1, T, D/2)
    bias = torch.zeros(allowed.shape, dtype=compute_dtype(x), device=ids.device).masked_fill_(~allowed, -math.inf)
    context = Context(cos, sin, Plan(attend, bias[:, None]))  # type: ignore[arg-type]
    for block in model.model.layers:
        x, _ = block(x, context)
    return model.model.norm(x)


def _batch_nats(
    model: MiniLLM, cache: Beginning, rows: Sequence[_Row], questions: Sequence[Sequence[TokenSequence]]
) -> Iterator[list[float]]:
    """Log-probabilities of the sequences of each row."""
    B, T = len(rows), max(len(row.ids) for row in rows)
    ids, positions, branches = (torch.zeros(B, T, dtype=torch.long) for _ in range(3))
    for place, row in enumerate(rows):
        for table, values in ((ids, row.ids), (positions, row.positions), (branches, row.branches)):
            table[place, : len(values)] = torch.tensor(values, dtype=torch.long)
    ids, positions, branches = (table.to(model.device) for table in (ids, positions, branches))
    causal = torch.ones(T, T, dtype=torch.bool, device=model.device).tril()
    allowed = causal & ((branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None]))  # (B, T, T)
    hidden = cache.hidden(model, ids, positions, allowed)  # (B, T, C)

    places = [(number, *target) for number, row in enumerate(rows) for target in row.targets]
    columns = torch.tensor(places, device=model.device)  # (N, 4): row, place, id, sequence
    picked = hidden[columns[:, 0], columns[:, 1]][None]  # (1, N, C)
    every = torch.arange(len(places), device=model.device)
    nats = nats_of_logits(model.logits, picked, columns[None, :, 2], every, chunk_tokens=CHUNK_TOKENS).cpu().double()
    sums = [[0.0] * len(questions[row.number]) for row in rows]
    for (number, _, _, sequence), value in zip(places, nats.tolist(), strict=True):
        sums[number][sequence] -= value
    yield from sums
