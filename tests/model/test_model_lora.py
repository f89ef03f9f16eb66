"""LoRA: the base is never touched, an adapter does what its formula says, and a wrong one is
refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema import ModelConfig, UserError
from model.manifest import StartFile, TrainingFile, WeightsManifest
from model.model_lora import (
    ATTENTION_LAYERS,
    LINEAR_LAYERS,
    Adapter,
    LoraConfig,
    LoraLinear,
    adapter_file,
    adapter_state,
    attach,
    attach_adapter,
    base_fingerprint,
    detach,
    merge,
    merged_manifest,
    read_adapter,
    save_adapter,
)
from model.model_minillm import MiniLLM
from model.weights import read_weights, save_weights
from tests.tiny_run import DENSE, MOE, lively

IDS = torch.arange(2 * 24).view(2, 24) % DENSE.vocab_size
HERE = Path("base_32.pth")


def small_model(config: ModelConfig = DENSE, seed: int = 1) -> MiniLLM:
    """A model in which every part matters; the same for the same seed."""
    torch.manual_seed(seed)
    return lively(MiniLLM(config), seed)


def small_adapter(model: MiniLLM, config: LoraConfig | None = None, seed: int = 7) -> Adapter:
    """An adapter for a model, with random numbers in B too. The model is left without one."""
    config = attach(model, config or LoraConfig(r=4))
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2 for name, tensor in adapter_state(model).items()
    }
    detach(model)
    return Adapter(state=state, config=config, manifest=WeightsManifest(stage="lora"), base=base_fingerprint(model))


@torch.no_grad()
def logits(model: MiniLLM) -> Tensor:
    """Of IDS."""
    found: Tensor = model(IDS)
    return found


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether names and bits are equal."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("config", [DENSE, MOE])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_new_adapter_changes_no_bit_of_the_logits(config: ModelConfig, autocast: bool) -> None:
    model = small_model(config)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = logits(model)
        attach(model, LoraConfig())
        assert torch.equal(logits(model), before)


def test_a_layer_computes_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    x, base = torch.randn(3, 5, 8), torch.nn.Linear(8, 6, bias=False)
    for use_rslora, scale in ((False, 10 / 4), (True, 10 / math.sqrt(4))):
        layer = LoraLinear(base, LoraConfig(r=4, alpha=10.0, use_rslora=use_rslora))
        torch.nn.init.normal_(layer.lora_B)
        wanted = x @ base.weight.T + scale * (x @ layer.lora_A.T @ layer.lora_B.T)
        torch.testing.assert_close(layer(x), wanted)
        torch.testing.assert_close(layer(x), x @ layer.weight.T)


def test_a_begins_as_in_peft_and_b_at_zero() -> None:
    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(400, 30, bias=False), LoraConfig(r=50))
    bound = 1 / math.sqrt(400)  # kaiming uniform with a = sqrt 5: sqrt(6 / ((1 + 5) * inputs))
    assert 0.99 * bound < float(layer.lora_A.detach().abs().max()) <= bound
    assert float(layer.lora_A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.lora_B.any()


def test_only_the_input_of_a_is_dropped_and_only_in_training() -> None:
    layer = LoraLinear(torch.nn.Linear(64, 3, bias=False), LoraConfig(r=64, alpha=64.0, dropout=0.5))
    with torch.no_grad():
        layer.base.weight.zero_()
        layer.lora_A.copy_(torch.eye(64))
        layer.lora_B.fill_(1.0)
        counts = [float(layer.train()(torch.ones(64))[0]) / 2 for _ in range(50)]  # what stays is doubled
        assert all(count == int(count) for count in counts)
        assert 28 < sum(counts) / len(counts) < 36
        assert torch.equal(layer.eval()(torch.ones(64)), torch.full((3,), 64.0))
        layer.base.weight.fill_(1.0)
        layer.lora_B.zero_()
        assert torch.equal(layer.train()(torch.ones(64)), torch.full((3,), 64.0))


def test_an_adapter_gets_the_mode_of_its_model() -> None:
    for mode in (True, False):
        model = small_model().train(mode)
        attach(model, LoraConfig(dropout=0.1))
        assert all(module.training is mode for module in model.modules())


@pytest.mark.parametrize(
    ("shape", "chosen", "wanted"),
    [
        (DENSE, (), LINEAR_LAYERS),
        (MOE, (), ATTENTION_LAYERS),
        (DENSE, ("down_proj", "q_proj"), ("q_proj", "down_proj")),
        (MOE, ("v_proj",), ("v_proj",)),
    ],
)
def test_the_chosen_layers_get_adapters_and_nothing_else(
    shape: ModelConfig, chosen: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    model = small_model(shape)
    config = attach(model, LoraConfig(r=2, target_modules=chosen))
    assert config.target_modules == wanted
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    assert {name.rpartition(".")[2] for name in adapted} == set(wanted)
    assert len(adapted) == shape.num_hidden_layers * len(wanted)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert (
        trained
        == {f"{name}.{part}" for name in adapted for part in ("lora_A", "lora_B")}
        == adapter_state(model).keys()
    )


def test_the_default_model_trains_less_than_5_percent_of_its_parameters() -> None:
    with torch.device("meta"):
        model = MiniLLM(ModelConfig())
    whole = model.num_parameters()
    attach(model, LoraConfig(r=8))
    assert model.num_parameters() < 0.05 * whole


@pytest.mark.parametrize(
    ("shape", "name", "why"),
    [
        (MOE, "gate_proj", "experts of a mixture are stacked"),
        (DENSE, "embed_tokens", "no linear layer"),
        (MOE, "", "no"),
    ],
)
def test_a_layer_that_takes_no_adapter_is_refused(shape: ModelConfig, name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"target_modules: {name}: .*{why}.* Choose among q_proj"):
        attach(small_model(shape), LoraConfig(target_modules=("q_proj", name)))


@pytest.mark.parametrize(
    "values",
    [
        {"r": 0},
        {"r": 2**40},
        {"alpha": 0.0},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"dropout": 1.0},
        {"dropout": math.nan},
    ],
)
def test_nonsense_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        LoraConfig(**values)


def test_training_moves_the_adapter_and_no_bit_of_the_base() -> None:
    model = small_model().train()
    before, fingerprint = {n: t.clone() for n, t in model.state_dict().items()}, base_fingerprint(model)
    attach(model, LoraConfig(r=4))
    started = adapter_state(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = -model(IDS)[..., :3].log_softmax(dim=-1)[..., 0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    moved = adapter_state(model)
    assert not any(torch.equal(tensor, moved[name]) for name, tensor in started.items())
    assert base_fingerprint(model) == fingerprint
    detach(model)
    assert same_tensors(model.state_dict(), before)


@pytest.mark.parametrize("shape", [DENSE, MOE])
def test_the_adapter_learns_the_same_where_activations_are_computed_again(shape: ModelConfig) -> None:
    gradients = []
    for again in (False, True):
        model = small_model(shape).train()
        attach_adapter(model, small_adapter(model), HERE, HERE)
        model.gradient_checkpointing = again
        model(IDS).float().square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == adapter_state(model).keys()
    assert same_tensors(*gradients)


def test_compiled_blocks_compute_the_adapter_too() -> None:
    model = small_model()
    attach_adapter(model, small_adapter(model), HERE, HERE)
    plain = logits(model)
    model.compile_blocks(backend="eager")
    torch.testing.assert_close(logits(model), plain)


def test_a_detached_model_is_the_one_from_before() -> None:
    model = small_model()
    before, weights = logits(model), model.model.layers[0].self_attn.q_proj.weight
    adapter = small_adapter(model)
    attach_adapter(model, adapter, HERE, HERE)
    assert not torch.equal(logits(model), before)
    detach(model)
    assert torch.equal(logits(model), before)
    assert model.model.layers[0].self_attn.q_proj.weight is weights  # stored once
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_one_adapter_of_several_is_active() -> None:
    model = small_model()
    one, other = small_adapter(model, seed=1), small_adapter(model, LoraConfig(r=2, target_modules=("q_proj",)), seed=2)
    attach_adapter(model, one, HERE, HERE)
    alone = logits(model)
    attach_adapter(model, other, HERE, HERE)
    assert adapter_state(model).keys() == other.state.keys()
    attach_adapter(model, one, HERE, HERE)
    assert torch.equal(logits(model), alone)


@pytest.mark.parametrize("shape", [DENSE, MOE])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_merged_weights_answer_as_the_adapter_does(shape: ModelConfig, use_rslora: bool) -> None:
    model = small_model(shape)
    names = model.state_dict().keys()
    plain, fingerprint = logits(model), base_fingerprint(model)
    attach_adapter(model, small_adapter(model, LoraConfig(r=4, use_rslora=use_rslora)), HERE, HERE)
    attached = logits(model)
    merge(model)
    assert model.state_dict().keys() == names
    assert float((attached - plain).abs().max()) > 0.1
    torch.testing.assert_close(logits(model), attached, rtol=1e-4, atol=1e-4)
    assert base_fingerprint(model) != fingerprint


def test_the_fingerprint_is_of_the_numbers_alone() -> None:
    model = small_model()
    fingerprint = base_fingerprint(model)
    stretched = MiniLLM(replace(DENSE, rope_scaling_factor=2.0))
    stretched.load_state_dict(model.state_dict())
    assert base_fingerprint(stretched) == fingerprint
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-3
    assert base_fingerprint(model) != fingerprint


# --- files ----------------------------------------------------------------------------------------


def test_an_adapter_returns_as_it_was_saved(tmp_path: Path) -> None:
    model = small_model()
    manifest = WeightsManifest(stage="lora", tokenizer_sha256="ab", start=StartFile(path="x.pth", sha256="cd"))
    adapter = replace(
        small_adapter(model, LoraConfig(r=3, alpha=5.0, dropout=0.25, use_rslora=True)), manifest=manifest
    )
    path = tmp_path / "lora" / adapter_file("lora_medical", model.config)
    save_adapter(path, adapter)
    assert path.name == "lora_medical_32.pth"
    again = read_adapter(path)
    assert (again.config, again.manifest, again.base) == (adapter.config, adapter.manifest, adapter.base)
    assert same_tensors(dict(again.state), dict(adapter.state))
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "config", "manifest"}
    assert content["config"] == {
        "r": 3,
        "alpha": 5.0,
        "dropout": 0.25,
        "target_modules": list(LINEAR_LAYERS),
        "use_rslora": True,
    }
    assert content["manifest"]["base_sha256"] == base_fingerprint(model)
    assert adapter_file("x", MOE) == "x_32_moe.pth"


def test_an_adapter_for_other_weights_is_refused_and_the_model_stays(tmp_path: Path) -> None:
    model, other = small_model(seed=1), small_model(seed=2)
    adapter = small_adapter(other)
    before = logits(model)
    with pytest.raises(UserError, match=r"a\.pth: made for other weights \(\w{8}\) than .*base_32\.pth \(\w{8}\)"):
        attach_adapter(model, adapter, tmp_path / "a.pth", HERE)
    assert torch.equal(logits(model), before)
    assert not adapter_state(model)


def without_one(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last tensor is missing."""
    return dict(list(state.items())[:-1])


