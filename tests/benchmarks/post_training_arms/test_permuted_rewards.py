"""The control whose rewards are shuffled."""

from benchmarks.post_training_arms.permuted_rewards import permuted
from tests.tiny_run import sum_record
from trainer.rewards import Reward, rewards_of
from trainer.rollout import Sample


def test_rewards_are_the_same_numbers_in_another_order_each_time_the_same() -> None:
    samples = [Sample("?", str(n), sum_record(1, n), (n,), 1, True) for n in range(20)]
    reward = Reward("rule", lambda some: [float(sample.answer) for sample in some])
    shuffled = rewards_of(permuted(reward), samples).tolist()
    assert sorted(shuffled) == [float(n) for n in range(20)] != shuffled
    assert rewards_of(permuted(reward), samples).tolist() == shuffled
