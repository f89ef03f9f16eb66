"""scripts/convert_model.py: one model in, one out, and nothing lost on the way."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.artifacts import sha256_file
from configs.paths import ROOT, TOKENIZER_DIR
from configs.schema import UserError
from dataset.tokenizer_files import TOKENIZER_FILES
from inference.loading import open_model
from model.export import read_tensors
from model.heads import attach_reward_head
from model.model_lora import Adapter, read_adapter
from model.peft_export import write_peft
from model.quantize import KINDS
from model.weights import load_model, read_weights, save_weights
from scripts.convert_model import main
from tests.inference.test_adapters import adapter_beside, attached_logits, opened_logits
from tests.tiny_run import TinyRun

pytest.importorskip("safetensors", reason="the package safetensors is not installed")


def convert(source: Path, to: str, output: Path, *flags: str) -> int:
    """Run the program in this process."""
    return main(["--input", str(source), "--to", to, "--output", str(output), *flags])


def assert_same_weights(one: Path, other: Path) -> None:
    """Both weight files hold the same bits, shape and manifest."""
    (state, config, manifest), (others, other_config, other_manifest) = read_weights(one), read_weights(other)
    assert (config, manifest, state.keys()) == (other_config, other_manifest, others.keys())
    assert all(torch.equal(tensor, others[name]) for name, tensor in state.items())


@pytest.mark.parametrize("to", ["hf", "safetensors"])
def test_weights_return_bit_by_bit(trained: TinyRun, tmp_path: Path, to: str) -> None:
    exported = tmp_path / ("a.safetensors" if to == "safetensors" else "folder")
    assert convert(trained.path("dpo"), to, exported) == 0
    assert convert(exported, "pth", tmp_path / "again_16.pth") == 0
    assert_same_weights(trained.path("dpo"), tmp_path / "again_16.pth")


def test_the_folder_holds_the_tokenizer_the_template_and_a_card(trained: TinyRun, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    convert(trained.path("sft"), "hf", folder)
    for name in TOKENIZER_FILES:
        assert (folder / name).read_bytes() == (TOKENIZER_DIR / name).read_bytes(), name
    in_config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == in_config
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| Last stage of the training | sft |" in card
    assert "- sft.jsonl" in card and str(tmp_path) not in card


def test_yarn_is_written_on_demand_and_is_no_part_of_weights(
    trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    convert(trained.path("sft"), "hf", folder, "--rope_scaling_factor", "4")
    values = json.loads((folder / "config.json").read_text())
    assert values["rope_scaling"]["factor"] == 4.0
    convert(folder, "pth", tmp_path / "again_16.pth")
    assert "--rope_scaling_factor 4" in capsys.readouterr().out
    assert_same_weights(trained.path("sft"), tmp_path / "again_16.pth")
    with pytest.raises(UserError, match="keeps no YaRN"):
        convert(folder, "pth", tmp_path / "again_16.pth", "--rope_scaling_factor", "4")


def test_a_gguf_file_has_a_modelfile_beside_it(trained: TinyRun, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    for stage, template in (("sft", ":= .Messages }}"), ("pretrain", 'TEMPLATE """<|bos|>{{ .Prompt }}"""')):
        assert convert(trained.path(stage), "gguf", tmp_path / f"{stage}.gguf", "--quantize", "q8_0") == 0
        text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
        assert text.startswith(f"FROM ./{stage}.gguf\n") and template in text
        assert 'PARAMETER stop "<|assistant_end|>"' in text
        assert "PARAMETER num_ctx 32\n" in text  # the rows of its training


@pytest.mark.parametrize(
    ("to", "flag"), [("pth", "--verify"), ("hf", "--quantize=q8_0"), ("safetensors", "--rope_scaling_factor=2")]
)
def test_a_flag_that_a_format_has_no_use_for_is_refused(trained: TinyRun, tmp_path: Path, to: str, flag: str) -> None:
    with pytest.raises(UserError, match=flag.split("=")[0]):
        convert(trained.path("sft"), to, tmp_path / "x", flag)
    assert not (tmp_path / "x").exists()


def test_a_folder_of_others_becomes_weights_and_a_line_says_that_nobody_can_talk_to_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shape: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen3Config(
        **shape, num_key_value_heads=1, head_dim=16, intermediate_size=48, tie_word_embeddings=True
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", "pth", tmp_path / "theirs_32.pth")
    assert "can be read, not talked to" in capsys.readouterr().out
    assert read_weights(tmp_path / "theirs_32.pth")[1].hidden_size == 32
    with pytest.raises(UserError, match=r"no tokenizer\.json in it"):
        convert(tmp_path / "theirs", "hf", tmp_path / "again")


def test_another_tokenizer_than_that_of_the_weights_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    content = torch.load(tiny.path("sft"), weights_only=True)
    content["manifest"]["tokenizer_sha256"] = "0" * 64
    torch.save(content, tiny.path("sft"))
    with pytest.raises(UserError, match="made with another tokenizer"):
        convert(tiny.path("sft"), "hf", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("to", ["pth", "safetensors", "hf", "gguf"])
def test_a_reward_model_is_refused_in_one_line(trained: TinyRun, tmp_path: Path, to: str) -> None:
    model, manifest = load_model(trained.path("sft"))
    reward = tmp_path / "reward_16.pth"
    save_weights(reward, attach_reward_head(model), replace(manifest, stage="reward"))
    with pytest.raises(UserError, match=r"reward_16\.pth: a reward model, which scores answers and writes none\."):
        convert(reward, to, tmp_path / f"export.{to}")
    assert not (tmp_path / f"export.{to}").exists()


def test_the_program_runs_as_a_file_and_answers_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "convert_model.py")]
    assert subprocess.run([*command, "--help"], capture_output=True, check=False).returncode == 0
    wrong = subprocess.run(
        [*command, "--input", str(tmp_path), "--to", "pth", "--output", str(tmp_path / "x.pth")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_rounded_weights_answers_as_weights_rounded_when_they_are_opened(
    trained: TinyRun, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"full_sft_16_{kind}.safetensors"
    assert convert(trained.path("sft"), "safetensors", path, "--quantize", kind) == 0
    cpu, ids = torch.device("cpu"), torch.arange(20)[None]
    kept = open_model(path, device=cpu, tokenizer_dir=TOKENIZER_DIR)
    packed = open_model(trained.path("sft"), device=cpu, tokenizer_dir=TOKENIZER_DIR, quantize=kind)
    assert (kept.manifest, kept.num_parameters) == (packed.manifest, packed.num_parameters)
    with torch.no_grad():
        assert torch.equal(kept.model(ids), packed.model(ids))
    plain = tmp_path / "plain.safetensors"
    convert(trained.path("sft"), "safetensors", plain)
    assert path.stat().st_size < plain.stat().st_size
    assert torch.equal(
        open_model(plain, device=cpu, tokenizer_dir=TOKENIZER_DIR).model(ids), trained_logits(trained, ids)
    )


def test_gptq_rounds_after_the_training_text_that_is_given(
    trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both kinds of text; the file says which, and the model it holds opens."""
    weights, flags = trained.path("sft"), ("--quantize", "int4", "--gptq", "--tokenizer_dir", str(TOKENIZER_DIR))
    convert(weights, "safetensors", tmp_path / "plain.safetensors", "--quantize", "int4")
    plain, _ = read_tensors(tmp_path / "plain.safetensors")
    for text in (trained.data / "sft.jsonl", trained.data / "sft_sft_tokens"):
        path = tmp_path / f"{text.name}.safetensors"
        assert convert(weights, "safetensors", path, *flags, "--calibration", str(text)) == 0
        assert "tokens of" in capsys.readouterr().out
        tensors, facts = read_tensors(path)
        told = json.loads(facts["calibration"])
        assert told["path"] == text.name and told["sha256"] == sha256_file(trained.data / "sft.jsonl")
        assert tensors.keys() == plain.keys()
        assert any(not torch.equal(tensor, plain[name]) for name, tensor in tensors.items())
        logits = open_model(path, device=torch.device("cpu"), tokenizer_dir=TOKENIZER_DIR).model(torch.arange(9)[None])
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--gptq",), "--gptq: goes with --calibration"),
        (("--calibration", "sft.jsonl"), "--calibration: goes with --gptq"),
        (("--gptq", "--calibration", "sft.jsonl", "--quantize", "int8"), "--gptq: rounds for --to safetensors"),
        (("--gptq", "--calibration", "sft_heldout.jsonl", "--quantize", "int4"), "a held-out record"),
        (("--gptq", "--calibration", "dpo_dpo_tokens", "--quantize", "int4"), "tensors of pairs"),
        (("--gptq", "--calibration", "none.jsonl", "--quantize", "int4"), "none.jsonl"),
    ],
)
def test_gptq_without_the_text_or_the_type_that_it_needs_is_refused(
    trained: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], line: str
) -> None:
    monkeypatch.chdir(trained.data)
    with pytest.raises(UserError, match=line):
        convert(trained.path("sft"), "safetensors", tmp_path / "x", "--tokenizer_dir", str(TOKENIZER_DIR), *flags)
    assert not list(tmp_path.iterdir())


