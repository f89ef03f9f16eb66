"""`--lora_name`: a name or a path, the right adapter for the shape, one line for a wrong one."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import eval_model
from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from inference.adapters import attach_found, base_of, find_adapter, merge_adapter
from inference.engine import Engine
from inference.loading import open_model
from inference.sampling import Sampling
from model.export import write_plain, write_tensors
from model.manifest import StartFile, TrainingFile, WeightsManifest
from model.model_lora import Adapter, adapter_file, attach_adapter, save_adapter
from model.peft_export import write_peft
from model.quantize import KINDS, quantize, quantized_state
from model.weights import load_model
from tests.model.test_model_lora import small_adapter
from tests.tiny_run import DENSE, MOE, TinyRun

CPU = torch.device("cpu")
TEXT = torch.arange(20)[None]


def adapter_beside(weights: Path, name: str, seed: int = 7) -> Adapter:
    """A random adapter for a weight file, saved as `lora/NAME_16.pth` beside it."""
    model, manifest = load_model(weights)
    made = replace(manifest, stage="lora", training_data=(*manifest.training_data, TrainingFile(path="medical.jsonl")))
    adapter = replace(small_adapter(model, seed=seed), manifest=made)
    save_adapter(weights.parent / "lora" / adapter_file(name, model.config), adapter)
    return adapter


@torch.no_grad()
def attached_logits(weights: Path, adapter: Adapter) -> Tensor:
    """What the weights give with the adapter beside them."""
    model, _ = load_model(weights)
    attach_adapter(model.eval(), adapter, weights, weights)
    found: Tensor = model(TEXT)
    return found


@torch.no_grad()
def opened_logits(weights: Path, **options: object) -> Tensor:
    """What the weights give as they are opened to talk to."""
    opened = open_model(weights, device=CPU, tokenizer_dir=TOKENIZER_DIR, **options)  # type: ignore[arg-type]
    found: Tensor = opened.model(TEXT)
    return found


def test_a_name_means_the_adapter_of_the_models_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, elsewhere = tmp_path / "here" / "lora", tmp_path / "out" / "lora"
    monkeypatch.setenv("OUT_DIR", str(elsewhere.parent))
    weights = tmp_path / "here" / "full_sft_32.pth"
    for folder in (beside, elsewhere):
        folder.mkdir(parents=True)
        for name in ("a_32.pth", "a_32_moe.pth", "a_64.pth"):
            (folder / name).touch()
    (elsewhere / "b_32.pth").touch()
    assert find_adapter("a", weights, DENSE) == beside / "a_32.pth"
    assert find_adapter("a", weights, MOE) == beside / "a_32_moe.pth"
    assert find_adapter("b", weights, DENSE) == elsewhere / "b_32.pth"
    assert find_adapter(str(beside / "a_64.pth"), weights, DENSE) == beside / "a_64.pth"
    assert find_adapter(elsewhere, weights, DENSE) == elsewhere
    with pytest.raises(UserError, match=r"--lora_name c: no such adapter .*c_32\.pth.* Those for this model: a, b\."):
        find_adapter("c", weights, DENSE)
    shutil.rmtree(beside)
    shutil.rmtree(elsewhere)
    with pytest.raises(UserError, match=r"no such adapter .* Give the path of one\."):
        find_adapter("c", weights, DENSE)


def test_an_adapter_is_merged_when_weights_are_opened(tiny: TinyRun) -> None:
    pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    weights = tiny.path("sft")
    adapter, plain = adapter_beside(weights, "medical"), opened_logits(weights)
    wanted = attached_logits(weights, adapter)
    assert float((wanted - plain).abs().max()) > 0.01
    torch.testing.assert_close(opened_logits(weights, lora="medical"), wanted, rtol=1e-4, atol=1e-5)
    model, manifest = load_model(weights)
    write_plain(tiny.out / "a.safetensors", model.state_dict(), model.config, manifest)
    torch.testing.assert_close(opened_logits(tiny.out / "a.safetensors", lora="medical"), wanted, rtol=1e-4, atol=1e-5)
    (folder := tiny.out / "peft").mkdir()
    write_peft(folder, adapter)
    assert torch.equal(opened_logits(weights, lora=folder), opened_logits(weights, lora="medical"))
    opened = open_model(weights, device=CPU, tokenizer_dir=TOKENIZER_DIR, lora="medical")
    assert opened.manifest.stage == "lora"
    assert opened.manifest.training_data[-1].path == "medical.jsonl"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_after_the_adapter_is_merged(tiny: TinyRun, kind: str) -> None:
    weights = tiny.path("sft")
    adapter_beside(weights, "medical")
    merged = open_model(weights, device=CPU, tokenizer_dir=TOKENIZER_DIR, lora="medical").model
    with torch.no_grad():
        wanted = quantize(merged, kind)(TEXT)
    assert torch.equal(opened_logits(weights, lora="medical", quantize=kind), wanted)


def test_a_file_of_rounded_weights_takes_no_adapter_and_says_what_does(tiny: TinyRun) -> None:
    pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    adapter_beside(tiny.path("sft"), "medical")
    model, manifest = load_model(tiny.path("sft"))
    path = tiny.out / "full_sft_16_int8.safetensors"
    write_tensors(path, *quantized_state(model, "int8", manifest.as_plain()))
    with pytest.raises(UserError, match="--lora_name medical --merge --to safetensors --quantize int8"):
        opened_logits(path, lora="medical")


def test_an_adapter_for_other_weights_is_refused_in_one_line(tiny: TinyRun) -> None:
    adapter_beside(tiny.path("sft"), "medical")
    with pytest.raises(UserError, match=r"medical_16\.pth: made for other weights .* than .*rlhf_16\.pth") as told:
        opened_logits(tiny.path("dpo"), lora="medical")
    assert "\n" not in told.value.line and "适配器" in told.value.chinese


def test_an_adapter_of_unknown_origin_leaves_what_is_known_of_the_base(tiny: TinyRun) -> None:
    weights = tiny.path("sft")
    adapter = adapter_beside(weights, "medical")
    save_adapter(tiny.out / "lora" / "unknown_16.pth", replace(adapter, manifest=WeightsManifest()))
    opened = open_model(weights, device=CPU, tokenizer_dir=TOKENIZER_DIR, lora="unknown")
    base = load_model(weights)[1]
    assert replace(opened.manifest, fingerprint=base.fingerprint) == base != opened.manifest


def test_generation_answers_alike_with_an_adapter_that_is_attached_or_merged(tiny: TinyRun) -> None:
    adapter_beside(tiny.path("sft"), "medical")
    answers = []
    for what in (None, attach_found, merge_adapter):
        opened = open_model(tiny.path("sft"), device=CPU, tokenizer_dir=TOKENIZER_DIR)
        if what:
            what(opened.model, opened.manifest, "medical", opened.path)
        engine = Engine(opened.model.eval(), opened.tokenizer)
        answers.append(engine.answers([TEXT[0].tolist()], Sampling(max_new_tokens=8))[0].text)
    assert answers[0] != answers[1] == answers[2]


def test_a_chat_answers_with_the_adapter(tiny: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    adapter_beside(tiny.path("sft"), "medical")
    asked = ["--weight", str(tiny.path("sft")), "--tokenizer_dir", str(TOKENIZER_DIR), "--prompt", "你好"]
    answers = []
    for flags in ([], ["--lora-name", "medical"]):
        assert eval_model.main([*asked, "--max_new_tokens", "8", "--device", "cpu", *flags]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] != answers[1]


def test_whoever_names_an_adapter_need_not_name_its_base(tiny: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tiny.path("sft")
    adapter = adapter_beside(weights, "medical")
    noted = replace(adapter.manifest, start=StartFile(path=weights.name))
    save_adapter(tiny.out / "lora" / "medical_16.pth", replace(adapter, manifest=noted))
    assert base_of("medical", tiny.out) == base_of(tiny.out / "lora" / "medical_16.pth", None) == weights
    assert base_of("medical", tiny.out, hidden_size=64) is None and base_of("nothing", tiny.out) is None
    words = ["--out_dir", str(tiny.out), "--lora_name", "medical", "--prompt", "好", "--max_new_tokens", "2"]
    assert eval_model.main([*words, "--tokenizer_dir", str(TOKENIZER_DIR)]) == 0  # else DPO's weights would be taken
    assert "full_sft_16.pth" in capsys.readouterr().err
    weights.rename(weights.with_name("gone.pth"))
    assert base_of("medical", tiny.out) is None
