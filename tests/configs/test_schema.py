"""Settings refuse impossible values, and compute those that follow from others."""

import pytest

from configs.schema import PRESETS, EvalConfig, MixConfig, ModelConfig, TrainConfig, UserError, preset


def test_widths_that_were_left_open_are_filled_in() -> None:
    model = ModelConfig(hidden_size=512, num_attention_heads=8).resolve()
    assert (model.head_dim, model.intermediate_size) == (64, 1408)
    assert model.resolve() == model


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "must be a multiple of num_key_value_heads"),
        ({"hidden_size": 100, "num_attention_heads": 8}, "must be a multiple of num_attention_heads"),
        ({"hidden_size": 24, "num_attention_heads": 8}, "head_dim must be even"),
        ({"hidden_size": 0}, "hidden_size = 0: must be 1 or more"),
        ({"dropout": 1.0}, "must be in"),
        ({"use_moe": True, "num_experts": 4, "num_experts_per_tok": 5}, "must be 1 to num_experts"),
        ({"use_moe": True, "hidden_size": 36, "num_attention_heads": 2}, "hidden_size = 36: must be a multiple of 8"),
        ({"use_moe": True, "moe_intermediate_size": 0}, "moe_intermediate_size = 0: must be a multiple of 8"),
        ({"rope_scaling_factor": 0}, "rope_scaling_factor = 0: must be 1 or more"),
    ],
)
def test_a_shape_that_can_not_be_is_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**values)


def test_the_weight_of_a_single_expert_is_not_normalised() -> None:
    assert ModelConfig(use_moe=True, num_experts_per_tok=2).norm_topk_prob
    assert not ModelConfig(use_moe=True, num_experts_per_tok=1).norm_topk_prob


def test_the_default_shape_is_the_first_preset() -> None:
    assert ModelConfig(**PRESETS["minillm-26m"]) == ModelConfig()


def test_a_width_and_a_depth_are_a_shape() -> None:
    assert preset("192x4")["num_attention_heads"] == 6  # heads of 32
    assert preset("768x16") == PRESETS["minillm-104m"]
    for name in ("32x1", "96x2", "256x4", "640x8", "1024x24"):
        shape = ModelConfig(**preset(name))
        assert name == f"{shape.hidden_size}x{shape.num_hidden_layers}"


@pytest.mark.parametrize("name", ["minillm", "512", "0x4", "100x4", "256x", "256x4x2", ""])
def test_an_unknown_preset_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="preset"):
        preset(name)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"max_steps": -1},
        {"warmup_ratio": 1.5},
        {"optimizer": "sgd"},
        {"dtype": "int8"},
        {"device": "tpu"},
        {"max_seq_len": 1},
    ],
)
def test_a_training_setting_out_of_range_is_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        TrainConfig(**values)


def test_a_numbered_gpu_is_a_device() -> None:
    assert TrainConfig(device="cuda:1").device == "cuda:1"


@pytest.mark.parametrize("values", [{"heldout_share": 1.0}, {"general": -1}, {"max_rounds": 0}, {"name": " "}])
def test_a_mix_that_can_not_be_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError):
        MixConfig(**values)


def test_an_evaluation_needs_room_for_an_answer() -> None:
    with pytest.raises(UserError, match="max_new_tokens"):
        EvalConfig(max_new_tokens=0)
