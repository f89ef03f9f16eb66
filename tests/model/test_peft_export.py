"""Adapters in peft's layout: peft computes the same with ours, and we with peft's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema import ModelConfig, UserError
from model.export import Marks, write_hugging_face
from model.manifest import WeightsManifest
from model.model_lora import LINEAR_LAYERS, LoraConfig, attach_adapter, base_fingerprint
from model.model_minillm import MiniLLM
from model.peft_export import CONFIG, FILES, TENSORS, is_peft, peft_config, read_peft, write_peft
from tests.model.test_model_lora import HERE, IDS, logits, same_tensors, small_adapter, small_model
from tests.tiny_run import DENSE, MOE

safetensors_torch = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")


def written(folder: Path, model: MiniLLM, config: LoraConfig | None = None) -> Path:
    """A folder with a random adapter for the model."""
    folder.mkdir()
    write_peft(folder, small_adapter(model, config))
    return folder


def rewritten(folder: Path, **changes: Any) -> Path:
    """Replace values of adapter_config.json; `...` takes a key out."""
    path = folder / CONFIG
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    return folder


def test_an_adapter_returns_bit_by_bit(tmp_path: Path) -> None:
    for number, shape in enumerate((DENSE, MOE)):
        model = small_model(shape)
        adapter = small_adapter(model, LoraConfig(r=3, alpha=2.5, dropout=0.125, use_rslora=True))
        (folder := tmp_path / str(number)).mkdir()
        write_peft(folder, adapter)
        assert is_peft(folder) and {path.name for path in folder.iterdir()} == set(FILES)
        again = read_peft(folder)
        assert (again.config, again.manifest, again.base) == (adapter.config, adapter.manifest, adapter.base)
        assert same_tensors(dict(again.state), dict(adapter.state))


def test_the_layout_is_that_of_peft(tmp_path: Path) -> None:
    config = LoraConfig(r=4, alpha=16.0, target_modules=("q_proj", "down_proj"))
    folder = written(tmp_path / "a", small_model(), config)
    with safetensors_torch.safe_open(folder / TENSORS, framework="pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    place = "base_model.model.model.layers.1"
    assert len(shapes) == 2 * 2 * DENSE.num_hidden_layers
    assert shapes[f"{place}.self_attn.q_proj.lora_A.weight"] == (4, 32)
    assert shapes[f"{place}.self_attn.q_proj.lora_B.weight"] == (32, 4)
    assert shapes[f"{place}.mlp.down_proj.lora_A.weight"] == (4, DENSE.intermediate_size)
    values = json.loads((folder / CONFIG).read_text())
    assert values["peft_type"] == "LORA" and values["task_type"] == "CAUSAL_LM"
    assert (values["r"], values["lora_alpha"], values["lora_dropout"]) == (4, 16, 0.0)
    assert values["target_modules"] == ["q_proj", "down_proj"]
    assert (values["bias"], values["modules_to_save"], values["fan_in_fan_out"]) == ("none", None, False)
    assert peft_config(LoraConfig(alpha=0.5))["lora_alpha"] == 0.5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("a_method_of_next_year", {"on": True}),
    ],
)
def test_more_than_plain_lora_is_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = rewritten(written(tmp_path / "a", small_model()), **{key: value})
    with pytest.raises(UserError, match=f"adapter_config.json: {key} is .*which MiniLLM has not"):
        read_peft(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": ...}, "r is missing"),
        ({"r": "8"}, "r = '8'"),
        ({"r": 5}, r"lora_A is \(4, 32\) instead of \(5, 32\)"),
        ({"lora_alpha": 0}, "alpha = 0"),
        ({"target_modules": ["q_proj", "lm_head"]}, "no tensors for lm_head"),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    model = small_model()
    folder = rewritten(written(tmp_path / "a", model), **changes)
    with pytest.raises(UserError, match=words):
        attach_adapter(model, read_peft(folder), folder, HERE)


@pytest.mark.parametrize("targets", ["all-linear", ".*_proj", ["model.layers.0.mlp.up_proj", "q_proj"]])
def test_the_names_of_the_tensors_say_which_layers_there_are(tmp_path: Path, targets: object) -> None:
    folder = rewritten(written(tmp_path / "a", small_model()), target_modules=targets)
    assert read_peft(folder).config.target_modules == LINEAR_LAYERS


def test_tensors_of_other_places_are_refused(tmp_path: Path) -> None:
    model = small_model()
    for number, (name, words) in enumerate(
        {
            "base_model.model.lm_head.lora_A.weight": "lm_head: no linear layer",
            "base_model.model.model.embed_tokens.lora_embedding_A": "embed_tokens: no linear layer",
            "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": r"layers\.7\.mlp\.up_proj\.lora_A is unknown",
            "lm_head.weight": r"lm_head\.weight is unknown",
        }.items()
    ):
        folder = written(tmp_path / str(number), model)
        tensors = safetensors_torch.load_file(folder / TENSORS)
        safetensors_torch.save_file(tensors | {name: torch.zeros(4, 32)}, folder / TENSORS)
        with pytest.raises(UserError, match=words) as told:
            attach_adapter(model, read_peft(folder), folder, HERE)
        assert str(told.value).startswith(str(folder))


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", small_model())
    (folder / TENSORS).write_bytes(b"short")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: missing, damaged"):
        read_peft(folder)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(UserError, match=r"adapter_config\.json: must hold a JSON object"):
        read_peft(folder)
    with pytest.raises(UserError, match=r"adapter_config\.json: missing"):
        read_peft(tmp_path)


def test_an_adapter_of_another_base_is_refused_after_its_travel(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", small_model(seed=1))
    with pytest.raises(UserError, match="made for other weights"):
        attach_adapter(small_model(seed=2), read_peft(folder), folder, HERE)


# --- with peft itself -----------------------------------------------------------------------------


def theirs(folder: Path, model: MiniLLM) -> Any:
    """Our model in transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder.mkdir()
    write_hugging_face(folder, model.state_dict(), model.config, WeightsManifest(), Marks(1, (2, 3), 3))
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def their_logits(model: Any) -> Tensor:
    """Of IDS."""
    found: Tensor = model(IDS).logits.float()
    return found


