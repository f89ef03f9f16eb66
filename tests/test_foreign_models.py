"""A Qwen3 of others, `--load_from`: talked with, scored, trained further, and exported again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import eval_model
from configs.paths import ROOT
from configs.schema import UserError
from dataset.tokenizer import RustBPETokenizer
from inference.loading import open_model
from model.export import TENSORS, read_tensors, write_tensors
from model.weights import read_weights
from scripts import convert_model, evaluate_stage, export_embeddings
from tests.foreign_model import PLAIN, change_json, write_model, write_tokenizer
from tests.tiny_run import TinyRun, kept_signal_handlers, write_records
from trainer import train_full_sft

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
CPU = torch.device("cpu")
QUESTIONS = ("3+4等于多少？", "你好", "Who are you?", "<|im_end|>", "  \n 写一首诗")


def their_model(folder: Path) -> Any:
    """The folder in transformers, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Of ours or theirs, (B, T, V)."""
    found = model(ids)
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits


def assert_same_logits(folder: Path) -> None:
    """Our logits of every row of the embedding are those of transformers."""
    ours = open_model(folder, device=CPU).model
    ids = torch.randint(0, ours.config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))
    theirs = logits_of(their_model(folder), ids)
    torch.testing.assert_close(logits_of(ours, ids), theirs, atol=1e-4, rtol=0)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "moe", "several files", "marks first"])
def test_logits_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    marks_first = kind == "marks first"
    write_tokenizer(tmp_path, template=PLAIN, marks_first=marks_first)
    write_model(tmp_path, moe=kind == "moe", max_shard_size="20KB" if kind == "several files" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() is (kind == "several files")
    assert_same_logits(tmp_path)


def test_rope_may_be_told_in_either_way(foreign: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(foreign, tmp_path / "old"))
    change_json(folder / "config.json", rope_theta=5000.0, rope_parameters=None)
    new = Path(shutil.copytree(foreign, tmp_path / "new"))
    change_json(new / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    for one in (folder, new):
        assert open_model(one, device=CPU).model.config.rope_theta == 5000.0
    assert_same_logits(new)


def test_an_output_matrix_of_its_own_is_refused_unless_it_is_the_embedding(tmp_path: Path) -> None:
    write_model(write_tokenizer(tmp_path), tied=False)
    with pytest.raises(UserError, match="lm_head"):
        open_model(tmp_path, device=CPU)
    tensors, facts = read_tensors(tmp_path / TENSORS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_tensors(tmp_path / TENSORS, tensors, facts)
    assert_same_logits(tmp_path)


def test_yarn_of_the_folder_counts_where_no_flag_changes_it(foreign: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(foreign, tmp_path / "yarn"))
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
    change_json(folder / "config.json", rope_parameters=yarn)
    assert open_model(folder, device=CPU).model.config.rope_scaling_factor == 4.0
    assert open_model(folder, device=CPU, rope_scaling_factor=2.0).model.config.rope_scaling_factor == 2.0
    assert_same_logits(folder)


def break_config(folder: Path) -> None:
    change_json(folder / "config.json", model_type="llama")


def break_shard(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"x")


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_weights(folder: Path) -> None:
    (folder / TENSORS).unlink()


def lose_rows(folder: Path) -> None:
    tensors, facts = read_tensors(folder / TENSORS)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:300]
    write_tensors(folder / TENSORS, tensors, facts)
    change_json(folder / "config.json", vocab_size=300)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_config, "model_type is 'llama'"),
        (break_shard, "damaged or cut short"),
        (lose_tokenizer, r"no tokenizer\.json in it"),
        (lose_weights, r"no \*\.safetensors in it"),
        (lose_rows, "has 300 rows"),
        (shutil.rmtree, "no such file or folder"),
    ],
)
def test_a_bad_folder_is_refused_in_one_line(foreign: Path, tmp_path: Path, damage: Any, said: str) -> None:
    folder = Path(shutil.copytree(foreign, tmp_path / "bad"))
    damage(folder)
    with pytest.raises(UserError, match=said) as caught:
        eval_model.main(["--load_from", str(folder), "--prompt", "你好", "--device", "cpu"])
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder with a config\.json"):
        eval_model.main(["--load_from", str(tmp_path), "--prompt", "你好"])


# --- talking --------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_transformers(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, words = their_model(foreign), transformers.AutoTokenizer.from_pretrained(foreign)
    tokenizer = RustBPETokenizer.from_directory(foreign)
    for question in QUESTIONS:
        ours = tokenizer.render_for_completion([{"role": "user", "content": question}])
        if "<|" not in question:  # there transformers would read a mark
            talk = [{"role": "user", "content": question}]
            asked = words.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False)
            assert ours == list(asked)
        prompt = torch.tensor([ours])
        row = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20)
        said = [
            token for token in row[0, prompt.shape[1] :].tolist() if token not in model.generation_config.eos_token_id
        ]
        flags = ["--load_from", str(foreign), "--prompt", question, "--max_new_tokens", "20", "--device", "cpu"]
        assert eval_model.main(flags) == 0
        assert capsys.readouterr().out == tokenizer.decode(said) + "\n"


def test_the_program_answers_as_a_person_starts_it(foreign: Path) -> None:
    command = [sys.executable, str(ROOT / "eval_model.py"), "--load_from", str(foreign), "--prompt", "你好"]
    done = subprocess.run(
        [*command, "--max_new_tokens", "4", "--quantize", "int8", "--device", "cpu"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip()


def test_only_one_start_can_be_given(foreign: Path) -> None:
    for program, other in ((eval_model.main, "--weight"), (train_full_sft.main, "--from_weight")):
        with pytest.raises(SystemExit):
            program(["--load_from", "a", other, "b"])
    with pytest.raises(UserError, match="has its own tokenizer"):
        train_full_sft.main(["--load_from", str(foreign), "--tokenizer_dir", "b"])


# --- training further -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """SFT and DPO from the folder. Tests only read it."""
    folder = tmp_path_factory.mktemp("tuned")
    write_records(folder / "data")
    run = TinyRun(folder / "data", folder / "out")
    sft = train_flags(run, "sft", "--load_from", str(foreign), "--max_steps=15", "--learning_rate=3e-3")
    with kept_signal_handlers():
        assert train_full_sft.main(sft) == 0
    assert run.train("dpo", "--max_seq_len=64") == 0
    return run


def train_flags(run: TinyRun, stage: str, *words: str) -> list[str]:
    """A trainer's command line that names no tokenizer: the weights bring theirs."""
    flags = run.flags(stage, "--max_seq_len=64", *words)
    place = flags.index("--tokenizer_dir")
    return flags[:place] + flags[place + 2 :]


