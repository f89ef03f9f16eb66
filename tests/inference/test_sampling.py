"""The next token: each option does what its definition says, and a row is alone in any company."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import UserError
from inference.processors import draw
from inference.sampling import Choice, Row, Sampling, check_ids, choose, scores_not_finite

NAN, INFINITY = float("nan"), float("inf")


class Always:
    """A random stream that gives one number again and again."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


def row_of(sampling: Sampling, prompt: Sequence[int] = (), ids: Sequence[int] = (), number: float | None = None) -> Row:
    """A row in the middle of an answer. number: what its random stream gives."""
    row = Row(sampling, list(prompt), list(ids))
    if number is not None:
        row.random = Always(number)  # type: ignore[assignment]
    return row


def shares_of(logits: Sequence[float], row: Row) -> list[float]:
    """The probabilities of all tokens: each definition as it is written, slow and simple."""
    s, said = row.sampling, [*row.prompt, *row.ids]
    scores = [float(score) for score in logits]
    for token, bias in s.logit_bias:
        scores[token] += bias
    for token in set(said):
        scores[token] *= s.repetition_penalty if scores[token] < 0 else 1 / s.repetition_penalty
    for token in row.ids:
        scores[token] -= s.frequency_penalty
    for token in set(row.ids):
        scores[token] -= s.presence_penalty
    if n := s.no_repeat_ngram_size:
        there = {tuple(said[start : start + n]) for start in range(len(said) - n + 1)}
        banned = [t for t in range(len(scores)) if (*said[len(said) - n + 1 :], t) in there and len(said) >= n - 1]
        if len(banned) < len(scores):
            for token in banned:
                scores[token] = -INFINITY
    if not s.temperature:
        return [float(token == scores.index(max(scores))) for token in range(len(scores))]
    scores = [score / s.temperature for score in scores]
    if s.top_k:
        least = sorted(scores, reverse=True)[: s.top_k][-1]
        scores = [score if score >= least else -INFINITY for score in scores]
    shares = normalised([math.exp(score - max(scores)) for score in scores])
    reached, kept = 0.0, set()
    for token in sorted(range(len(shares)), key=lambda token: -shares[token]):
        if reached < s.top_p:
            kept.add(token)
        reached += shares[token]
    shares = normalised([share if token in kept else 0 for token, share in enumerate(shares)])
    return normalised([share if share >= s.min_p * max(shares) else 0 for share in shares])


def normalised(shares: list[float]) -> list[float]:
    """The same with the sum 1."""
    return [share / sum(shares) for share in shares]


def found_shares(logits: Tensor, row: Row) -> list[float]:
    """The probabilities that `choose` draws by, told by the log-probability of what it draws.

    Each draw is with the number at which the next token begins.
    """
    found, reached = [0.0] * len(logits), 0.0
    while reached < 1 - 1e-9:
        probe = row_of(replace(row.sampling, logprobs=0), row.prompt, row.ids, reached + 1e-12)
        logprob = choose(logits[None], [probe])[0].logprob
        assert logprob is not None and not found[logprob.id]
        found[logprob.id] = math.exp(logprob.sampled_logprob)
        reached += found[logprob.id]
    return found


# --- each option, by its definition ---------------------------------------------------------------

LOGITS = torch.tensor([1.0, -1.0, 0.5, 2.0, -0.25, 0.75, -2.0, 1.5])
PROMPT, IDS = [3, 1, 7, 3], [0, 2, 0, 6, 7]

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_k": 1},
    {"top_p": 0.7},
    {"top_p": 0.01},
    {"min_p": 0.3},
    {"min_p": 0.3, "temperature": 3.0},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.5},
    {"presence_penalty": 0.75},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 0.75},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"logit_bias": ((4, 2.5), (3, -100.0))},
    {"top_k": 5, "top_p": 0.8, "min_p": 0.2, "temperature": 1.5},
    {"repetition_penalty": 1.25, "presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": ((0, 1.0),)},
]


