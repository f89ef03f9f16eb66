"""How the next token is chosen: the settings of a request, and the choice for a batch of rows.

Shapes: B rows, V vocabulary.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from configs.schema import LARGEST_COUNT, LARGEST_SEED, UserError
from inference.processors import (
    add_bias,
    ban_repeated_ngrams,
    draw,
    keep_min_p,
    keep_top_p,
    model_logprobs,
    penalize_presence,
    penalize_repetition,
    top_k_ids,
)

LOWEST_TEMPERATURE = 1e-4
"""Logits divided by a lower temperature overflow. It would give only the likeliest token anyway.
The same bound holds for the repetition penalty, which divides too."""
MOST_LOGPROBS = 20
"""As in OpenAI's API."""
LARGEST_BIAS = 100.0
LARGEST_PENALTY = 2.0


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the answer to a request is made. Raises: UserError for a value out of range."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0: greedy, the likeliest token."""
    top_k: int = 0
    """Sample among the k likeliest; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest whose probabilities reach p (nucleus sampling,
    arXiv:1904.09751)."""
    min_p: float = 0.0
    """Sample among those that are at least min_p times as likely as the likeliest
    (arXiv:2407.01082)."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of the prompt and of the answer become less likely (arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that is in the answer."""
    frequency_penalty: float = 0.0
    """The same, as often as the token is there."""
    no_repeat_ngram_size: int = 0
    """No n tokens in a row stand twice in prompt and answer; 0: they may."""
    stop: tuple[str, ...] = ()
    """The answer ends before such a text."""
    stop_token_ids: tuple[int, ...] = ()
    """The answer ends at such a token, as it does at the model's own end tokens."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(id, number): added to the logit of a token."""
    seed: int = 42
    logprobs: int | None = None
    """None: none. k: log-probabilities of the token and of the k likeliest."""

    def __post_init__(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1, LARGEST_COUNT)
        _whole("top_k", self.top_k, 0, LARGEST_COUNT)
        _whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, LARGEST_COUNT)
        _whole("seed", self.seed, 0, LARGEST_SEED)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MOST_LOGPROBS)
        _number("temperature", self.temperature, 0.0, LARGEST_COUNT)
        if 0 < self.temperature < LOWEST_TEMPERATURE:
            raise UserError(
                f"temperature = {self.temperature}: must be 0 (greedy), or a number of {LOWEST_TEMPERATURE} or more.",
                f"只能是 0（取最可能的词元）或不小于 {LOWEST_TEMPERATURE} 的数",
            )
        _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise UserError(f"top_p = {self.top_p}: must be above 0 and at most 1.", "必须大于 0 且不超过 1")
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.min_p == 1:
            raise UserError(f"min_p = {self.min_p}: must be 0 or more and below 1.", "必须不小于 0 且小于 1")
        _number("repetition_penalty", self.repetition_penalty, LOWEST_TEMPERATURE, LARGEST_COUNT)
        _number("presence_penalty", self.presence_penalty, -LARGEST_PENALTY, LARGEST_PENALTY)
        _number("frequency_penalty", self.frequency_penalty, -LARGEST_PENALTY, LARGEST_PENALTY)
        self._check_lists()

    def _check_lists(self) -> None:
        """Raises: UserError for a stop text, a token id or a bias that can't be meant."""
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f"stop = {self.stop!r}: must be texts that are not empty.", "停止文本必须是非空字符串")
        if not isinstance(self.stop_token_ids, tuple):
            raise UserError(f"stop_token_ids = {self.stop_token_ids!r}: must be token ids.", "必须是词元编号")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, LARGEST_COUNT)
        if not isinstance(self.logit_bias, tuple) or not all(
            isinstance(pair, tuple) and len(pair) == 2 for pair in self.logit_bias
        ):
            raise UserError(
                f"logit_bias = {self.logit_bias!r}: must be pairs of a token id and a number.", "必须是词元编号和数值"
            )
        for token, bias in self.logit_bias:
            _whole("logit_bias: token", token, 0, LARGEST_COUNT)
            _number(f"logit_bias of token {token}", bias, -LARGEST_BIAS, LARGEST_BIAS)
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise UserError(
                f"logit_bias = {self.logit_bias!r}: has a token twice. Give each token once.", "同一个词元出现了两次"
            )


def check_ids(sampling: Sampling, vocab_size: int) -> None:
    """Raises: UserError for a token id that the vocabulary doesn't have."""
    for name, ids in (
        ("stop_token_ids", sampling.stop_token_ids),
        ("logit_bias: token", [token for token, _ in sampling.logit_bias]),
    ):
        for token in ids:
            _whole(name, token, 0, vocab_size - 1)


def _whole(name: str, value: object, lowest: int, highest: int) -> None:
    """Raises: UserError unless the value is a whole number in this range."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise UserError(
            f"{name} = {value!r}: must be a whole number from {lowest} to {highest}.",
            f"必须是 {lowest} 到 {highest} 的整数",
        )


def _number(name: str, value: object, lowest: float, highest: float) -> None:
    """Raises: UserError unless the value is a number in this range. NaN is in none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value <= highest:
        raise UserError(
            f"{name} = {value!r}: must be a number from {lowest} to {highest}.", f"必须是 {lowest} 到 {highest} 的数"
        )


