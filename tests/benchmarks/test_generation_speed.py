"""benchmarks/generation_speed.py and its parts, on models so small that nothing is to be learnt."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import generation_speed as benchmark
from benchmarks.generation import arms, many, parity
from configs.artifacts import read_json
from configs.paths import TOKENIZER_DIR
from configs.schema import ModelConfig, UserError
from dataset.tokenizer import RustBPETokenizer
from inference.loading import open_model
from model.model_minillm import MiniLLM

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs set the threads of their whole process."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model for ours and for transformers."""
    pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("model")
    benchmark.write_model(folder, None, "64x1", [arms.TRANSFORMERS])
    return folder


def job(folder: Path, arm: str) -> arms.Job:
    return arms.Job(arm=arm, folder=str(folder), threads=1, most_rows=2, prompt_tokens=6, new_tokens=5)


@pytest.fixture
def model() -> MiniLLM:
    return MiniLLM(ModelConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).resolve()).eval()


@pytest.mark.parametrize("arm", ["floor", "ours float32", "ours int8", "transformers"])
def test_each_arm_tells_the_time_of_a_step(folder: Path, arm: str) -> None:
    one = arms.arm_of(job(folder, arm))
    assert 0 < one.step_seconds(2, 5) < 60
    assert one.version


def test_an_arm_is_a_process_that_answers_again_and_again(folder: Path) -> None:
    worker = benchmark.Worker(job(folder, "ours float32"), benchmark.AVX2)
    try:
        steps = benchmark.take_turns([worker], [1, 2], rounds=2)
    finally:
        worker.close()
    assert steps.keys() == {("ours float32", 1), ("ours float32", 2)}
    assert all(seconds > 0 for seconds in steps.values())


def test_an_arm_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ours float32: its process ended with exit 1"):
        benchmark.Worker(job(tmp_path, "ours float32"), {})


def test_without_its_package_llama_cpp_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match="pip install xllamacpp"):
        arms.arm_of(job(folder, "llama.cpp f32"))


STEPS = {
    ("floor", 1): 0.010, ("floor", 8): 0.020, ("ours int8", 1): 0.009, ("ours int8", 8): 0.014,
    ("llama.cpp q8_0", 1): 0.003, ("llama.cpp q8_0", 8): 0.015,
}  # fmt: skip


def test_the_table_has_ratios_and_tokens_of_all_rows() -> None:
    lines = list(benchmark.table(STEPS))
    assert lines[2] == "| floor | 10.00 (1.00) |  | 20.00 (1.00) |  |"
    assert lines[3] == "| ours int8 | 9.00 (0.90) | 111 | 14.00 (0.70) | 571 |"


def test_bars_are_met_or_not() -> None:
    lines = list(benchmark.verdicts(STEPS))
    assert lines == [
        "ours int8, 1 rows: 0.90 of the floor (at most 1.0): met",
        "ours int8, 8 rows: 0.70 of the floor (at most 0.65): NOT met",
        "ours int8, 1 rows: 0.33 times the speed of llama.cpp q8_0",
        "ours int8, 8 rows: 1.07 times the speed of llama.cpp q8_0 (above 1): met",
    ]


def run(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert benchmark.main(["--shape", "64x1", "--rounds", "1", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_figures_are_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speed.json"
    words = ["--arms", "floor", "ours int8", "--batches", "2", "--prompt_tokens", "4", "--new_tokens", "3"]
    lines = run([*words, "--json", str(file)], capsys)
    assert [line.split(" | ")[0] for line in lines[1:5]] == ["| arm", "|---|---|---|", "| floor", "| ours int8"]
    kept = read_json(file, "")
    assert [(step["arm"], step["rows"]) for step in kept["steps"]] == [("floor", 2), ("ours int8", 2)]
    assert "1 threads" in kept["machine"]


def test_many_requests_have_their_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(many, "LONGEST_PROMPT", 16)
    monkeypatch.setattr(many, "LONGEST_ANSWER", 16)
    lines = run(["--requests", "--tiny_requests", "40"], capsys)
    assert len(lines) == 1 + 4 + 3 + 2
    assert "done in step" in lines[8] and lines[8].endswith(": met")
    assert lines[9].count(",") == many.REPORTS - 1


def test_all_requests_get_all_their_tokens_at_once_and_one_by_one(
    model: MiniLLM, tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    finish = many.Request.finish

    def note(request: many.Request, reason: str) -> None:
        made.append(len(request.ids))
        finish(request, reason)  # type: ignore[arg-type]

    monkeypatch.setattr(many.Request, "finish", note)
    asks = [many.Ask([1, 2, 3], 5), many.Ask([4], 3)]
    for at_once in (True, False):
        made.clear()
        assert many.seconds_of(model, tokenizer, asks, at_once=at_once) > 0
        assert sorted(made)[-2:] == [3, 5]


def test_prompts_are_cut_from_text_a_quarter_of_each_length(tmp_path: Path, tokenizer: RustBPETokenizer) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "' + "今天天气很好，我们去公园。" * 40 + '"}\n', encoding="utf-8")
    for text in (file, None):
        ids = parity.text_ids(tokenizer, text)
        prompts = parity.prompts_of(ids, 8)
        assert [len(prompt) for prompt in prompts] == [*parity.LENGTHS, *parity.LENGTHS]
    file.write_text('{"text": "短"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no documents with a field `text`"):
        parity.text_ids(tokenizer, file)


def test_answers_are_those_of_transformers_until_a_weight_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "NEW_TOKENS", 8)
    opened = open_model(folder / arms.WEIGHTS, device=arms.CPU)
    prompts = [[7, 8, 9] * 6, [5] * 16, list(range(32))]
    prompts = [prompt[:16] if len(prompt) < 32 else prompt for prompt in prompts]
    same = parity.compare(opened, folder / arms.FOLDER, prompts, batch=2)
    assert same.equal + same.near_ties == same.answers == 3
    with torch.no_grad():
        opened.model.model.norm.weight[:32] *= -1
    other = parity.compare(opened, folder / arms.FOLDER, prompts, batch=2)
    assert other.equal < 3 and len(other.gaps) == 3 - other.equal
    assert str(other).startswith(f"{other.equal} of 3 answers equal")


def test_flags_that_mean_nothing_are_refused() -> None:
    for words, flag in ((["--text", "x.jsonl"], "text"), (["--requests", "--parity"], "parity")):
        with pytest.raises(UserError, match=f"--{flag}"):
            benchmark.main(words)


def test_a_trained_model_brings_its_tokenizer(trained: object, tmp_path: Path) -> None:
    weight = trained.path("sft")  # type: ignore[attr-defined]
    benchmark.write_model(tmp_path, weight, "64x1", [])
    kept = RustBPETokenizer.from_directory(tmp_path / "tokenizer")
    assert kept.sha256 == RustBPETokenizer.from_directory(TOKENIZER_DIR).sha256
    assert open_model(tmp_path / arms.WEIGHTS, device=arms.CPU).model.config.hidden_size == 16
