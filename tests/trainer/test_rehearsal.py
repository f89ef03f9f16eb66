"""What a rehearsal finds out changes the settings before the first step."""

from dataclasses import replace

import pytest
import torch

from configs.schema import ModelConfig, TrainConfig, UserError, preset
from model.model_minillm import MiniLLM
from tests.tiny_run import DENSE, TinyRun, killed_in_step
from trainer.objectives import NextToken
from trainer.rehearsal import rehearse
from trainer.runtime import Runtime

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = ModelConfig(**preset("192x4")).resolve()
LARGE = ModelConfig(**preset("minillm-26m")).resolve()
TINY = replace(DENSE, num_hidden_layers=1)


class CompilerError(RuntimeError):
    """Wraps another error, as PyTorch's compiler does."""

    def __init__(self, inner_exception: Exception) -> None:
        super().__init__(str(inner_exception))
        self.inner_exception = inner_exception


class Steps:
    """Stands for the trial step: more than `most_rows` don't fit, compiled ones fail if asked."""

    def __init__(self, most_rows: int, *, compiler_breaks: bool = False, attention_breaks: bool = False) -> None:
        self.most_rows, self.compiler_breaks, self.attention_breaks = most_rows, compiler_breaks, attention_breaks
        self.tried: list[int] = []
        self.model = MiniLLM(TINY)

    def __call__(self, num_rows: int) -> None:
        self.tried.append(num_rows)
        if num_rows > self.most_rows:
            full = torch.OutOfMemoryError("CUDA out of memory")
            raise CompilerError(full) if self.model.is_compiled else full
        if self.model.is_compiled and (
            self.compiler_breaks or (self.attention_breaks and not self.model.tries_attention)
        ):
            raise RuntimeError("no C++ compiler\nand many more lines")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_micro_batch_that_does_not_fit_is_halved_and_the_step_stays(compiled: bool) -> None:
    steps = Steps(5)
    steps.model.compile_blocks(compiled)
    config = TrainConfig(batch_size=24, accumulation_steps=1, use_compile=compiled)
    found = rehearse(config, steps.model, steps, CPU, free_to_choose=True)
    assert (found.batch_size, found.accumulation_steps) == (3, 8) and steps.tried == [24, 12, 6, 3]
    assert found.use_compile is compiled  # the compiler was not at fault


def test_a_resumed_run_whose_micro_batch_no_longer_fits_keeps_the_rows_of_a_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for resuming, sizes in (
        (False, (4, 3)),
        (True, (1, 11)),
    ):  # with a row more in a step, later steps would have other rows
        steps = Steps(4)
        config = TrainConfig(batch_size=11, accumulation_steps=1, use_compile=False)
        found = rehearse(config, steps.model, steps, CPU, free_to_choose=True, resuming=resuming)
        assert (found.batch_size, found.accumulation_steps) == sizes
        said = capsys.readouterr().err
        assert ("micro-batches of 11 rows" in said and "11 of 1 a step" in said) if resuming else not said


@pytest.mark.parametrize(("most", "free", "words"), [(5, False, "of so many rows"), (0, True, "a single row")])
def test_what_cannot_fit_is_said_with_the_way_out(most: int, free: bool, words: str) -> None:
    steps = Steps(most)
    config = TrainConfig(batch_size=8, accumulation_steps=1, use_compile=False)
    with pytest.raises(UserError, match=f"{words}.*does not fit.*--gradient_checkpointing"):
        rehearse(config, steps.model, steps, CPU, free_to_choose=free)


def test_what_does_not_compile_runs_without_after_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(8, compiler_breaks=True)
    steps.model.compile_blocks()
    config = TrainConfig(batch_size=8, accumulation_steps=1, use_compile=True)
    assert rehearse(config, steps.model, steps, CPU, free_to_choose=True) == replace(config, use_compile=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: torch.compile failed (no C++ compiler): training goes on without it")


GPU = Runtime(torch.device("cuda"), torch.float32)


@pytest.mark.parametrize("fault", ["attention", "compiler"])
def test_blocks_that_fail_with_flex_attention_are_compiled_without_before_the_compiler_is_given_up(
    fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(8, compiler_breaks=fault == "compiler", attention_breaks=fault == "attention")
    steps.model.compile_blocks()
    config = TrainConfig(batch_size=8, accumulation_steps=1, use_compile=True)
    found = rehearse(config, steps.model, steps, GPU, free_to_choose=True)
    assert found.use_compile is steps.model.is_compiled is (fault == "attention")
    assert len(steps.tried) == (2 if fault == "attention" else 3)
    assert ("torch.compile failed" in capsys.readouterr().err) is (fault == "compiler")


def test_a_fault_that_is_not_the_compilers_is_raised() -> None:
    def broken(num_rows: int) -> None:
        raise ValueError("rows of another shape")

    config = TrainConfig(batch_size=8, accumulation_steps=1, use_compile=False)
    with pytest.raises(ValueError, match="another shape"):
        rehearse(config, MiniLLM(TINY), broken, CPU, free_to_choose=True)


def test_a_run_resumed_with_less_memory_takes_smaller_micro_batches_of_the_same_steps(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MiniLLM, "compile_blocks", lambda self, wanted=True: None)
    words = ["--batch_size", "0", "--accumulation_steps", "0", "--tokens_per_step", "128", "--use_compile", "1"]
    assert tiny.train("pretrain", *words) == 0
    losses = tiny.metric("pretrain")
    assert tiny.manifest("pretrain").choices["batch_size"] == 4
    tiny.path("pretrain").unlink()
    with killed_in_step(4):
        tiny.train("pretrain", *words)
    loss_sum = NextToken.loss_sum

    def full(self: NextToken, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(batch["input_ids"]) > 2 and model.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_sum(self, model, batch)

    monkeypatch.setattr(NextToken, "loss_sum", full)
    assert tiny.train("pretrain", *words) == 0
    assert "goes on with 2 of 2 a step" in capsys.readouterr().err
    found = tiny.manifest("pretrain").choices
    assert (found["batch_size"], found["accumulation_steps"]) == (2, 2)
    assert list(tiny.metric("pretrain").values()) == pytest.approx(list(losses.values()), rel=1e-4)
