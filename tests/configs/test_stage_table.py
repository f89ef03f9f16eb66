from pathlib import Path

import pytest

from configs.load import Profile
from configs.paths import ROOT
from configs.schema import ModelConfig
from configs.stage_settings import AdapterConfig
from configs.stage_table import (
    DATA_STEMS,
    OPTIONAL_STAGES,
    PROMPTS,
    RECIPE_VERSION,
    STAGE_TABLE,
    STAGES,
    continues_text,
    trainer_of,
    weight_file,
    weight_file_after,
    weights_stem,
)


@pytest.mark.parametrize("stage", STAGE_TABLE)
def test_each_row_names_what_there_is(stage: str) -> None:
    spec = STAGE_TABLE[stage]
    assert (ROOT / "trainer" / spec.trainer).is_file()
    assert spec.data in (*DATA_STEMS, PROMPTS)
    earlier = [other.weights for name, other in STAGE_TABLE.items() if name != stage]
    assert spec.start == "none" or spec.start in earlier
    assert RECIPE_VERSION[stage] == spec.recipe_version
    assert type(Profile().stages[stage]) is spec.settings


def test_no_two_rows_write_the_same_weights() -> None:
    stems = [spec.weights for spec in STAGE_TABLE.values()]
    assert len(set(stems)) == len(stems)


def test_the_pipeline_trains_each_stage_after_the_one_that_it_starts_from() -> None:
    written = ["none"]
    for stage in STAGES:
        assert STAGE_TABLE[stage].start in written
        written.append(STAGE_TABLE[stage].weights)


def test_a_stage_is_always_trained_or_on_request_and_one_on_request_starts_from_one_of_the_others() -> None:
    assert set(STAGES) | set(OPTIONAL_STAGES) == set(STAGE_TABLE)
    written = {"none", *(STAGE_TABLE[stage].weights for stage in STAGE_TABLE)}
    assert not set(STAGES) & set(OPTIONAL_STAGES)
    assert all(STAGE_TABLE[stage].start in written for stage in OPTIONAL_STAGES)


def test_a_setting_may_name_the_file_and_a_row_its_folder() -> None:
    model = ModelConfig(hidden_size=512)
    assert weight_file("lora", model) == "lora/lora_identity_512.pth"
    assert weight_file("lora", model, AdapterConfig(lora_name="lora_medical")) == "lora/lora_medical_512.pth"
    after = weight_file_after("lora", "full_sft_640_moe.pth", AdapterConfig(lora_name="mine"))
    assert after == "lora/mine_640_moe.pth"
    assert weight_file("sft", model, AdapterConfig(lora_name="mine")) == "full_sft_512.pth"


@pytest.mark.parametrize("size", [192, 640])
@pytest.mark.parametrize("use_moe", [False, True])
@pytest.mark.parametrize("stage", STAGE_TABLE)
def test_the_name_of_a_weight_file_tells_its_trainer_and_its_shape(stage: str, use_moe: bool, size: int) -> None:
    name = weight_file(stage, ModelConfig(hidden_size=size, use_moe=use_moe))
    file_name = Path(name).name
    assert trainer_of(file_name) == trainer_of(STAGE_TABLE[stage].weights) == STAGE_TABLE[stage].trainer
    assert trainer_of(file_name.replace(".pth", ".previous.pth")) == STAGE_TABLE[stage].trainer
    for other in STAGE_TABLE:
        assert weight_file_after(other, file_name) == name.replace(weights_stem(stage), weights_stem(other))


@pytest.mark.parametrize("name", ["mine.pth", "sft.pth", "full_sft_x.pth", "_512.pth", "full_sft_512.pt", ""])
def test_other_names_tell_nothing(name: str) -> None:
    assert trainer_of(name) == ""
    assert weight_file_after("dpo", name) is None


def test_only_what_reads_documents_alone_continues_a_text() -> None:
    assert [stage for stage in STAGE_TABLE if continues_text(stage)] == ["pretrain"]
    assert not continues_text("a stage of another version")