@pytest.mark.parametrize("values", OPTIONS, ids=str)
def test_an_option_changes_the_distribution_as_its_definition_says(values: dict[str, Any]) -> None:
    plain = row_of(Sampling(temperature=1.0), PROMPT, IDS)
    row = row_of(Sampling(**{"temperature": 1.0, **values}), PROMPT, IDS)
    found = found_shares(LOGITS, row)
    assert found == pytest.approx(shares_of(LOGITS.tolist(), row), abs=1e-5)
    assert found != pytest.approx(found_shares(LOGITS, plain), abs=1e-2)


def test_greedy_takes_the_highest_score_after_penalties_and_the_first_of_equal_ones() -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 4.0]])

    def token(**values: Any) -> int | None:
        return choose(logits, [row_of(Sampling(**values), [1], [2])])[0].id

    assert token() == 1
    assert token(repetition_penalty=2.0) == 3  # 0, 2.5, 2.5, 4
    assert token(presence_penalty=0.5) == 1
    assert token(logit_bias=((1, -0.5), (2, -0.5))) == 1  # 4.5 twice
    assert token(no_repeat_ngram_size=1) == 3
    assert token(logit_bias=((0, 7.0),)) == 0


def test_frequency_counts_each_time_and_presence_once_and_only_the_answer() -> None:
    row = row_of(Sampling(temperature=1.0, frequency_penalty=0.5, presence_penalty=1.0), [0, 0, 1], [1, 1, 2])
    shares = found_shares(torch.zeros(4), row)
    assert [math.log(share / shares[0]) for share in shares] == pytest.approx([0, -2, -1.5, 0], abs=1e-5)


def test_an_ngram_of_prompt_and_answer_does_not_come_again() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])

    def token(size: int, prompt: list[int], ids: list[int]) -> int | None:
        return choose(logits, [row_of(Sampling(no_repeat_ngram_size=size), prompt, ids)])[0].id

    assert token(2, [1, 3], [0, 1]) == 2
    assert token(2, [1, 3, 1, 2], [1]) == 1
    assert token(3, [0, 1, 3], [2, 1]) == 3  # (2, 1) is new
    assert token(3, [0, 1, 3], [0, 1]) == 2
    assert token(3, [3, 3], [3]) == 2
    assert token(3, [3], [3]) == 3  # too short to hold one
    assert token(10**9, [3, 3], [3]) == 3
    assert token(1, [], []) == 3


def test_if_every_token_is_banned_none_is() -> None:
    assert choose(torch.tensor([[0.0, 1.0]]), [row_of(Sampling(no_repeat_ngram_size=1), [0, 1])])[0].id == 1


def test_an_answer_that_grows_is_penalized_at_every_step() -> None:
    logits = torch.tensor([[0.0, 0.4, 0.3, 0.1]])
    row, said = row_of(Sampling(frequency_penalty=1.0), [1]), []
    for _ in range(6):
        token = choose(logits, [row])[0].id
        assert token is not None
        row.ids.append(token)
        said.append(token)
    assert said == [1, 2, 3, 0, 1, 2]


def test_of_equally_likely_tokens_top_k_keeps_all_and_top_p_as_many_as_it_needs() -> None:
    logits = torch.zeros(4)
    assert found_shares(logits, row_of(Sampling(temperature=1.0, top_k=2))) == [0.25] * 4
    assert found_shares(logits, row_of(Sampling(temperature=1.0, top_p=0.5))) == [0.5, 0.5, 0, 0]
    assert found_shares(logits, row_of(Sampling(temperature=1.0, top_p=0.51))) == pytest.approx([1 / 3] * 3 + [0])


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 1 - 1e-12])
def test_top_p_is_the_same_for_a_flat_vocabulary_that_has_to_be_sorted(top_p: float) -> None:
    logits = torch.randn(1500, generator=torch.Generator().manual_seed(3)) * 0.1
    for number in (0.0, 0.3, 0.77, 1 - 2**-53):
        row = row_of(Sampling(temperature=1.0, top_p=top_p, logprobs=0), number=number)
        logprob = choose(logits[None], [row])[0].logprob
        assert logprob is not None
        shares = shares_of(logits.tolist(), row)
        assert math.exp(logprob.sampled_logprob) == pytest.approx(shares[logprob.id], rel=1e-4)


# --- any options, any scores ----------------------------------------------------------------------

# Numbers that floats hold exactly, so that equal scores are equal in the reference too.
EIGHTHS = st.integers(-48, 48).map(lambda number: number / 8)


