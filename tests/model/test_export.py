"""The layout of Hugging Face: every trap that another program fell into, and the way back."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from configs.schema import ModelConfig, UserError
from model.export import (
    CONFIG,
    OURS,
    TENSORS,
    Marks,
    experts_apart,
    experts_stacked,
    hugging_face_config,
    read_hugging_face,
    read_plain,
    read_tensors,
    shape_of,
    write_hugging_face,
    write_plain,
    write_tensors,
)
from model.manifest import TrainingFile, WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import load_strict
from tests.model.test_model_minillm import busy_model
from tests.tiny_run import DENSE, MOE

pytest.importorskip("safetensors", reason="the package safetensors is not installed")

MARKS = Marks(begin=90, ends=(92, 91), padding=91)
YARN = replace(DENSE, rope_scaling_factor=4.0, original_max_position_embeddings=16)
ONE_EXPERT = replace(MOE, num_experts_per_tok=1)
MANIFEST = WeightsManifest(stage="dpo", tokenizer_sha256="ab12", training_data=(TrainingFile(path="数据.jsonl"),))
SHAPES = {"dense": DENSE, "moe": MOE, "yarn": YARN, "one_expert": ONE_EXPERT}


def folder_of(model: MiniLLM, folder: Path) -> Path:
    """The model as a folder, without a tokenizer."""
    folder.mkdir(exist_ok=True)
    write_hugging_face(folder, model.state_dict(), model.config, MANIFEST, MARKS)
    return folder


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None takes a key away."""
    before = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in (before | values).items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Iterator[MiniLLM]:
    """A busy model of each kind."""
    yield busy_model(SHAPES[request.param])


# --- there and back -------------------------------------------------------------------------------


def test_a_folder_returns_every_bit_of_tensors_shape_and_manifest(model: MiniLLM, tmp_path: Path) -> None:
    state, config, manifest = read_hugging_face(folder_of(model, tmp_path))
    assert (config, manifest) == (model.config, MANIFEST)
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_plain_file_returns_every_bit_of_tensors_shape_and_manifest(model: MiniLLM, tmp_path: Path) -> None:
    write_plain(tmp_path / "a.safetensors", model.state_dict(), model.config, MANIFEST)
    state, config, manifest = read_plain(tmp_path / "a.safetensors")
    assert (config, manifest) == (model.config, MANIFEST)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_each_expert_has_three_matrices_in_the_file() -> None:
    model = busy_model(MOE)
    tensors = experts_apart(model.state_dict())
    stacked = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    place = "model.layers.1.mlp.experts.3"
    assert torch.equal(tensors[f"{place}.gate_proj.weight"], stacked[3, :24])
    assert torch.equal(tensors[f"{place}.up_proj.weight"], stacked[3, 24:])
    assert tensors[f"{place}.down_proj.weight"].shape == (32, 24)
    assert not any("gate_up_proj" in name for name in tensors)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    tensors = experts_apart(busy_model(MOE).state_dict())
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.experts"):
        load_strict(MiniLLM(MOE), experts_stacked(tensors, MOE, "x"), tmp_path)


# --- what other programs need ---------------------------------------------------------------------


def test_the_file_says_that_it_holds_tensors_of_pytorch(tmp_path: Path) -> None:
    """transformers 4 refuses a file without this."""
    tensors, facts = read_tensors(folder_of(busy_model(DENSE), tmp_path) / TENSORS)
    assert facts == {"format": "pt"}
    assert "lm_head.weight" not in tensors


def test_the_config_tells_rope_in_the_ways_of_both_versions_of_transformers() -> None:
    plain, yarn = hugging_face_config(DENSE, MARKS), hugging_face_config(YARN, MARKS)
    assert plain["rope_theta"] == plain["rope_parameters"]["rope_theta"] == 1e6
    assert plain["rope_scaling"] is None
    for scaling in (yarn["rope_scaling"], yarn["rope_parameters"]):
        assert (scaling["rope_type"], scaling["factor"]) == ("yarn", 4.0)
        assert scaling["original_max_position_embeddings"] == 16
    assert yarn["rope_theta"] == 1e6


def test_the_config_says_what_must_not_be_guessed() -> None:
    values = hugging_face_config(MOE, MARKS)
    assert values["tie_word_embeddings"] is True
    assert values["head_dim"] == 8
    assert values["norm_topk_prob"] is True
    assert hugging_face_config(ONE_EXPERT, MARKS)["norm_topk_prob"] is False
    assert values["eos_token_id"] == [92, 91]
    assert (values["bos_token_id"], values["pad_token_id"]) == (90, 91)
    assert "norm_topk_prob" not in hugging_face_config(DENSE, MARKS)