def with_nan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One number is none."""
    name = next(iter(state))
    return state | {name: state[name].clone().fill_(math.nan)}


def with_another_shape(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor has a row more."""
    name = next(iter(state))
    return state | {name: torch.zeros(len(state[name]) + 1, state[name].shape[1])}


def with_one_more(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tensor that nobody knows."""
    return state | {"lm_head.lora_A": torch.zeros(4, 32)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_one, r"down_proj\.lora_B is missing"),
        (with_another_shape, r"q_proj\.lora_A is \(5, 32\) instead of \(4, 32\)"),
        (with_one_more, r"lm_head\.lora_A is unknown"),
        (with_nan, "1 of 28 tensors hold NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    model = small_model()
    adapter = small_adapter(model)
    path = tmp_path / "a_32.pth"
    save_adapter(path, replace(adapter, state=change(dict(adapter.state))))
    with pytest.raises(UserError, match=rf"a_32\.pth: .*{words}"):
        attach_adapter(model, read_adapter(path), path, HERE)
    assert not adapter_state(model)


def resaved(path: Path, part: str, **changes: Any) -> Path:
    """Write an adapter again with some values of one part replaced."""
    content = torch.load(path, weights_only=True)
    content[part] = content[part] | changes
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("config", {"r": "4"}, "r = '4': must be of type int"),
        ("config", {"r": 0}, "r = 0: must be 1 or more"),
        ("config", {"r": 2**30}, r"lora_A is \(4, 32\) instead of \(1073741824, 32\)"),
        ("config", {"alpha": math.nan}, "alpha = nan"),
        ("config", {"dropout": 2.0}, "dropout = 2.0"),
        ("config", {"target_modules": "q_proj"}, "target_modules must be a list of names"),
        ("config", {"target_modules": []}, "target_modules must be a list of names"),
        ("config", {"target_modules": ["lm_head"]}, "target_modules: lm_head: no linear layer"),
        ("config", {"use_dora": True}, "no LoRA adapter"),
        ("manifest", {"base_sha256": ""}, "manifest: base_sha256 is missing"),
        ("manifest", {"base_sha256": 3}, "manifest: base_sha256 is missing or of another type"),
        ("manifest", {"training_data": 3}, "manifest: training_data"),
        ("model", {"x": 3}, "model: x is missing or of another type"),
    ],
)
def test_a_file_that_was_altered_is_refused(tmp_path: Path, part: str, changes: dict[str, Any], words: str) -> None:
    model = small_model()
    path = tmp_path / "a_32.pth"
    save_adapter(path, small_adapter(model))
    with pytest.raises(UserError, match=words):
        attach_adapter(model, read_adapter(resaved(path, part, **changes)), path, HERE)


def test_whole_weights_are_no_adapter_and_an_adapter_is_no_whole_weights(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a_32.pth", small_adapter(small_model()))
    with pytest.raises(UserError, match=r"a_32\.pth: an adapter, no whole weights\. .*--lora_name"):
        read_weights(tmp_path / "a_32.pth")
    save_weights(tmp_path / "full_sft_32.pth", small_model(), WeightsManifest())
    with pytest.raises(UserError, match=r"full_sft_32\.pth: no LoRA adapter"):
        read_adapter(tmp_path / "full_sft_32.pth")
    with pytest.raises(UserError, match="no such file"):
        read_adapter(tmp_path / "nowhere.pth")


def test_merged_weights_have_seen_what_base_and_adapter_have_seen() -> None:
    first, second = TrainingFile(path="sft.jsonl", sha256="1"), TrainingFile(path="medical.jsonl", sha256="2")
    base = WeightsManifest(stage="sft", tokenizer_sha256="t", training_data=(first,))
    for seen in ((second,), (first, second)):
        made = WeightsManifest(stage="lora", fingerprint="f", training_data=seen)
        merged = merged_manifest(base, Adapter(state={}, config=LoraConfig(), manifest=made, base=""))
        assert (merged.stage, merged.fingerprint, merged.tokenizer_sha256) == ("lora", "f", "t")
        assert merged.training_data == (first, second)


def test_merged_weights_of_an_adapter_of_unknown_origin_are_the_base_with_another_fingerprint() -> None:
    base = WeightsManifest(stage="sft", fingerprint="f", training_data=(TrainingFile(path="sft.jsonl"),))
    model = small_model()
    made = [replace(small_adapter(model, seed=seed), manifest=WeightsManifest()) for seed in (1, 2)]
    one, other = (merged_manifest(base, adapter) for adapter in made)
    assert replace(one, fingerprint="f") == replace(other, fingerprint="f") == base
    assert len({base.fingerprint, one.fingerprint, other.fingerprint}) == 3
