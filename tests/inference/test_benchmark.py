"""The speed of generation: what is counted, and what the flags allow."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.cli import Parser
from configs.schema import UserError
from dataset.tokenizer import RustBPETokenizer
from inference import benchmark
from inference.benchmark import EXPLANATION, FIELDS, Load, add_benchmark_flags, floor_of, load_of, measure, run_once
from inference.engine import Engine
from inference.sampling import Sampling
from model.model_minillm import MiniLLM
from tests.tiny_run import DENSE, MOE, lively

SAMPLING = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def engine(tokenizer: RustBPETokenizer) -> Engine:
    """A small model with the vocabulary of the tokenizer."""
    return Engine(lively(MiniLLM(replace(DENSE, vocab_size=tokenizer.get_vocab_size()))), tokenizer, max_batch_size=4)


def test_each_field_is_measured_and_explained(engine: Engine) -> None:
    values = measure(engine, Load(prompt_tokens=9, new_tokens=12, batch_size=4), SAMPLING, quantize="none")
    assert list(values) == list(FIELDS) and all(f"  {name} " in EXPLANATION for name in FIELDS)
    assert values["batch_size"] == 4 and values["quantize"] == "none" and "1 threads" in values["cpu"]
    assert values["decode_tokens_per_s"] == pytest.approx(4000 / values["step_ms"], rel=0.01)
    assert values["step_over_floor"] == pytest.approx(values["step_ms"] / values["linear_floor_ms"], rel=0.02)
    assert values["ttft_ms"] > 0 and values["peak_rss_mb"] > 10
    assert not engine.has_work


def test_only_steps_in_which_all_answers_run_are_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(benchmark, "seconds", lambda device: float(next(clock)))
    first, steps = run_once(engine, Load(prompt_tokens=9, batch_size=1), SAMPLING, seed=0)
    assert (first, steps) == (1.0, [1.0] * 11)  # the first token comes with the prompt
    # Prompts so long that no step reads two of them: the first answer is ahead of the last one.
    first, steps = run_once(engine, Load(prompt_tokens=600, batch_size=3), SAMPLING, seed=0)
    assert len(steps) < 11
    assert not engine.has_work


def test_an_answer_goes_on_behind_an_end_token(engine: Engine) -> None:
    ends = replace(SAMPLING, logit_bias=((engine.tokenizer.assistant_end_id, 100.0),))
    assert engine.answers([[5, 6, 7]], ends)[0].num_tokens == 0
    assert len(run_once(engine, Load(prompt_tokens=3), ends, seed=0)[1]) == 11


def test_damaged_weights_are_told(tokenizer: RustBPETokenizer) -> None:
    model = lively(MiniLLM(replace(DENSE, vocab_size=tokenizer.get_vocab_size())))
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinite"):
        run_once(Engine(model, tokenizer), Load(prompt_tokens=3, batch_size=2), SAMPLING, seed=0)


def test_answers_too_short_to_run_together_are_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="new_tokens = 2: the first answer ends"):
        measure(engine, Load(prompt_tokens=600, new_tokens=2, batch_size=4), SAMPLING, quantize="none")


@pytest.mark.parametrize("config", [DENSE, MOE])
def test_the_floor_multiplies_every_matrix_that_a_step_needs(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MiniLLM(config)  # type: ignore[arg-type]
    count = 0

    def counted(x: torch.Tensor, weight: torch.Tensor) -> None:
        nonlocal count
        assert x.dtype == weight.dtype == torch.float32 and x.shape[1] == weight.shape[1]
        count += len(x) * weight.numel()

    monkeypatch.setattr(benchmark.F, "linear", counted)
    floor_of(model, 3)()
    hidden, heads = model.config.hidden_size, model.config.head_dim
    attention = 2 * hidden * heads * (model.config.num_attention_heads + model.config.num_key_value_heads)
    mlp = 3 * hidden * (2 * model.config.moe_intermediate_size if config is MOE else model.config.intermediate_size)
    assert count == 3 * (model.config.num_hidden_layers * (attention + mlp) + model.config.vocab_size * hidden)


def read(*words: str) -> Load | None:
    """What these flags ask for."""
    parser = Parser()
    parser.add_argument("--prompt")
    add_benchmark_flags(parser)
    return load_of(parser.parse_args(words), not_with=["prompt"])


def test_the_flags_of_the_benchmark_mean_nothing_without_it() -> None:
    assert read() is None
    assert read("--benchmark", "--prompt_tokens", "3") == Load(prompt_tokens=3, new_tokens=256, batch_size=1)
    for words in (["--batch_size", "8"], ["--json", "x"], ["--benchmark", "--prompt", "你好"]):
        with pytest.raises(UserError, match=words[-2]):
            read(*words)
    for name, value in (("prompt_tokens", "0"), ("new_tokens", "1"), ("batch_size", "-1")):
        with pytest.raises(UserError, match=re.escape(f"{name} = {value}: must be")):
            read("--benchmark", f"--{name}", value)


def test_what_is_shown_is_also_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"batch_size": 8, "cpu": "some", "step_ms": 1.5, "peak_rss_mb": None}
    benchmark.show(values, tmp_path / "speed.json")
    assert json.loads((tmp_path / "speed.json").read_text()) == values
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[name, str(value)] for name, value in values.items()]
