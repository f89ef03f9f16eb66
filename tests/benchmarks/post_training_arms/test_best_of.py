"""Best of n: the judge's choice beside the mean and the likeliest."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.post_training_arms import best_of as module
from benchmarks.post_training_arms.best_of import best_of
from configs.paths import TOKENIZER_DIR
from dataset.tokenizer import RustBPETokenizer
from inference.request import Request
from inference.sampling import Sampling
from model.weights import load_model
from tests.tiny_run import TinyRun, sum_record

TEXTS = ["5。", "6。", "7。", "7。"]
"""What each question gets: the sum is 7."""


class Judge:
    """Rewards the length of an answer's number, so that a fixed place wins."""

    def __init__(self, order: list[float]) -> None:
        self.order = order

    def score(self, ids: list[list[int]]) -> Tensor:
        """The same rewards for the answers of each question."""
        return torch.tensor(self.order * (len(ids) // len(self.order)))


@pytest.mark.parametrize(("order", "best"), [([0.0, 1.0, 2.0, 3.0], 1.0), ([3.0, 2.0, 1.0, 0.0], 0.0)])
def test_the_judges_choice_counts_beside_the_mean_of_all(
    trained: TinyRun, monkeypatch: pytest.MonkeyPatch, order: list[float], best: float
) -> None:
    tokenizer = RustBPETokenizer.from_directory(Path(TOKENIZER_DIR))

    class Scripted:
        """An engine that gives TEXTS."""

        def __init__(self, model: object, tokenizer: RustBPETokenizer) -> None:
            self.tokenizer = tokenizer

        def add(self, prompt: list[int], sampling: Sampling, n: int) -> list[Request]:
            """Answers that are finished at once."""
            requests = [
                Request(self.tokenizer, prompt, sampling, frozenset({self.tokenizer.assistant_end_id})) for _ in TEXTS
            ]
            for request, text in zip(requests, TEXTS, strict=True):
                for token in [*self.tokenizer.encode(text), self.tokenizer.assistant_end_id]:
                    request.append(token, None)
            return requests

        def run(self) -> None:
            """Nothing is left to do."""

    monkeypatch.setattr(module, "Engine", Scripted)
    policy = load_model(trained.path("sft"))[0].eval()
    records = [sum_record(3, 4), sum_record(2, 5)]
    found = best_of(Judge(order), policy, tokenizer, records, ("", ""), n=4, seed=0)  # type: ignore[arg-type]
    assert found["sampled"].value == 0.5 and found["best"].value == best and found["any"].value == 1.0
    assert found["gain"].value == pytest.approx(best - 0.5)