@st.composite
def rows_with_logits(pick: st.DrawFn) -> tuple[list[float], Row]:
    """Scores of a few tokens, and a row that asks for anything."""
    size = pick(st.integers(1, 12))
    token = st.integers(0, size - 1)
    sampling = Sampling(
        temperature=pick(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        top_k=pick(st.sampled_from([0, 0, 1, 2, 5, 100])),
        top_p=pick(st.sampled_from([1.0, 1.0, 0.03, 0.37, 0.81, 0.97])),
        min_p=pick(st.sampled_from([0.0, 0.0, 0.013, 0.21, 0.83])),
        repetition_penalty=pick(st.sampled_from([1.0, 0.5, 2.0])),
        presence_penalty=pick(st.sampled_from([0.0, -0.25, 1.5])),
        frequency_penalty=pick(st.sampled_from([0.0, -0.25, 0.5])),
        no_repeat_ngram_size=pick(st.integers(0, 4)),
        logit_bias=tuple(pick(st.dictionaries(token, EIGHTHS, max_size=3)).items()),
        logprobs=pick(st.sampled_from([None, 0, 3, 20])),
        seed=pick(st.integers(0, 2**62)),
    )
    return pick(st.lists(EIGHTHS, min_size=size, max_size=size)), row_of(
        sampling, pick(st.lists(token, max_size=8)), pick(st.lists(token, max_size=8))
    )


@given(rows_with_logits(), st.floats(0, 1, exclude_max=True))
@settings(max_examples=400, deadline=None)
def test_the_token_and_its_log_probabilities_are_those_of_the_slow_way(
    row_and_logits: tuple[list[float], Row], number: float
) -> None:
    logits, row = row_and_logits
    s = replace(row.sampling, logprobs=20)
    choice = choose(torch.tensor([logits]), [row_of(s, row.prompt, row.ids, number)])[0]
    assert choice.id is not None and choice.logprob is not None and choice.logprob.id == choice.id
    shares = shares_of(logits, row)
    assert shares[choice.id] > 0
    before = sum(shares[: choice.id])
    if s.temperature:
        assert before - 1e-5 <= number <= before + shares[choice.id] + 1e-5
        assert choice.logprob.sampled_logprob == pytest.approx(math.log(shares[choice.id]), abs=1e-5)
    else:
        assert choice.logprob.sampled_logprob == 0
    model = [score - math.log(sum(map(math.exp, logits))) for score in logits]
    assert choice.logprob.logprob == pytest.approx(model[choice.id], abs=1e-9)
    order = sorted(range(len(logits)), key=lambda token: -logits[token])  # sorted() leaves equal ones in order
    assert [token for token, _ in choice.logprob.top] == order[:20]
    assert [logprob for _, logprob in choice.logprob.top] == pytest.approx([model[t] for t in order[:20]], abs=1e-9)


def test_log_probabilities_are_given_as_many_as_asked_for() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    choices = [choose(logits, [row_of(Sampling(logprobs=k))])[0] for k in (None, 0, 2)]
    assert [choice.id for choice in choices] == [1, 1, 1]
    none, zero, two = (choice.logprob for choice in choices)
    assert none is None and zero is not None and zero.top == []
    assert two is not None and [token for token, _ in two.top] == [1, 3]
    assert two.top[0] == (1, two.logprob) == (1, zero.logprob)


def test_of_equally_likely_tokens_the_lower_ids_are_told() -> None:
    for ties in (50, 400):
        logits = torch.zeros(1, ties)
        logits[0, 30] = 1.0
        logprob = choose(logits, [row_of(Sampling(logprobs=4))])[0].logprob
        assert logprob is not None and [token for token, _ in logprob.top] == [30, 0, 1, 2]


def test_a_token_that_the_bias_forces_keeps_its_tiny_log_probability() -> None:
    logits, bias = torch.tensor([[0.0, -900.0, 800.0]]), ((1, 100.0), (2, -100.0))
    row = row_of(Sampling(temperature=1.0, logit_bias=bias, logprobs=3, min_p=0.5), number=0.5)
    assert choose(logits, [row])[0].logprob is not None
    assert choose(logits, [row])[0].logprob.top == [(2, 0.0), (0, -800.0), (1, -1700.0)]  # type: ignore[union-attr]


# --- the draw -------------------------------------------------------------------------------------


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Pearson's statistic. Its mean is the number of classes less 1."""
    num = sum(counts)
    return sum((count - num * share) ** 2 / (num * share) for count, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize("one_stream", [True, False], ids=["one stream", "seed after seed"])
def test_tokens_are_drawn_as_often_as_their_probabilities_say(one_stream: bool) -> None:
    """Also with one draw from each of many seeds: this is how n samples of a prompt are made."""
    shares = [0.05, 0.4, 0.1, 0.25, 0.2]
    logits, counts = torch.tensor([shares]).log(), [0] * 5
    stream = Row(Sampling(temperature=1.0, seed=7), [])
    for seed in range(4000):
        token = choose(logits, [stream if one_stream else Row(Sampling(temperature=1.0, seed=seed), [])])[0].id
        assert token is not None
        counts[token] += 1
    assert chi_square(counts, shares) < 18.5  # 4 degrees of freedom: more than this once in 1,000 seeds


@given(st.lists(st.sampled_from([0.0, 1e-45, 1e-30, 1e-9, 0.1, 0.3, 1.0]), min_size=1, max_size=9))
@settings(max_examples=300, deadline=None)
def test_a_draw_at_both_ends_gives_the_first_and_the_last_share_that_count(shares: list[float]) -> None:
    tensor = torch.tensor(shares)
    if not tensor.count_nonzero():
        assert draw(tensor, 0.0) is None
        return
    first, last = draw(tensor, 0.0), draw(tensor, 1 - 2**-53)
    assert first is not None and first[0] == int(tensor.nonzero()[0])
    assert last is not None and shares[last[0]] > 0 and sum(shares[last[0] + 1 :]) <= 1e-15 * sum(shares)


@pytest.mark.parametrize("number", [0.0, 5e-324, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("values", [{}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"no_repeat_ngram_size": 1}])
def test_at_both_ends_no_token_without_probability_is_drawn(number: float, values: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 7, 300, 1000):
        logits = torch.randn(size, generator=generator) * 2
        logits[0] = logits[-1] = -200.0  # a share of 0 in float32, at both ends of the vocabulary
        logits[size // 2] = 1.0
        row = row_of(Sampling(temperature=1.0, logprobs=0, **values), [0, size - 1], number=number)
        choice = choose(logits[None], [row])[0]
        assert choice.id is not None and choice.logprob is not None
        assert shares_of(logits.tolist(), row)[choice.id] > 1e-80
        assert math.isfinite(choice.logprob.sampled_logprob)


def test_a_row_takes_one_number_for_each_token_that_is_drawn() -> None:
    logits = torch.tensor([[0.0, 1.0]])
    for values, taken in (({"temperature": 1.0}, 3), ({"temperature": 1.0, "top_p": 0.9, "top_k": 1}, 3), ({}, 0)):
        row, same = Row(Sampling(**values), []), Row(Sampling(), [])  # type: ignore[arg-type]
        for _ in range(3):
            choose(logits, [row])
        for _ in range(taken):
            same.random.random()
        assert row.random.random() == same.random.random()


# --- a row is alone -------------------------------------------------------------------------------


@given(st.lists(rows_with_logits(), min_size=2, max_size=6), st.integers(0, 2**32), st.sampled_from([12, 50, 333]))
@settings(max_examples=100, deadline=None)
def test_a_row_is_chosen_alone_as_in_any_company_bit_by_bit(
    members: list[tuple[list[float], Row]], seed: int, vocab_size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(members), vocab_size, generator=generator) * 4
    samplings = [row.sampling for _, row in members]

    def rows() -> list[Row]:
        return [Row(sampling, row.prompt, row.ids) for sampling, (_, row) in zip(samplings, members, strict=True)]

    alone = [choose(logits[place : place + 1], [row])[0] for place, row in enumerate(rows())]
    assert choose(logits, rows()) == alone
    order = torch.randperm(len(members), generator=generator).tolist()
    shuffled = rows()
    assert choose(logits[order], [shuffled[place] for place in order]) == [alone[place] for place in order]
    logits[0, vocab_size // 2] = NAN
    assert choose(logits, rows()) == [Choice(None), *alone[1:]]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_vocabulary_is_chosen_alone_as_in_company(threads: int) -> None:
    """Above 32,768 numbers torch shares a sum among threads, and its last bits change."""
    logits = torch.randn(5, 70001, generator=torch.Generator().manual_seed(1)) * 3
    sampling = Sampling(temperature=1.0, logprobs=2)
    samplings = [sampling, replace(sampling, top_p=0.9), replace(sampling, top_k=40), Sampling(), sampling]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = choose(logits, [Row(one, []) for one in samplings])
        alone = [choose(logits[place : place + 1], [Row(one, [])])[0] for place, one in enumerate(samplings)]
    finally:
        torch.set_num_threads(before)
    assert together == alone


@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 2},
        {"repetition_penalty": 2.0},
        {"no_repeat_ngram_size": 1, "temperature": 1.0},
        {"logit_bias": ((0, 100.0),)},
        {"logprobs": 2},
    ],
    ids=str,
)
def test_a_row_with_scores_that_are_no_numbers_is_reported_and_its_company_is_not(
    value: float, values: dict[str, Any]
) -> None:
    """Wherever the number stands, also at a token that is banned."""
    good = torch.tensor([0.0, 1.0, 3.0, 2.0])
    company = choose(good[None], [Row(Sampling(temperature=0.7), [])])[0]
    for place in range(4):
        bad = good.clone()
        bad[place] = value
        rows = [Row(Sampling(temperature=0.7), []), Row(Sampling(**values), [2]), Row(Sampling(), [])]
        assert choose(torch.stack([good, bad, good]), rows) == [company, Choice(None), Choice(2)]
    assert choose(torch.full((1, 4), -INFINITY), [Row(Sampling(**values), [])]) == [Choice(None)]
    assert "scores are NaN or infinite" in scores_not_finite().line


def test_a_score_that_overflows_by_the_temperature_is_reported() -> None:
    row = Row(Sampling(temperature=1e-4), [])
    assert choose(torch.tensor([[3e38, 0.0]]), [row]) == [Choice(None)]
    greedy = Row(Sampling(repetition_penalty=1e-4), [0])
    assert choose(torch.tensor([[3e38, 0.0]]), [greedy]) == [Choice(None)]


def test_a_score_of_minus_infinity_is_never_chosen_nor_told() -> None:
    logits = torch.tensor([[-INFINITY, 0.0, 1.0]])
    for number in (0.0, 1 - 2**-53):
        row = row_of(Sampling(temperature=1.0, logprobs=5), number=number)
        choice = choose(logits, [row])[0]
        assert choice.id and choice.logprob is not None
        assert [token for token, _ in choice.logprob.top] == [2, 1]


def test_half_precision_scores_are_chosen_from_as_in_float32() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(5)).bfloat16()
    samplings = [Sampling(), Sampling(temperature=1.0, logprobs=1), Sampling(temperature=1.0, top_p=0.5), Sampling()]
    assert choose(logits, [Row(s, []) for s in samplings]) == choose(logits.float(), [Row(s, []) for s in samplings])


# --- the cost -------------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Which operations of torch were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def calls(logits: Tensor, samplings: Sequence[Sampling]) -> list[str]:
    """The operations that a choice needs."""
    rows = [Row(sampling, [1, 2], [3]) for sampling in samplings]
    with Calls() as counted:
        choose(logits, rows)
    return counted.names


def test_greedy_rows_cost_one_max_and_nothing_is_sorted_that_need_not_be() -> None:
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(2)) * 6
    assert calls(logits, [Sampling()] * 4) == ["max"]
    one, warm = calls(logits, [Sampling()] * 3 + [Sampling(temperature=1.0)]), [Sampling(temperature=1.0)] * 4
    assert one.count("softmax") + one.count("_softmax") == 1
    assert not {"sort", "topk"} & {*one, *calls(logits, warm)}
    assert calls(logits, [replace(s, top_k=5) for s in warm]).count("topk") == 4
    likely = calls(logits, [replace(s, top_p=0.9) for s in warm])
    assert likely.count("topk") == 4 and "sort" not in likely
    assert calls(logits * 0, [replace(s, top_p=0.9) for s in warm]).count("sort") == 4


