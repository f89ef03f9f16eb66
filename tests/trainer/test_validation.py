"""The validation loss is that of its rows, however many processes compute it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.train_run import parse_run
from dataset.lm_dataset import PretrainDataset
from tests.tiny_run import TinyRun
from trainer.facts import gather
from trainer.objectives import NextToken
from trainer.recipe import begin
from trainer.runtime import Runtime
from trainer.validation import validation_batches, validation_rows, validator


def test_without_validation_tensors_there_are_no_validation_rows(tiny: TinyRun) -> None:
    def never(path: object) -> None:
        raise AssertionError(path)

    assert validation_rows(never, tiny.data) is None  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("num_rows", "size"), [(1000, 32), (1000, 48), (1000, 128), (50, 32), (7, 3), (1, 4), (130, 65)]
)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_gpu_validates_in_batches_of_one_size_and_a_cpu_on_every_row(
    num_rows: int, size: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_all_processes() -> list[np.ndarray]:
        runtimes = [Runtime(torch.device("cpu"), torch.float32, rank, world_size) for rank in range(world_size)]
        return [batch for runtime in runtimes for batch in validation_batches(num_rows, size, runtime)]

    count = min(128, num_rows)
    wanted = np.linspace(0, num_rows - 1, count).round().astype(int)
    assert sorted(np.concatenate(of_all_processes())) == list(wanted)
    monkeypatch.setattr(Runtime, "validates_compiled", True)
    batches = of_all_processes()
    rows = np.concatenate(batches)
    if num_rows >= world_size:
        assert len({len(batch) for batch in batches}) == 1 and len(batches[0]) <= size
        assert len(rows) > count - len(batches) - world_size
    assert len(set(rows)) == len(rows) and min(rows) == 0 and max(rows) <= num_rows - 1


def test_a_validation_loss_is_that_of_the_rows_of_all_processes(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = gather(parse_run("pretrain", "", tiny.flags("pretrain", "--from_resume", "0")))
    training, rows = begin(facts), PretrainDataset(facts.tensors_path)

    def validated(rank: int, world_size: int) -> dict[str, float]:
        runtime = replace(training.runtime, rank=rank, world_size=world_size)
        return validator(NextToken(), rows, facts.tokenizer, runtime, batch_size=2)(training.model)

    alone = validated(0, 1)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(Runtime, "sum_over_ranks", lambda self, value: sums.append(value) or value)
    halves = [validated(rank, 2) for rank in (0, 1)]
    assert halves[0] != pytest.approx(halves[1])
    monkeypatch.setattr(Runtime, "sum_over_ranks", lambda self, value: sums[0] + sums[1])
    assert validated(0, 2) == validated(1, 2) == pytest.approx(alone)
