"""The next token: sampling obeys its limits."""

import pytest
import torch

from configs.schema import UserError
from inference.sampling import Sampling, choose


def test_top_k_and_top_p_leave_only_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    generator = torch.Generator().manual_seed(0)

    def seen(sampling: Sampling) -> set[int]:
        return {int(choose(logits, sampling, generator)) for _ in range(300)}

    assert seen(Sampling(temperature=1.0)) == {0, 1, 2, 3}
    assert seen(Sampling(temperature=1.0, top_k=2)) == {0, 1}
    assert seen(Sampling(temperature=1.0, top_p=0.75)) == {0, 1}
    assert seen(Sampling(temperature=1.0, top_p=0.01)) == {0}
    logits = torch.zeros(1, 4)
    assert len(seen(Sampling(temperature=1.0, top_p=0.5))) == 2  # two quarters reach 0.5, so no third one is taken


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-45},
        {"seed": 10**20},
        {"seed": -1},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"max_new_tokens": 0},
    ],
)
def test_sampling_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]


def test_scores_that_are_no_numbers_are_told_in_one_line() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="scores are NaN or infinite"):
            choose(torch.tensor([[0.0, value]]), Sampling(temperature=1.0), torch.Generator())
