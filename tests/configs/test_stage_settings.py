"""Settings that only one stage has: the others refuse them and name them."""

from typing import Any

import pytest

from configs.knobs import knobs_of
from configs.schema import TrainConfig, UserError
from configs.stage_settings import AdapterConfig, DistillConfig, DPOConfig, GRPOConfig, PPOConfig, RewardConfig
from configs.stage_table import STAGE_TABLE


@pytest.mark.parametrize("values", [{"beta": 0.0}, {"beta": float("nan")}, {"sft_loss_weight": -1.0}, {"epochs": 0}])
def test_a_setting_of_dpo_out_of_range_is_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        DPOConfig(**values)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("beta", ["dpo", "distill", "grpo", "ppo"]),
        ("sft_loss_weight", ["dpo"]),
        ("num_generations", ["grpo", "ppo"]),
        ("gae_lambda", ["ppo"]),
    ],
)
def test_a_setting_of_some_stages_is_none_of_the_others(name: str, stages: list[str]) -> None:
    assert [stage for stage, spec in STAGE_TABLE.items() if name in knobs_of(spec.settings)] == stages


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.0},
        {"clip_epsilon": 1.0},
        {"beta": -0.1},
        {"num_generations": 1},
        {"advantage": "best"},
        {"max_gen_len": 512},
        {"num_minibatches": 33},
        {"dtype": "float16"},
        {"loss_mean": ""},
        {"ratio": "max"},
    ],
)
def test_a_setting_of_grpo_out_of_range_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        GRPOConfig(**values)


@pytest.mark.parametrize("values", [{"gamma": 1.1}, {"gae_lambda": -0.1}, {"value_clip_epsilon": 0.0}])
def test_a_setting_of_ppo_out_of_range_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        PPOConfig(**values)


def test_one_answer_a_prompt_is_enough_where_none_is_compared() -> None:
    assert GRPOConfig(num_generations=1, advantage="none").num_generations == 1


@pytest.mark.parametrize("settings", {spec.settings for spec in STAGE_TABLE.values()})
def test_a_stage_has_the_settings_of_all_and_its_own(settings: type[TrainConfig]) -> None:
    assert set(knobs_of(TrainConfig)) <= set(knobs_of(settings))


@pytest.mark.parametrize(
    "values", [{"lora_rank": 0}, {"optimizer": "muon"}, {"lora_name": "../x"}, {"lora_name": ""}, {"lora_name": "a/b"}]
)
def test_a_setting_of_an_adapter_out_of_range_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        AdapterConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"alpha": 1.5},
        {"beta": -0.1},
        {"on_policy_share": 2.0},
        {"on_policy_share": 0.5, "data_kind": "documents"},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"data_kind": "pairs"},
        {"max_gen_len": 0},
    ],
)
def test_a_setting_of_distillation_out_of_range_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        DistillConfig(**values)  # type: ignore[arg-type]


def test_a_negative_centring_of_rewards_is_refused() -> None:
    with pytest.raises(UserError, match="centering"):
        RewardConfig(centering=-1.0)