def test_transformers_reads_the_folder_with_the_same_logits(model: MiniLLM, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = folder_of(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == [92, 91]
    ids = torch.randint(0, 96, (2, 64))  # with YaRN: four times as long as the original
    with torch.inference_mode():
        assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=1e-4)


# --- folders of others ----------------------------------------------------------------------------


def test_a_folder_that_transformers_wrote_is_read_with_the_same_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(1)
    config = transformers.Qwen3Config(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=40,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
    )
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    state, shape, manifest = read_hugging_face(tmp_path)
    model = MiniLLM(shape).eval()
    load_strict(model, state, tmp_path)
    assert (shape.head_dim, shape.original_max_position_embeddings) == (16, 512)
    assert shape.rope_theta == (getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"])
    assert manifest.stage == "imported" and not manifest.tokenizer_sha256
    ids = torch.randint(0, 50, (2, 20))
    with torch.inference_mode():
        assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_file_in_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    model = busy_model(DENSE)
    folder = folder_of(model, tmp_path)
    halves = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    write_tensors(folder / TENSORS, halves, {"format": "pt"})
    state, _, _ = read_hugging_face(folder)
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in halves.items())


def test_tensors_may_lie_in_several_files(tmp_path: Path) -> None:
    model = busy_model(DENSE)
    folder = folder_of(model, tmp_path)
    state = model.state_dict()
    (folder / TENSORS).unlink()
    for number, part in enumerate((list(state)[:5], list(state)[5:]), start=1):
        path = folder / f"model-0000{number}-of-00002.safetensors"
        write_tensors(path, {name: state[name] for name in part}, {"format": "pt"})
    assert read_hugging_face(folder)[0].keys() == state.keys()


def test_an_output_matrix_equal_to_the_embedding_is_dropped_and_another_is_refused(tmp_path: Path) -> None:
    state = busy_model(DENSE).state_dict()
    head = state["model.embed_tokens.weight"]
    assert experts_stacked(state | {"lm_head.weight": head}, DENSE, "x").keys() == state.keys()
    with pytest.raises(UserError, match="its output matrix"):
        experts_stacked(state | {"lm_head.weight": head + 1}, DENSE, "x")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16}}, "beta_fast is 16"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.0}}, "attention_factor"),
    ],
)
def test_a_network_that_minillm_is_not_is_refused_in_one_line(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault) as caught:
        shape_of(hugging_face_config(DENSE, MARKS) | {"rope_parameters": None} | values, "config.json")
    assert "\n" not in caught.value.line


@pytest.mark.parametrize(("config", "normalised"), [(MOE, False), (ONE_EXPERT, True)])
def test_a_router_that_normalises_otherwise_is_refused(config: ModelConfig, normalised: bool) -> None:
    with pytest.raises(UserError, match="norm_topk_prob is"):
        shape_of(hugging_face_config(config, MARKS) | {"norm_topk_prob": normalised}, "config.json")


def test_dense_layers_among_experts_are_refused() -> None:
    for values in ({"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}):
        with pytest.raises(UserError, match=next(iter(values))):
            shape_of(hugging_face_config(MOE, MARKS) | values, "config.json")


def test_theta_is_found_wherever_it_stands() -> None:
    values = hugging_face_config(DENSE, MARKS)
    in_parameters = {key: value for key, value in values.items() if key != "rope_theta"}
    assert shape_of(in_parameters, "x").rope_theta == 1e6
    assert shape_of(values | {"rope_parameters": None, "rope_theta": 5000}, "x").rope_theta == 5000.0
    assert shape_of(in_parameters | {"rope_parameters": None}, "x").rope_theta == 10_000.0


def test_config_json_decides_where_somebody_has_changed_it(tmp_path: Path) -> None:
    folder = folder_of(busy_model(DENSE), tmp_path)
    change(folder / CONFIG, rms_norm_eps=1e-5)
    assert read_hugging_face(folder)[1].rms_norm_eps == 1e-5


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_or_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    folder = folder_of(busy_model(DENSE), tmp_path)
    path = folder / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=name):
        read_hugging_face(folder)
    path.unlink()
    with pytest.raises(UserError, match=name if name == CONFIG else r"no \*\.safetensors"):
        read_hugging_face(folder)


def test_a_config_without_a_width_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = folder_of(busy_model(DENSE), tmp_path)
    (folder / OURS).unlink()
    change(folder / CONFIG, hidden_size=None)
    with pytest.raises(UserError, match="hidden_size is missing"):
        read_hugging_face(folder)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object"):
        read_hugging_face(folder)


def test_tensors_without_a_shape_are_refused(tmp_path: Path) -> None:
    folder = folder_of(busy_model(DENSE), tmp_path)
    with pytest.raises(UserError, match=r"Give the folder that holds its config\.json"):
        read_plain(folder / TENSORS)