# --- the choice -----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Row:
    """What the choice of a row's next token depends on, beside its logits."""

    sampling: Sampling
    prompt: Sequence[int]
    ids: list[int] = field(default_factory=list)
    """Generated so far. The caller appends what it keeps and removes nothing; `choose` reads."""
    random: Random = field(init=False)
    """The row's own stream: one number for each token that is drawn. So a sample depends on the
    row's seed and logits, never on its company."""
    edited: bool = field(init=False)
    """Whether the settings change scores before the temperature does."""
    plain: bool = field(init=False)
    """Whether the token with the highest score is all that is asked for."""
    _said: array = field(init=False)
    """Prompt and answer. It grows with `ids`. A tensor over an array costs nothing; one made of a
    list of 2,000 ids at each token would cost more than the rest of the choice."""

    def __post_init__(self) -> None:
        s = self.sampling
        penalized = s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
        self.random = Random(s.seed)
        self.edited = penalized or bool(s.logit_bias) or s.no_repeat_ngram_size > 0
        self.plain = s.temperature == 0 and s.logprobs is None and not self.edited
        self._said = array("q", self.prompt)

    def said(self) -> tuple[Tensor, Tensor]:
        """Ids of prompt and answer, and of the answer alone: int64, read at once and not kept."""
        prompt = len(self.prompt)
        self._said.extend(self.ids[len(self._said) - prompt :])
        both = torch.frombuffer(self._said, dtype=torch.int64) if self._said else torch.empty(0, dtype=torch.int64)
        return both, both[prompt:]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities of one generated token, in nats."""

    id: int
    logprob: float
    """By the model's own distribution: the softmax of its logits."""
    sampled_logprob: float
    """By the distribution that it was drawn from; 0 for a greedy choice."""
    top: list[tuple[int, float]]
    """Id and log-probability of the likeliest tokens by the model's own distribution."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one row."""

    id: int | None
    """None: the row's scores are NaN or infinite (`scores_not_finite` is the message)."""
    logprob: TokenLogprob | None = None
    """If the row's settings ask for it."""


def choose(logits: Tensor, rows: Sequence[Row]) -> list[Choice]:
    """The next token of each row: (B, V) on any device -> B choices.

    A choice depends on its own row alone, to the last bit. A batch of plain rows costs one max.
    Others are computed on the CPU, row after row: a row fits the cache, its bits can't depend on
    the size of the batch, and sorting and drawing on MPS have limits that change with its releases.
    A token whose score is minus infinity is never chosen.
    """
    largest, likeliest = logits.max(dim=-1)  # (B,), (B,): NaN if the row has one, and the first place of the largest
    tokens = [
        token if math.isfinite(score) else None
        for _, score, token in zip(rows, largest.tolist(), likeliest.tolist(), strict=True)
    ]
    if all(row.plain for row in rows):
        return [Choice(token) for token in tokens]
    scores = logits.float().cpu()
    return [
        Choice(token) if row.plain or token is None else _choose_one(scores[place], row)
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True))
    ]


def scores_not_finite() -> UserError:
    """The error for a choice without a token."""
    return UserError(
        "the model's scores are NaN or infinite: its weights are damaged. Give another --weight, or make them again: "
        "bash scripts/run.sh.",
        "模型输出不是有限的数：权重已损坏，请重新训练",
    )


def _choose_one(scores: Tensor, row: Row) -> Choice:
    """The next token of a row that is not plain, from its finite scores (V,)."""
    sampling = row.sampling
    edited = _edit(scores, row) if row.edited else scores
    if sampling.temperature == 0:
        largest, place = edited.max(dim=0)
        drawn = (int(place), 0.0) if math.isfinite(float(largest)) else None
    else:
        drawn = _sample(edited / sampling.temperature, row)
    if drawn is None:
        return Choice(None)
    token, sampled_logprob = drawn
    if sampling.logprobs is None:
        return Choice(token)
    logprob, top = model_logprobs(scores, token, sampling.logprobs)
    return Choice(token, TokenLogprob(token, logprob, sampled_logprob, top))


def _sample(scores: Tensor, row: Row) -> tuple[int, float] | None:
    """Draw after top-k, top-p and min-p. Args: scores (V,), divided by the temperature.

    Returns: what `draw` returns.
    """
    sampling, number, ids = row.sampling, row.random.random(), None
    if sampling.top_k:
        ids = top_k_ids(scores, sampling.top_k)
        scores = scores[ids]  # (N,): from here on a token is a place in ids
    shares = scores.softmax(dim=0)
    if sampling.top_p < 1:
        shares = keep_top_p(shares, sampling.top_p)
    if sampling.min_p:
        shares = keep_min_p(shares, sampling.min_p)
    drawn = draw(shares, number)
    if drawn is None or ids is None:
        return drawn
    place, logprob = drawn
    return int(ids[place]), logprob


def _edit(scores: Tensor, row: Row) -> Tensor:
    """Bias, penalties and banned n-grams, in the order of transformers, (V,) -> (V,)."""
    sampling = row.sampling
    if sampling.logit_bias:
        scores = add_bias(scores, sampling.logit_bias)
    both, answer = row.said()
    if sampling.repetition_penalty != 1:
        scores = penalize_repetition(scores, both, sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        scores = penalize_presence(
            scores, answer, presence=sampling.presence_penalty, frequency=sampling.frequency_penalty
        )
    if sampling.no_repeat_ngram_size:
        scores = ban_repeated_ngrams(scores, both, sampling.no_repeat_ngram_size)
    return scores