def trained_logits(trained: TinyRun, ids: torch.Tensor) -> torch.Tensor:
    """What the weights of SFT give in float32."""
    logits: torch.Tensor = load_model(trained.path("sft"))[0].eval()(ids)
    return logits


def test_rounded_weights_become_nothing_else(trained: TinyRun, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    convert(trained.path("sft"), "safetensors", path, "--quantize", "int8")
    for to in ("hf", "pth", "gguf"):
        with pytest.raises(UserError, match="can't become float32 again"):
            convert(path, to, tmp_path / to)
    for flags in ({"quantize": "int4"}, {"device": torch.device("meta")}):
        with pytest.raises(UserError, match="are int8 already"):
            open_model(path, **({"device": torch.device("cpu"), "tokenizer_dir": TOKENIZER_DIR} | flags))


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        ("hf", "int8"),
        ("hf", "q8_0"),
        ("pth", "fp16"),
        ("safetensors", "q8_0"),
        ("safetensors", "f16"),
        ("gguf", "int4"),
    ],
)
def test_a_type_that_a_format_does_not_hold_is_refused(trained: TinyRun, tmp_path: Path, to: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"--quantize {kind}: --to {to} holds"):
        convert(trained.path("sft"), to, tmp_path / "x", "--quantize", kind)
    assert not list(tmp_path.iterdir())