@pytest.mark.parametrize("shape", [DENSE, MOE])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_computes_the_same_with_our_adapter(tmp_path: Path, shape: ModelConfig, use_rslora: bool) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = small_model(shape)
    base = theirs(tmp_path / "base", model)
    plain = logits(model)
    adapter = small_adapter(model, LoraConfig(r=4, use_rslora=use_rslora))
    (tmp_path / "adapter").mkdir()
    write_peft(tmp_path / "adapter", adapter)
    attach_adapter(model, adapter, HERE, HERE)
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert float((logits(model) - plain).abs().max()) > 0.1
    torch.testing.assert_close(their_logits(wrapped), logits(model), rtol=0, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("shape", [DENSE, MOE])
@pytest.mark.parametrize(
    "values",
    [
        {"r": 3, "target_modules": ["q_proj", "v_proj"]},
        {"r": 8, "target_modules": "all-linear"},
        {"r": 2, "target_modules": r".*\.(k_proj|o_proj)", "use_rslora": True, "lora_dropout": 0.1},
    ],
)
def test_an_adapter_made_by_peft_computes_the_same_here(
    tmp_path: Path, shape: ModelConfig, values: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    if shape is MOE and values["target_modules"] == "all-linear":
        values = values | {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    torch.manual_seed(3)
    model = small_model(shape)
    wrapped = peft.get_peft_model(
        theirs(tmp_path / "base", model),
        peft.LoraConfig(**values, lora_alpha=9, init_lora_weights=False, task_type="CAUSAL_LM"),
    ).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    adapter = read_peft(tmp_path / "adapter")
    assert (adapter.base, adapter.manifest) == ("", WeightsManifest())
    assert (adapter.config.r, adapter.config.alpha) == (values["r"], 9.0)
    plain = logits(model)
    attach_adapter(model, replace(adapter, base=base_fingerprint(model)), HERE, HERE)
    assert float((logits(model) - plain).abs().max()) > 0.01
    torch.testing.assert_close(their_logits(wrapped), logits(model), rtol=0, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("extra", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}])
def test_what_peft_made_and_we_do_not_hold_is_refused(tmp_path: Path, extra: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], **extra)
    wrapped = peft.get_peft_model(theirs(tmp_path / "base", small_model()), config)
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=f"{next(iter(extra))} is .*which MiniLLM has not"):
        read_peft(tmp_path / "adapter")
