"""What each sampling option does to the scores of one row, as pure functions on tensors.

The order is that of transformers: logit bias, repetition penalty, presence and frequency penalty,
n-grams; then temperature, top-k, top-p, min-p; then one draw. Each function sees one row, so the
company of a row can never change its result.

Shapes: V vocabulary, N ids. All tensors are on the CPU, scores and shares in float32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

HEAD = 256
"""Top-p looks among so many of the likeliest tokens first. Most often they reach p, and finding
them takes a tenth of the time of sorting a vocabulary of 6,400."""


# --- scores -> scores -----------------------------------------------------------------------------


def add_bias(scores: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Add a number to the scores of some tokens. Args: bias: (id, number). Returns: (V,)."""
    ids, numbers = zip(*bias, strict=True)
    return scores.index_add(0, torch.tensor(ids), torch.tensor(numbers))


def penalize_repetition(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Divide the scores of all tokens in `ids` (N,) by the penalty, or multiply those below 0, so
    that they become less likely (CTRL, arXiv:1909.05858). Once, however often a token is there.

    Returns: (V,).
    """
    old = scores[ids]  # (N,)
    # An id that is there twice is written twice, with the same number.
    return scores.scatter(0, ids, torch.where(old < 0, old * penalty, old / penalty))


def penalize_presence(scores: Tensor, ids: Tensor, *, presence: float, frequency: float) -> Tensor:
    """Subtract `presence` from the score of each token in `ids` (N,), and `frequency` as often as
    the token is there. The formula is that of OpenAI's API reference. Returns: (V,).
    """
    counts = torch.zeros_like(scores).scatter_add(0, ids, torch.ones(len(ids)))  # (V,)
    return scores - (frequency * counts + presence * (counts > 0))


def ban_repeated_ngrams(scores: Tensor, ids: Tensor, size: int) -> Tensor:
    """Exclude each token that would end an n-gram that `ids` (N,) already has.

    If no token would be left, all stay. Args: size: n, 1 or more. Returns: (V,).
    """
    left = scores.index_fill(0, ngram_ends(ids, size), -math.inf)
    return left if float(left.max()) > -math.inf else scores


def ngram_ends(ids: Tensor, size: int) -> Tensor:
    """The tokens that followed earlier copies of the last size - 1 ids, (N,) -> (at most N,)."""
    # Each place after which the last ids may stand is followed backwards, until it differs from
    # them. Most places differ at once, so the time hardly depends on the size.
    places = torch.arange(min(size - 1, len(ids)), len(ids))
    for back in range(1, size):
        if not len(places):
            break
        places = places[ids[places - back] == ids[len(ids) - back]]
    return ids[places]


def top_k_ids(scores: Tensor, k: int) -> Tensor:
    """The k likeliest tokens, and those as likely as the k-th, in the order of their ids.

    Returns: (N,). What comes after top-k looks at these tokens alone, which is faster.
    """
    least = scores.topk(min(k, len(scores))).values[-1]
    return (scores >= least).nonzero()[:, 0]


# --- shares: probabilities whose sum may be below 1 -----------------------------------------------


def keep_top_p(shares: Tensor, p: float) -> Tensor:
    """Exclude all tokens but the likeliest ones that reach p together (arXiv:1904.09751).

    The token that crosses p stays. Of equally likely tokens the lower ids stay.
    Args: shares: their sum is 1. Returns: (V,), 0 for what is excluded.
    """
    likeliest = shares.topk(min(HEAD, len(shares))).values
    reached = likeliest.cumsum(0, dtype=torch.float64)
    if float(reached[-1]) < p and len(likeliest) < len(shares):
        likeliest = shares.sort(descending=True).values
        reached = likeliest.cumsum(0, dtype=torch.float64)
    likeliest = likeliest[: int(torch.searchsorted(reached, p)) + 1]
    least = likeliest[-1]
    below = shares < least
    if int(below.count_nonzero()) + len(likeliest) < len(shares):
        # More tokens are as likely as the last one than there is room for.
        equal = (shares == least).nonzero()[:, 0]
        below = below.index_fill(0, equal[int((likeliest == least).count_nonzero()) :], True)
    return shares.masked_fill(below, 0)


def keep_min_p(shares: Tensor, min_p: float) -> Tensor:
    """Exclude all tokens less likely than min_p times the likeliest (arXiv:2407.01082).

    Returns: (V,), 0 for what is excluded.
    """
    return shares.masked_fill(shares < min_p * shares.max(), 0)


def draw(shares: Tensor, number: float) -> tuple[int, float] | None:
    """One token by the inverse of the cumulative distribution. A share of 0 is never drawn.

    Args: shares: need not sum to 1. number: in [0, 1).
    Returns: the token and its log-probability among the shares. None if a share is no number.
    """
    reached = shares.cumsum(0, dtype=torch.float64)
    total = float(reached[-1])
    if not 0 < total < math.inf:
        return None
    # The first token at which the sum goes beyond the point: the sum rises there, so its share is
    # not 0. There is one, because a float below 1 times the total is below the total, also after
    # rounding: 1 - 2^-53 takes more than half of the total's last place away.
    token = int(torch.searchsorted(reached, number * total, right=True))
    return token, math.log(float(shares[token]) / total)


# --- what the model itself says -------------------------------------------------------------------


def model_logprobs(scores: Tensor, token: int, k: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probabilities in nats by the model's own distribution, the softmax of its scores.

    Returns: that of the token; id and log-probability of the k likeliest tokens, the likeliest
    first, and of equally likely ones the lower id first.
    """
    # log p = score - log(sum of exp(score)), and the likeliest token shows what that sum is. This
    # way nothing underflows, and the softmax of a row has the same bits in any thread.
    most = float(scores.softmax(0, dtype=torch.float64).max())
    offset = math.log(most) - float(scores.max())
    top: list[tuple[int, float]] = []
    if k:
        values, places = scores.topk(min(k, scores.numel()))
        likely = scores >= values[-1]
        if int(likely.count_nonzero()) > k:  # which of the equal ones topk takes is not defined
            places = likely.nonzero()[:, 0]
            values = scores[places]
        order = sorted(zip(values.tolist(), places.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
        top = [(place, score + offset) for score, place in order[:k] if score > -math.inf]
    return float(scores[token]) + offset, top