# --- adapters -------------------------------------------------------------------------------------


@pytest.fixture
def adapted(tiny: TinyRun) -> Adapter:
    """An adapter `medical` for the weights of SFT, in `out/lora/`."""
    return adapter_beside(tiny.path("sft"), "medical")


@pytest.mark.parametrize(("to", "name"), [("hf", "folder"), ("safetensors", "a.safetensors"), ("pth", "b_16.pth")])
def test_a_merged_export_answers_as_the_adapter_does(
    tiny: TinyRun, adapted: Adapter, tmp_path: Path, to: str, name: str
) -> None:
    wanted = attached_logits(tiny.path("sft"), adapted)
    assert convert(tiny.path("sft"), to, tmp_path / name, "--lora_name", "medical", "--merge") == 0
    convert(tmp_path / name, "pth", tmp_path / "again_16.pth")
    torch.testing.assert_close(opened_logits(tmp_path / "again_16.pth"), wanted, rtol=1e-4, atol=1e-5)
    manifest = read_weights(tmp_path / "again_16.pth")[2]
    assert manifest.stage == "lora" and manifest.training_data[-1].path == "medical.jsonl"


def test_a_merged_gguf_holds_the_merged_weights(tiny: TinyRun, adapted: Adapter, tmp_path: Path) -> None:
    gguf = pytest.importorskip("model.gguf")
    convert(tiny.path("sft"), "gguf", tmp_path / "a.gguf", "--lora_name", "medical", "--merge")
    convert(tiny.path("sft"), "pth", tmp_path / "merged_16.pth", "--lora_name", "medical", "--merge")
    state = read_weights(tmp_path / "merged_16.pth")[0]
    held = gguf.our_names(gguf.read_gguf(tmp_path / "a.gguf")[0], state)
    assert all(torch.equal(tensor, held[name]) for name, tensor in state.items())


def test_merged_weights_are_rounded_as_when_an_adapter_is_given_to_chat(
    tiny: TinyRun, adapted: Adapter, tmp_path: Path
) -> None:
    path = tmp_path / "full_sft_16_int8.safetensors"
    convert(tiny.path("sft"), "safetensors", path, "--lora_name", "medical", "--merge", "--quantize", "int8")
    assert torch.equal(opened_logits(path), opened_logits(tiny.path("sft"), lora="medical", quantize="int8"))


