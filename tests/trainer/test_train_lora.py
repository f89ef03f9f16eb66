"""LoRA as users run it: the base is never touched, a killed run ends as an unbroken one, a wrong
start is refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.schema import UserError
from inference.loading import open_model
from model.export import Marks, write_hugging_face
from model.manifest import WeightsManifest
from model.model_lora import Adapter, attach_adapter, base_fingerprint, read_adapter
from model.peft_export import write_peft
from model.weights import load_model, read_weights
from tests.tiny_run import TinyRun, chat, killed_in_step, write_jsonl
from trainer.resume import read_state

WORDS = ["--lora_rank", "2", "--lora_dropout", "0.2", "--learning_rate", "0.05", "--seed", "5"]
"""Flags of most tests: a small adapter that learns a lot in six steps."""


@pytest.fixture
def ready(tiny: TinyRun) -> TinyRun:
    """Records for an adapter, and old rows to replay."""
    write_jsonl(tiny.data / "lora.jsonl", [{"conversations": chat(f"第{n}题", f"答{n % 5}。")} for n in range(30)])
    return tiny


def lora(run: TinyRun, *words: str) -> int:
    """Train an adapter with replay of the rows of SFT."""
    return run.train("lora", "--replay_path", str(run.data / "sft_sft_tokens"), *WORDS, *words)


def adapter_of(run: TinyRun) -> Adapter:
    return read_adapter(run.path("lora"))


def same(one: Adapter, other: Adapter) -> bool:
    """Whether both have the same bits."""
    return one.state.keys() == other.state.keys() and all(
        torch.equal(tensor, other.state[name]) for name, tensor in one.state.items()
    )


def test_the_base_stays_as_it_was_and_the_file_holds_the_adapter_alone(ready: TinyRun) -> None:
    before = ready.path("sft").read_bytes()
    assert lora(ready) == 0
    assert ready.path("sft").read_bytes() == before
    adapter, (base, _) = adapter_of(ready), load_model(ready.path("sft"))
    assert adapter.base == base_fingerprint(base)
    assert all(name.endswith(("lora_A", "lora_B")) for name in adapter.state) and len(adapter.state) == 14
    assert all(tensor.any() for tensor in adapter.state.values())
    assert adapter.manifest.stage == "lora" and adapter.manifest.start is not None
    assert adapter.manifest.start.path == "full_sft_16.pth"
    with pytest.raises(UserError, match="an adapter, no whole weights"):
        read_weights(ready.path("lora"))


def test_what_was_trained_is_what_is_opened(ready: TinyRun) -> None:
    assert lora(ready) == 0
    ids = torch.arange(24)[None]
    model, _ = load_model(ready.path("sft"))
    attach_adapter(model.eval(), adapter_of(ready), ready.path("lora"), ready.path("sft"))
    opened = open_model(ready.path("sft"), device=torch.device("cpu"), lora="lora_identity")
    with torch.no_grad():
        torch.testing.assert_close(opened.model(ids), model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [1, 3, 4, 6])  # nothing saved; a step lost; before a save was due; the last
def test_a_run_killed_in_any_step_ends_bit_for_bit_as_an_unbroken_one(ready: TinyRun, step: int) -> None:
    assert lora(ready) == 0
    unbroken, losses = adapter_of(ready), ready.metric("lora")
    ready.path("lora").unlink()
    with killed_in_step(step):
        lora(ready)
    assert lora(ready) == 0
    assert same(adapter_of(ready), unbroken)
    assert ready.metric("lora") == losses


def test_a_resume_state_holds_the_adapter_and_not_the_base(ready: TinyRun) -> None:
    with killed_in_step(3):
        lora(ready)
    state = read_state(ready.states("lora")[0])
    assert set(state["model"]) == {name for name in state["model"] if ".lora_" in name} != set()


def test_only_the_layers_that_are_asked_for_get_an_adapter(ready: TinyRun) -> None:
    assert lora(ready, "--target_modules", "q_proj,o_proj", "--use_rslora") == 0
    config = adapter_of(ready).config
    assert config.target_modules == ("q_proj", "o_proj") and config.use_rslora and config.r == 2
    assert len(adapter_of(ready).state) == 4


def test_two_names_are_two_files_and_a_rerun_trains_neither_again(
    ready: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lora(ready) == 0 and lora(ready, "--lora_name", "other", "--seed", "6") == 0
    assert {path.name for path in (ready.out / "lora").glob("*.pth")} == {"lora_identity_16.pth", "other_16.pth"}
    capsys.readouterr()
    assert lora(ready) == 0 and lora(ready, "--lora_name", "other", "--seed", "6") == 0
    assert capsys.readouterr().err.count("is already the result of these settings") == 2


def test_an_adapter_of_other_settings_is_kept_beside_the_new_one(ready: TinyRun) -> None:
    assert lora(ready) == 0
    before = adapter_of(ready)
    assert lora(ready, "--seed", "7") == 0
    assert same(read_adapter(ready.path("lora").with_name("lora_identity_16.previous.pth")), before)
    assert not same(adapter_of(ready), before)


def test_a_bundled_set_is_written_to_the_data_folder_and_trained_on(
    ready: TinyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "processed"))
    assert lora(ready, "--data_path", "lora_medical", "--replay_share", "0") == 0
    assert (tmp_path / "processed" / "lora_medical_heldout.jsonl").is_file()
    (file,) = [file for file in adapter_of(ready).manifest.training_data if file.path.endswith("lora_medical.jsonl")]
    assert file.records > 900


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from_weight", "none"], r"--from_weight none: an adapter needs weights"),
        (["--hidden_size", "32"], r"full_sft_32\.pth: no such weights"),
        (["--num_hidden_layers", "3"], r"--num_hidden_layers 3: .* was made with 1"),
        (["--target_modules", "embed_tokens"], r"target_modules: embed_tokens: .* Choose among q_proj"),
        (["--optimizer", "muon"], r"optimizer = 'muon': adapters are trained with adamw"),
        (["--lora_rank", "0"], r"lora_rank = 0: must be 1 or more"),
        (["--lora_alpha", "-1"], r"alpha = -1\.0: must be a number above 0"),
        (["--lora_name", "a/b"], r"lora_name = 'a/b': must be a plain name"),
    ],
)
def test_what_can_not_be_trained_is_refused_in_one_line(ready: TinyRun, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora(ready, *words)


def test_an_adapter_as_start_or_an_empty_data_set_is_refused_in_one_line(ready: TinyRun) -> None:
    assert lora(ready) == 0
    with pytest.raises(UserError, match="an adapter, no whole weights"):
        lora(ready, "--from_weight", str(ready.path("lora")))
    (empty := ready.data / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: no record to train on"):
        lora(ready, "--data_path", str(empty))


def test_weights_that_are_trained_again_no_longer_take_the_adapter(ready: TinyRun) -> None:
    assert lora(ready) == 0
    assert ready.train("sft", "--seed", "9") == 0
    with pytest.raises(UserError, match="made for other weights"):
        open_model(ready.path("sft"), device=torch.device("cpu"), lora="lora_identity")


def test_peft_computes_the_same_with_an_adapter_that_was_trained_here(ready: TinyRun, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    assert lora(ready) == 0
    ours, _ = load_model(ready.path("sft"))
    for folder in ("base", "adapter"):
        (tmp_path / folder).mkdir()
    write_hugging_face(tmp_path / "base", ours.state_dict(), ours.config, WeightsManifest(), Marks(1, (2, 3), 3))
    write_peft(tmp_path / "adapter", adapter_of(ready))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    attach_adapter(ours.eval(), adapter_of(ready), ready.path("lora"), ready.path("sft"))
    ids = torch.arange(48).view(2, 24)
    with torch.no_grad():
        found: Tensor = ours(ids)
        torch.testing.assert_close(wrapped(ids).logits.float(), found, rtol=0, atol=1e-5 * float(found.abs().max()))