# --- transformers ---------------------------------------------------------------------------------


def test_each_option_does_what_that_of_transformers_does() -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(4)
    cases = [
        ({"repetition_penalty": 1.3}, [process.RepetitionPenaltyLogitsProcessor(1.3)]),
        ({"no_repeat_ngram_size": 2}, [process.NoRepeatNGramLogitsProcessor(2)]),
        ({"no_repeat_ngram_size": 3}, [process.NoRepeatNGramLogitsProcessor(3)]),
        ({"logit_bias": ((3, 1.5), (7, -2.5))}, [process.SequenceBiasLogitsProcessor({(3,): 1.5, (7,): -2.5})]),
        ({"temperature": 0.7}, [process.TemperatureLogitsWarper(0.7)]),
        ({"top_k": 6}, [process.TopKLogitsWarper(6)]),
        ({"top_p": 0.8}, [process.TopPLogitsWarper(0.8)]),
        ({"min_p": 0.1}, [process.MinPLogitsWarper(0.1)]),
    ]
    # All at once, in the order that transformers' `generate` has.
    together = [cases[place] for place in (3, 0, 1, 4, 5, 6, 7)]
    cases.append(
        ({name: v for case, _ in together for name, v in case.items()}, [p for _, some in together for p in some])
    )
    for values, processors in cases:
        logits = torch.randn(20, generator=generator) * 2
        prompt = torch.randint(0, 20, (30,), generator=generator).tolist()
        ids = torch.randint(0, 20, (30,), generator=generator).tolist()
        scores = logits[None]
        for processor in processors:
            scores = processor(torch.tensor([prompt + ids]), scores)
        theirs = scores.softmax(dim=-1)[0].tolist()
        row = row_of(Sampling(**{"temperature": 1.0, **values}), prompt, ids)
        assert found_shares(logits, row) == pytest.approx(theirs, rel=1e-4), values