def test_an_adapter_travels_to_peft_and_back_bit_by_bit(
    tiny: TinyRun, adapted: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, again = tmp_path / "peft", tiny.out / "lora" / "again_16.pth"
    assert convert(tiny.path("sft"), "peft", folder, "--lora_name", "medical") == 0
    assert f"{sum(tensor.numel() for tensor in adapted.state.values()):,} parameters" in capsys.readouterr().out
    assert convert(folder, "pth", again, "--base", str(tiny.path("sft"))) == 0
    returned = read_adapter(again)
    assert (returned.config, returned.manifest, returned.base) == (adapted.config, adapted.manifest, adapted.base)
    assert all(torch.equal(tensor, returned.state[name]) for name, tensor in adapted.state.items())
    convert(tiny.path("sft"), "peft", folder, "--lora_name", "again")  # over an older export
    with pytest.raises(UserError, match="made for other weights"):
        convert(folder, "pth", tmp_path / "x.pth", "--base", str(tiny.path("dpo")))
    assert not (tmp_path / "x.pth").exists()


def test_an_adapter_of_others_gets_the_fingerprint_of_its_base(tiny: TinyRun, adapted: Adapter, tmp_path: Path) -> None:
    convert(tiny.path("sft"), "peft", tmp_path / "peft", "--lora_name", "medical")
    (tmp_path / "peft" / "minillm.json").unlink()
    theirs = tiny.out / "lora" / "theirs_16.pth"
    convert(tmp_path / "peft", "pth", theirs, "--base", str(tiny.path("sft")))
    returned, base = read_adapter(theirs), read_weights(tiny.path("sft"))[2]
    assert returned.base == adapted.base
    assert replace(returned.manifest, fingerprint=base.fingerprint) == base != returned.manifest
    assert torch.equal(opened_logits(tiny.path("sft"), lora="theirs"), opened_logits(tiny.path("sft"), lora="medical"))


@pytest.mark.parametrize(
    ("to", "flags", "words"),
    [
        ("peft", (), "Give its --lora_name"),
        ("peft", ("--lora_name", "medical", "--merge"), "leave --merge out"),
        ("peft", ("--lora_name", "medical", "--quantize", "int8"), "--to peft holds f32"),
        ("hf", ("--lora_name", "medical"), "takes --lora_name and --merge together"),
        ("pth", ("--merge",), "takes --lora_name and --merge together"),
        ("pth", ("--base", "x.pth"), "--base is for an adapter of peft"),
        ("hf", ("--lora_name", "nobody", "--merge"), "nobody: no such adapter .*: medical"),
    ],
)
def test_flags_of_adapters_that_do_not_go_together_are_refused(
    tiny: TinyRun, adapted: Adapter, tmp_path: Path, to: str, flags: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        convert(tiny.path("sft"), to, tmp_path / "x", *flags)
    assert not (tmp_path / "x").exists()


def test_a_folder_of_peft_needs_its_base(tiny: TinyRun, adapted: Adapter, tmp_path: Path) -> None:
    convert(tiny.path("sft"), "peft", tmp_path / "peft", "--lora_name", "medical")
    for to, flags in (("pth", ()), ("hf", ("--base", str(tiny.path("sft"))))):
        with pytest.raises(UserError, match=r"peft: --base is for an adapter of peft, which becomes one of ours"):
            convert(tmp_path / "peft", to, tmp_path / "x", *flags)


def test_verify_opens_an_adapter_in_peft_and_finds_a_changed_number(
    tiny: TinyRun, adapted: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    monkeypatch.setattr("inference.verify.NUM_PROMPTS", 20)
    flags = ("--lora_name", "medical", "--verify", "--tokenizer_dir", str(TOKENIZER_DIR))
    assert convert(tiny.path("sft"), "peft", tmp_path / "peft", *flags) == 0
    report = json.loads((tmp_path / "peft" / "verify.json").read_text())
    assert report.keys() == {"peft"} and report["peft"]["ok"]
    assert report["peft"]["max_logit_diff"] < 1e-4

    def altered(folder: Path, adapter: Adapter) -> None:
        name = next(iter(adapter.state))
        write_peft(folder, replace(adapter, state={**adapter.state, name: adapter.state[name] + 1e-3}))

    monkeypatch.setattr("scripts.convert_model.write_peft", altered)
    assert convert(tiny.path("sft"), "peft", tmp_path / "peft", *flags) == 1
    assert not json.loads((tmp_path / "peft" / "verify.json").read_text())["peft"]["weights_equal"]
