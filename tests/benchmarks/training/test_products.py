"""The bound: what is counted, and what a replay does."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.products import (
    Bound,
    Plan,
    Replay,
    Step,
    mean_keys,
    step_flops,
)
from configs.schema import ModelConfig
from model.model_minillm import MiniLLM
from tests.tiny_run import DENSE, MOE
from trainer.flops import active_parameters

CPU = torch.device("cpu")


def test_a_query_looks_at_the_tokens_of_its_document_before_it_and_itself() -> None:
    rows = np.array([[0, 0, 0, 1, 1], [0, 0, -1, -1, -1], [0, 0, 0, 0, 0]])
    keys = [1, 2, 3, 1, 2, 1, 2, 1, 2, 3, 4, 5]
    assert mean_keys(rows) == pytest.approx(sum(keys) / len(keys))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", [DENSE, MOE])
def test_a_replay_does_the_operations_that_the_bound_states(shape: ModelConfig, fused: bool) -> None:
    step = Step(shape, tokens=60, target_share=0.8, mean_keys=8)  # pieces of 15 tokens, 8 keys a query
    replay = Replay(step, Plan("float32", 60, fused=fused), CPU)
    with FlopCounterMode(display=False) as counter:
        replay.run()
    assert counter.get_total_flops() == step_flops(step)


def test_a_products_operations_are_two_a_parameter_and_direction() -> None:
    matrices = active_parameters(DENSE) - sum(p.numel() for p in MiniLLM(DENSE).parameters() if p.dim() == 1)
    step = Step(DENSE, tokens=10, target_share=1.0, mean_keys=0.0)
    assert step_flops(step) == 6 * 10 * matrices


def test_tiles_and_joined_projections_leave_the_gradient_of_a_weight_the_same() -> None:
    whole = Replay(Step(DENSE, 60, 1.0, 8), Plan("float32", 60), CPU)
    tiled = Replay(Step(DENSE, 60, 1.0, 8), Plan("float32", 16), CPU)
    x, weight, gradient = torch.randn(60, 32), torch.randn(48, 32), torch.randn(60, 48)
    found = []
    for replay in (whole, tiled):
        replay._backward(x, weight, gradient)
        found.append(replay._shared("weight", 48, 32).clone())
    torch.testing.assert_close(found[0], gradient.T @ x)
    torch.testing.assert_close(found[1], found[0])


def test_a_bound_is_the_median_of_its_replays() -> None:
    bound = object.__new__(Bound)
    bound.step, bound.seconds = Step(DENSE, 60, 0.8, 8), [1.0, 4.0, 2.0]
    assert bound.tokens_per_second == 30
    assert bound.flops_per_second == step_flops(bound.step) / 2