def sft_weights(run: TinyRun) -> Path:
    """The result of SFT; the model is 32 wide."""
    return run.out / "full_sft_32.pth"


def test_a_few_steps_lower_the_loss(tuned: TinyRun) -> None:
    losses = tuned.metric("sft", "validation_loss")
    assert losses[max(losses)] < losses[min(losses)] - 0.5


def test_the_weights_bring_their_tokenizer_into_every_later_stage(foreign: Path, tuned: TinyRun) -> None:
    sha256 = RustBPETokenizer.from_directory(foreign).sha256
    for name in ("full_sft_32.pth", "rlhf_32.pth"):
        opened = open_model(tuned.out / name, device=CPU)
        assert opened.tokenizer.sha256 == opened.manifest.tokenizer_sha256 == sha256
    assert read_weights(tuned.out / "rlhf_32.pth")[2].start is not None
    (kept,) = (tuned.out / "tokenizers").iterdir()
    assert (kept / "tokenizer.json").read_bytes() == (foreign / "tokenizer.json").read_bytes()


def test_the_trained_weights_can_be_talked_to(tuned: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert eval_model.main(["--weight", str(sft_weights(tuned)), "--prompt", "1+1等于多少？", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip()


def evaluate(results: Path, stage: str, data: Path, *words: str) -> dict[str, Any]:
    """The result line of an evaluation."""
    flags = ["--stage", stage, "--data_path", str(data), "--results_file", str(results), "--device", "cpu"]
    flags += ["--profile", "smoke", "--first_minutes", "none", "--danger_prompts", "none", *words]
    assert evaluate_stage.main(flags) == 0
    line: dict[str, Any] = json.loads(results.read_text(encoding="utf-8").splitlines()[-1])
    return line


def test_the_trained_weights_are_scored_as_any(tuned: TinyRun, tmp_path: Path) -> None:
    for stage, name in (("sft", "full_sft_32.pth"), ("dpo", "rlhf_32.pth")):
        data = tuned.data / f"{stage}_heldout.jsonl"
        line = evaluate(tmp_path / "r.jsonl", stage, data, "--checkpoint", str(tuned.out / name))
        assert {"loss", "bits_per_byte", "accuracy_math"} <= line["metrics"].keys()


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_the_folder_itself_is_scored_and_a_line_says_that_its_training_is_unknown(
    foreign: Path, tuned: TinyRun, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tuned.data / f"{stage}_heldout.jsonl"
    line = evaluate(tmp_path / "r.jsonl", stage, data, "--load_from", str(foreign))
    assert line["tokenizer_sha256"] == RustBPETokenizer.from_directory(foreign).sha256
    assert "whether it was trained on any of this can't be told" in capsys.readouterr().out
    assert "trained_on" not in [path.name for path in foreign.parent.iterdir()]
    other = Path(shutil.copytree(foreign, tmp_path / "other"))
    tensors, facts = read_tensors(other / TENSORS)
    tensors["model.norm.weight"] *= 2
    write_tensors(other / TENSORS, tensors, facts)
    changed = evaluate(tmp_path / "r.jsonl", stage, data, "--load_from", str(other))
    assert changed["checkpoint_sha256"] != line["checkpoint_sha256"]


def test_pairs_need_a_start(foreign: Path, tuned: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no start to compare pairs with"):
        evaluate(tmp_path / "r.jsonl", "dpo", tuned.data / "dpo_heldout.jsonl", "--load_from", str(foreign))


def test_tensors_are_made_with_the_tokenizer_of_the_folder(
    foreign: Path, tuned: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["sft", "--load_from", str(foreign), "--input", str(tuned.data / "sft.jsonl"), "--inspect", "1"]
    assert export_embeddings.main([*flags, "--output", str(tmp_path / "tokens"), "--max-length", "64"]) == 0
    shown = capsys.readouterr().out
    assert "<|im_start|>·" in shown and "[<|im_end|>]·\\n" in shown and "<|im_start|>]" not in shown
    with kept_signal_handlers():
        run = TinyRun(tuned.data, tmp_path / "out")
        sft = train_flags(run, "sft", "--load_from", str(foreign), f"--data_path={tmp_path / 'tokens'}")
        assert train_full_sft.main(sft) == 0


# --- out again ------------------------------------------------------------------------------------


def test_the_trained_weights_load_in_transformers_with_the_same_logits(
    foreign: Path, tuned: TinyRun, tmp_path: Path
) -> None:
    folder = tmp_path / "hf"
    flags = ["--input", str(sft_weights(tuned)), "--to", "hf", "--output", str(folder)]
    assert convert_model.main(flags) == 0
    assert convert_model.main(flags) == 0  # and may be written again
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (foreign / name).read_bytes()
    assert_same_logits(folder)
    words, talk = transformers.AutoTokenizer.from_pretrained(folder), [{"role": "user", "content": "1+1等于多少？"}]
    asked = words.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False)
    opened = open_model(folder, device=CPU)
    assert opened.tokenizer.render_for_completion(talk) == list(asked)
    values = json.loads((folder / "generation_config.json").read_text())
    assert values["eos_token_id"] == [opened.tokenizer.assistant_end_id, opened.tokenizer.end_of_text_id]


@pytest.mark.parametrize("name", ["again_32.pth", "again.safetensors"])
def test_a_folder_becomes_one_file_that_brings_its_tokenizer(foreign: Path, tmp_path: Path, name: str) -> None:
    to = name.split(".")[1]
    assert convert_model.main(["--input", str(foreign), "--to", to, "--output", str(tmp_path / name)]) == 0
    one, other = open_model(tmp_path / name, device=CPU), open_model(foreign, device=CPU)
    assert one.tokenizer.sha256 == other.tokenizer.sha256
    ids = torch.arange(40)[None]
    assert torch.equal(logits_of(one.model, ids), logits_of(other.model, ids))
    flags = ["--input", str(foreign), "--to", "safetensors", "--quantize", "int8"]
    assert convert_model.main([*flags, "--output", str(tmp_path / "small.safetensors")]) == 0
    assert open_model(tmp_path / "small.safetensors", device=CPU).tokenizer.sha256 == other.tokenizer.sha256


@pytest.mark.parametrize(("flags", "said"), [(["gguf"], "convert_hf_to_gguf"), (["hf", "--verify"], "Leave it out")])
def test_what_needs_our_own_tokenizer_is_refused(foreign: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        convert_model.main(["--input", str(foreign), "--output", str(tmp_path / "a"), "--to", *flags])
    assert not (tmp_path / "a").exists()
