"""YAML becomes settings: types are checked, unknown keys refused, errors name file and key."""

from pathlib import Path

import pytest

from configs.load import load_file_categories, load_mixture, load_profile, profile_names
from configs.schema import CATEGORIES, UserError
from configs.stage_table import STAGE_TABLE


def profile_file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_profile_that_ships_can_be_loaded() -> None:
    assert profile_names() == ["cpu", "default", "smoke"]
    for name in profile_names():
        assert load_profile(name).profile == name


def test_the_default_profile_is_the_model_of_25_million_parameters() -> None:
    model = load_profile("default").model
    assert (model.hidden_size, model.num_hidden_layers, model.vocab_size) == (512, 8, 6400)
    assert (model.num_attention_heads, model.num_key_value_heads) == (8, 2)


def test_a_profile_of_the_users_overrides_only_what_it_names(tmp_path: Path) -> None:
    mine = load_profile(profile_file(tmp_path, "sft:\n  epochs: 7\nmix:\n  math: 5\n"))
    assert (mine.profile, mine.stages["sft"].epochs, mine.stages["pretrain"].epochs) == ("mine", 7, 1)
    assert (mine.mix.math, mine.mix.general) == (5, load_mixture().general)


def test_a_whole_number_is_a_fraction_too(tmp_path: Path) -> None:
    assert load_profile(profile_file(tmp_path, "dpo:\n  weight_decay: 1\n")).stages["dpo"].weight_decay == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sft:\n  epochz: 1\n", "mine.yaml: sft: unknown key 'epochz'. Known: epochs"),
        ("sft:\n  epochs: two\n", "mine.yaml: sft: epochs = 'two': must be of type int"),
        ("sft:\n  learning_rate: 3e-4\n", r"YAML reads 3e-4 as text: write 3\.0e-4"),
        ("sft:\n  epochs: true\n", "must be of type int"),
        ("pretrain:\n  beta: 0.5\n", "mine.yaml: pretrain: unknown key 'beta'. Known: epochs"),
        ("sft:\n  sft_loss_weight: 0.5\n", "mine.yaml: sft: unknown key 'sft_loss_weight'"),
        (
            "stages: {}\n",
            f"mine.yaml: unknown key 'stages'. Known: profile, model, mix, {', '.join(STAGE_TABLE)}, evaluate",
        ),
        ("profile: 3\n", "mine.yaml: profile = 3: must be of type str"),
        ("sft: 3\n", "sft must be a block of keys"),
        ("sft:\n  epochs: 0\n", "mine.yaml: sft: epochs = 0"),
        ("- a\n", "must hold `key: value` lines"),
        ("a: [\n", "can't be read as YAML"),
        ("sft:\n  epochs: 2024-13-45\n", "can't be read as YAML"),
        ("sft:\n  epochs: !!int two\n", "can't be read as YAML"),
        ("sft:\n  epochs: !!bool maybe\n", "can't be read as YAML"),
        ("sft:\n  epochs: " + "9" * 5000 + "\n", "can't be read as YAML"),
        ("sft:\n  epochs: 2\n  epochs: 3\n", "can't be read as YAML.*the key 'epochs' stands twice"),
        ("sft: " + "[" * 3000 + "\n", "can't be read as YAML"),
        ("sft:\n  learning_rate: " + "9" * 400 + "\n", "must be of type float"),
        ("sft:\n  max_steps: 99999999999\n", "max_steps = 99999999999: must be at most 2147483647"),
        ("model:\n  rope_theta: .nan\n", "rope_theta = nan: must be 1 or more, and a number"),
        ("model:\n  rms_norm_eps: -1.0\n", "rms_norm_eps = -1.0: must be 0 or more"),
    ],
)
def test_a_mistake_in_a_profile_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_profile(profile_file(tmp_path, text))


def test_a_profile_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(UserError, match="Profiles there are: cpu, default, smoke"):
        load_profile("huge")


def test_every_file_name_pattern_leads_to_a_category() -> None:
    assert set(load_file_categories().values()) <= {*CATEGORIES, "skip"}
