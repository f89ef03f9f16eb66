"""--verify: a sound export passes; a changed weight, merge or character of a template does not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.paths import ROOT, TOKENIZER_DIR
from dataset.tokenizer import RustBPETokenizer
from inference import verify
from inference.other_programs import LlamaCpp, Mlx, Transformers, as_in_openai
from inference.verify import Report, _difference, _part_at_a_near_tie, compare, verification_prompts, verification_texts
from model.export import TENSORS, read_tensors, write_tensors
from model.weights import load_model
from scripts.convert_model import main
from tests.tiny_run import TinyRun

pytest.importorskip("safetensors", reason="the package safetensors is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def exported(trained: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder."""
    folder = tmp_path_factory.mktemp("exported") / "folder"
    assert main(["--input", str(trained.path("sft")), "--to", "hf", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer prompts than a person's check has."""
    monkeypatch.setattr(verify, "NUM_PROMPTS", 10)
    monkeypatch.setattr(verify, "NEW_TOKENS", 8)


def report_of(folder: Path, trained: TinyRun) -> Report:
    """What transformers makes of a folder, beside the weights that it was made from."""
    model, _ = load_model(trained.path("sft"))
    return compare(model.eval(), RustBPETokenizer.from_directory(TOKENIZER_DIR), Transformers(folder))


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Change the text of a file, and make sure that it did change."""
    before = path.read_text(encoding="utf-8")
    assert change(before) != before
    path.write_text(change(before), encoding="utf-8")


def test_a_sound_folder_passes(exported: Path, trained: TinyRun) -> None:
    report = report_of(exported, trained)
    assert report.ok and report.weights_equal and report.ids_equal and report.template_equal
    assert report.greedy_equal + report.near_ties == report.answers == 10
    assert 0 <= report.max_logit_diff <= 1e-4


def test_mlx_gives_the_same(exported: Path, trained: TinyRun) -> None:
    pytest.importorskip("mlx_lm", reason="the package mlx-lm is not installed")
    model, _ = load_model(trained.path("sft"))
    report = compare(model.eval(), RustBPETokenizer.from_directory(TOKENIZER_DIR), Mlx(exported))
    assert report.ok and report.weights_equal and report.ids_equal and report.template_equal
    assert 0 <= report.max_logit_diff <= 1e-4


@pytest.mark.parametrize(("change", "shows"), [(0.5, True), (1e-6, False)])
def test_one_changed_weight_is_caught(folder: Path, trained: TinyRun, change: float, shows: bool) -> None:
    """Also one that is too small to show in the logits."""
    tensors, facts = read_tensors(folder / TENSORS)
    tensors["model.norm.weight"][3] += change
    write_tensors(folder / TENSORS, tensors, facts)
    report = report_of(folder, trained)
    assert not report.ok and not report.weights_equal
    assert (report.max_logit_diff > 1e-4) is shows
    assert report.ids_equal and report.template_equal


def test_one_changed_merge_is_caught(folder: Path, trained: TinyRun) -> None:
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["merges"][300], values["model"]["merges"][900] = (
        values["model"]["merges"][900], values["model"]["merges"][300],
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    report = report_of(folder, trained)
    assert not report.ids_equal and not report.ok
    assert report.max_logit_diff <= 1e-4


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_one_changed_character_of_either_template_is_caught(folder: Path, trained: TinyRun, name: str) -> None:
    edit(folder / name, lambda text: text.replace("+ content +", "+ content + ' ' +", 1))
    report = report_of(folder, trained)
    assert not report.template_equal and not report.ok
    assert report.ids_equal


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_missing_end_token_is_caught(folder: Path, trained: TinyRun, name: str) -> None:
    """The tiny model never ends by itself within a few tokens, so its end tokens are looked at."""
    theirs = Transformers(folder).model.generation_config.eos_token_id
    assert theirs == [6391, 6385]
    assert json.loads((folder / name).read_text())["eos_token_id"] == theirs


def test_the_program_writes_verify_json_and_leaves_with_1_where_something_differs(
    trained: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--input", str(trained.path("sft")), "--to", "hf", "--output", str(tmp_path / "folder"), "--verify"]
    assert main(flags) == 0
    verdict = json.loads((tmp_path / "folder" / "verify.json").read_text())["transformers"]
    assert {"version", "max_logit_diff", "greedy_equal", "near_ties", "ids_equal", "template_equal", "ok"} <= set(
        verdict
    )
    assert verdict["ok"] is True
    monkeypatch.setattr(Transformers, "encode", lambda self, texts: [[0] for _ in texts])
    assert main(flags) == 1  # and the folder of before is replaced, verify.json too
    assert json.loads((tmp_path / "folder" / "verify.json").read_text())["transformers"]["ids_equal"] is False


# --- llama.cpp ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_file(trained: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a GGUF file in float32."""
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    assert main(["--input", str(trained.path("sft")), "--to", "gguf", "--output", str(path)]) == 0
    return path


def report_of_llama_cpp(path: Path, trained: TinyRun) -> Report:
    """What llama.cpp makes of a file, beside the weights that it was made from."""
    pytest.importorskip("xllamacpp", reason="the package xllamacpp is not installed")
    model, _ = load_model(trained.path("sft"))
    return compare(model.eval(), RustBPETokenizer.from_directory(TOKENIZER_DIR), LlamaCpp(path, "f32"))


def test_llama_cpp_gives_the_same(gguf_file: Path, trained: TinyRun) -> None:
    report = report_of_llama_cpp(gguf_file, trained)
    assert report.ok and report.weights_equal and report.ids_equal and report.template_equal
    assert report.greedy_equal + report.near_ties == report.answers == 10
    assert 0 <= report.max_logit_diff <= 1e-4
    assert report.more_bits == 0


def test_one_changed_byte_of_a_weight_is_caught_in_a_gguf_file(
    gguf_file: Path, trained: TinyRun, tmp_path: Path
) -> None:
    content = bytearray(gguf_file.read_bytes())
    content[-3] ^= 0x10  # in the last tensor, the last norm
    (tmp_path / "a.gguf").write_bytes(content)
    report = report_of_llama_cpp(tmp_path / "a.gguf", trained)
    assert not report.weights_equal and not report.ok
    assert report.ids_equal and report.template_equal


@pytest.mark.parametrize(
    ("before", "after", "fault"), [("Ġ D", "Ġ G", "ids_equal"), ("'<|user_end|>'", "'<|user_end|}'", "template_equal")]
)
def test_one_merge_or_one_character_of_the_template_is_caught_in_a_gguf_file(
    gguf_file: Path, trained: TinyRun, tmp_path: Path, before: str, after: str, fault: str
) -> None:
    content = gguf_file.read_bytes()
    assert content.count(before.encode()) == 1 and len(before) == len(after)
    (tmp_path / "a.gguf").write_bytes(content.replace(before.encode(), after.encode()))
    report = report_of_llama_cpp(tmp_path / "a.gguf", trained)
    assert not getattr(report, fault) and not report.ok
    assert report.weights_equal


def test_a_call_is_given_to_other_programs_with_its_arguments_as_text() -> None:
    call = {"name": "天气", "arguments": {"城市": "北京"}}
    for tool_call in (call, {"type": "function", "function": call}):
        given = as_in_openai({"role": "assistant", "content": "", "tool_calls": [tool_call]})
        assert given["tool_calls"][0]["function"] == {"name": "天气", "arguments": '{"城市": "北京"}'}
    assert as_in_openai({"role": "system", "content": "x", "tools": [call]}) == {"role": "system", "content": "x"}


# --- what is asked --------------------------------------------------------------------------------


def test_the_texts_are_a_thousand_and_each_token_stands_in_one(tokenizer: RustBPETokenizer) -> None:
    texts = verification_texts(tokenizer)
    assert len(texts) == 1000 and texts == verification_texts(tokenizer)
    together = "\n".join(texts)
    words = [token.decode("utf-8", "ignore") for token in tokenizer.mergeable_ranks]
    assert all(word in together for word in words)
    assert any("<|" in text for text in texts)


def test_the_prompts_begin_as_every_document_does(tokenizer: RustBPETokenizer) -> None:
    prompts = verification_prompts(tokenizer, ["你好", "ab"], 64)
    assert prompts.shape == (10, 64)
    assert (prompts[:, 0] == tokenizer.get_bos_token_id()).all()
    assert (prompts[:, 1:] < len(tokenizer.mergeable_ranks)).all()


# --- how answers are compared ---------------------------------------------------------------------


def test_numbers_that_are_none_or_missing_count_as_a_difference_without_end() -> None:
    ours = torch.zeros(1, 2, 3)
    assert _difference(ours, ours + 0.25) == 0.25
    assert _difference(ours, torch.full_like(ours, float("nan"))) == float("inf")
    assert _difference(ours, torch.zeros(1, 2, 4)) == float("inf")
    assert _difference(ours, torch.full((1, 1, 3), float("nan"))) == float("inf")


def test_log_probabilities_of_the_next_token_are_compared_where_they_are_told() -> None:
    ours = torch.tensor([[[9.0, 9.0], [0.0, 0.0]]])
    told = torch.tensor([[[-0.5, float("nan")]]])
    assert _difference(ours, told) == pytest.approx(0.6931 - 0.5, abs=1e-4)


@pytest.mark.parametrize(("gap", "excused"), [(5e-5, True), (5e-4, False)])
def test_only_a_near_tie_excuses_another_answer(gap: float, excused: bool) -> None:
    def logits(ids: Tensor) -> Tensor:
        assert ids.tolist() == [[1, 2, 7]]  # the prompt, and what both answers share
        return torch.tensor([[[0.0, 1.0, 1.0 + gap]]])

    stand_in: Any = logits
    assert _part_at_a_near_tie(stand_in, torch.tensor([1, 2]), [7, 2, 5], [7, 1], 1e-4) is excused


def test_verify_is_refused_where_no_other_program_reads_the_file(trained: TinyRun, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "convert_model.py"), "--input", str(trained.path("sft"))]
    wrong = subprocess.run(
        [*command, "--to", "pth", "--output", str(tmp_path / "x.pth"), "--verify"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "--verify: no other program reads" in wrong.stderr