# --- nonsense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"temperature": -1.0},
        {"temperature": NAN},
        {"temperature": INFINITY},
        {"temperature": 1e-45},
        {"temperature": 10**400},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": NAN},
        {"top_k": True},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": NAN},
        {"min_p": -0.1},
        {"min_p": 1.0},
        {"min_p": NAN},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": NAN},
        {"repetition_penalty": INFINITY},
        {"presence_penalty": 2.1},
        {"presence_penalty": NAN},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": NAN},
        {"no_repeat_ngram_size": -1},
        {"no_repeat_ngram_size": 2.0},
        {"stop": ("",)},
        {"stop": "stop"},
        {"stop": (1,)},
        {"stop_token_ids": (-1,)},
        {"stop_token_ids": (2**31,)},
        {"stop_token_ids": 5},
        {"logit_bias": ((1, NAN),)},
        {"logit_bias": ((1, 100.5),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"logit_bias": {1: 1.0}},
        {"logit_bias": (1,)},
        {"seed": -1},
        {"seed": 10**20},
        {"seed": 0.5},
        {"logprobs": -1},
        {"logprobs": 21},
    ],
    ids=str,
)
def test_nonsense_is_refused_in_one_line_that_names_the_option(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))) as caught:
        Sampling(**values)
    assert caught.value.chinese and "\n" not in caught.value.line


def test_the_ends_of_each_range_are_accepted() -> None:
    lowest = Sampling(temperature=1e-4, top_p=1e-9, min_p=0, repetition_penalty=1e-4, presence_penalty=-2, logprobs=0)
    highest = Sampling(temperature=1, top_p=1, min_p=0.999, frequency_penalty=2, logprobs=20, seed=2**62)
    assert (lowest.logprobs, highest.temperature) == (0, 1)
    assert Sampling(stop=("。", "\n"), stop_token_ids=(0,), logit_bias=((0, -100), (1, 100))).stop == ("。", "\n")


def test_ids_that_the_vocabulary_does_not_have_are_refused() -> None:
    sampling = Sampling(stop_token_ids=(99,), logit_bias=((99, 1.0),))
    check_ids(sampling, 100)
    for one in (replace(sampling, stop_token_ids=()), replace(sampling, logit_bias=())):
        with pytest.raises(UserError, match="99: must be a whole number from 0 to 98"):
            check_ids(one, 99)
