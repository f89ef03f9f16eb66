"""How many steps fill a budget."""

from benchmarks.training.baseline import SAVE_SECONDS
from benchmarks.training.pace import steps_within


def test_steps_fill_a_budget_less_start_and_end() -> None:
    assert steps_within(60.0, 8.0, 0.5) == (60 - 8 - SAVE_SECONDS) / 0.5
    assert steps_within(5.0, 8.0, 0.5) == 1
