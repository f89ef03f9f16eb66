"""Rewards: the rule, a function of the user's, and numbers that are none."""

from pathlib import Path
from typing import Any

import pytest

from configs.schema import UserError
from model.heads import read_reward_model
from tests.tiny_run import TinyRun, sum_record
from tests.trainer.tiny_policy import REWARDS, TinyPolicy
from trainer import rewards
from trainer.rewards import find_reward, rewards_of, rule_reward
from trainer.rollout import Sample


def sample(answer: str, *, ended: bool = True, a: int = 3, b: int = 5) -> Sample:
    return Sample(f"{a}+{b}等于多少？", answer, sum_record(a, b), (1, 2, 3), 2, ended)


def test_the_rule_pays_for_a_right_answer_that_ended_and_for_nothing_else() -> None:
    assert rule_reward(sample("3+5=8。")) == 1.0
    assert rule_reward(sample("3+5=9。")) == 0.0
    assert rule_reward(sample("3+5=8。", ended=False)) == 0.0


def test_the_rule_pays_the_same_for_a_short_and_a_long_answer() -> None:
    assert rule_reward(sample("8")) == rule_reward(sample("我来算一算。好的。3+5=8。")) == 1.0


def test_a_function_of_a_file_or_of_a_module_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rewards_of_mine.py"
    file.write_text(REWARDS, encoding="utf-8")
    by_file = find_reward(f"{file}:length", "", unproven=False)
    assert rewards_of(by_file, [sample("x")]).tolist() == [2.0]
    assert by_file.sha256
    monkeypatch.chdir(tmp_path)
    by_name = find_reward("rewards_of_mine:length", "", unproven=False)
    assert rewards_of(by_name, [sample("x")]).tolist() == [2.0]
    file.write_text(REWARDS + "\n", encoding="utf-8")
    assert find_reward(f"{file}:length", "", unproven=False).sha256 != by_file.sha256


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("rules", "must be rule, module:function"),
        (":f", "must be rule, module:function"),
        ("no_such_module:f", "can't be loaded"),
        ("nowhere.py:f", "no such file"),
        ("math:no_such_function", "has no function"),
        ("math:pi", "has no function"),
    ],
)
def test_a_reward_that_is_none_is_refused_in_one_line(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        find_reward(name, "", unproven=False)
    assert error.value.chinese


def test_a_file_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken\.py can't be loaded \(SyntaxError"):
        find_reward(f"{tmp_path / 'broken.py'}:f", "", unproven=False)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "1"])
def test_a_reward_that_is_no_number_names_prompt_and_answer(value: Any) -> None:
    bad = rewards.Reward("mine", lambda samples: [0.0, value])
    with pytest.raises(UserError, match=r"reward mine = .*4\+5等于多少.*九") as error:
        rewards_of(bad, [sample("8"), sample("九", a=4)])
    assert error.value.chinese


def test_a_reward_model_that_proves_nothing_is_refused(tiny: TinyRun) -> None:
    assert tiny.train("reward", "--max_steps=2") == 0
    path = str(tiny.path("reward"))
    with pytest.raises(UserError, match=r"no accuracy on held-out pairs is known.*--reward_unproven") as error:
        find_reward("rule", path, unproven=False)
    assert error.value.chinese
    found = find_reward("rule", path, unproven=True)
    model = read_reward_model(tiny.path("reward"))
    assert rewards_of(found, [sample("x")]).tolist() == model.score([(1, 2, 3)]).tolist()
    assert found.sha256
    with pytest.raises(UserError, match="two rewards"):
        find_reward("m:f", path, unproven=True)
    with pytest.raises(UserError, match="another tokenizer"):
        find_reward("rule", path, unproven=True, tokenizer_sha256="0" * 64)


def test_weights_without_a_reward_head_are_no_reward_model(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match="no reward model"):
        find_reward("rule", str(tiny.path("sft")), unproven=True)


def test_a_policy_learns_from_a_reward_model(tiny: TinyRun) -> None:
    assert tiny.train("reward", "--max_steps=2") == 0
    policy = TinyPolicy(tiny)
    words = ["--reward=rule", "--reward_model_path", str(tiny.path("reward")), "--max_steps=2"]
    with pytest.raises(UserError, match="--reward_unproven"):
        policy.train("grpo", *words)
    assert policy.train("grpo", *words, "--reward_unproven") == 0
    rewards = [line["reward"] for line in policy.lines("grpo") if "reward" in line]
    assert len(rewards) == 2 and all(reward not in (0.0, 1.0) for reward in rewards)
