"""Generation: batches of ragged prompts equal single ones, and sampling obeys its limits."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from inference import generate as generation
from inference.generate import generate
from inference.sampling import Sampling
from model.model_minillm import MiniLLM
from tests.model.test_model_minillm import TINY, busy_model
from tests.peak_memory import PeakMemory


@pytest.fixture(scope="module")
def model() -> MiniLLM:
    """A small model with lively weights."""
    return busy_model(TINY)


def continuation(model: MiniLLM, prompts: list[list[int]], stop_ids: set[int], sampling: Sampling) -> list[list[int]]:
    """Generated ids of each prompt."""
    return torch.stack(list(generate(model, prompts, stop_ids, sampling)), dim=1).tolist()


def test_ragged_prompts_side_by_side_continue_as_each_alone(model: MiniLLM) -> None:
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    sampling = Sampling(max_new_tokens=12)
    together = continuation(model, prompts, set(), sampling)
    assert together == [continuation(model, [prompt], set(), sampling)[0] for prompt in prompts]


def test_long_prompts_are_read_in_parts_with_the_same_answer(model: MiniLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, sampling = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]], Sampling(max_new_tokens=6)
    at_once = continuation(model, prompts, set(), sampling)
    for tokens in (1, 6, 12):
        monkeypatch.setattr(generation, "PREFILL_TOKENS", tokens)
        assert continuation(model, prompts, set(), sampling) == at_once


def test_memory_of_a_long_prompt_is_that_of_a_part(model: MiniLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for tokens in (64, 1 << 20):
        monkeypatch.setattr(generation, "PREFILL_TOKENS", tokens)
        with PeakMemory() as peak:
            next(generate(model, [list(range(1, 40)) * 16] * 2, set(), Sampling(max_new_tokens=1)))
        peaks.append(peak.num_bytes)
    assert peaks[0] < peaks[1] / 4


def test_greedy_generation_takes_the_likeliest_token_of_the_full_forward(model: MiniLLM) -> None:
    ids = [3, 1, 4, 1, 5]
    for token in continuation(model, [ids], set(), Sampling(max_new_tokens=8))[0]:
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids = [*ids, token]


def test_generation_stops_at_a_stop_token_and_at_the_limit(model: MiniLLM) -> None:
    free = continuation(model, [[1, 2, 3]], set(), Sampling(max_new_tokens=9))[0]
    assert len(free) == 9
    stopped = continuation(model, [[1, 2, 3]], {free[3]}, Sampling(max_new_tokens=9))[0]
    assert stopped == free[: free.index(free[3]) + 1]


def test_an_answer_has_ended_where_a_stop_token_came_and_not_at_the_limit(model: MiniLLM) -> None:
    free = continuation(model, [[1, 2, 3]], set(), Sampling(max_new_tokens=9))[0]

    class Numbers:
        assistant_end_id, end_of_text_id = free[3], -1

        def decode(self, ids: Sequence[int]) -> str:
            return " ".join(map(str, ids))

    length = free.index(free[3])
    ended = generation.answer(model, Numbers(), [[1, 2, 3]], Sampling(max_new_tokens=9))
    assert ended == [generation.Answer(" ".join(map(str, free[:length])), True, length)]
    cut = generation.answer(model, Numbers(), [[1, 2, 3]], Sampling(max_new_tokens=length))
    assert cut == [replace(ended[0], ended=False)]


def test_one_seed_gives_one_sample_and_another_seed_another(model: MiniLLM) -> None:
    def sample(seed: int) -> list[list[int]]:
        return continuation(model, [[1, 2, 3]], set(), Sampling(max_new_tokens=30, temperature=1.5, seed=seed))

    assert sample(1) == sample(1) != sample(2)
