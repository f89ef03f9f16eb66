"""Each pair keeps its own log-probabilities of the frozen model, which are computed once."""

import math

import numpy as np
import pytest
import torch

from configs.schema import UserError
from tests.tiny_run import TinyRun, killed_in_step
from trainer.losses import PairLogps
from trainer.reference import WithReference


def test_each_pair_keeps_its_own_reference() -> None:
    class Pairs:
        def __len__(self) -> int:
            return 3

        def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.tensor(indices)}

    rows = WithReference(Pairs(), PairLogps(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])))
    batch = rows.batch(np.array([2, 0]))
    assert batch["input_ids"].tolist() == [2, 0]
    assert batch["reference_chosen"].tolist() == [3.0, 1.0]
    assert batch["reference_rejected"].tolist() == [6.0, 4.0]
    assert len(rows) == 3


def test_the_reference_is_read_once_and_a_damaged_file_of_it_is_named(tiny: TinyRun) -> None:
    with killed_in_step(3):
        tiny.train("dpo", "--seed", "9")
    (saved,) = (tiny.out / "checkpoints" / "dpo").glob("*/reference_*.npz")
    before = saved.stat().st_mtime_ns
    with killed_in_step(5):
        tiny.train("dpo", "--seed", "9")
    assert saved.stat().st_mtime_ns == before
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(UserError, match=r"reference_.*\.npz: damaged .*Delete it and rerun"):
        tiny.train("dpo", "--seed", "9")


def test_validation_pairs_are_measured_against_their_own_reference(tiny: TinyRun) -> None:
    still = ["--learning_rate", "1e-30", "--weight_decay", "0", "--max_steps", "1", "--eval_interval", "1"]
    assert tiny.train("dpo", *still) == 0
    found = tiny.metric("dpo", "validation_loss")
    assert found == pytest.approx({1: math.log(2)}, abs=1e-5)  # a policy that is its reference prefers nothing
