"""The loop: splits of a step agree, a killed run ends as an unbroken one, bad rows are named."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from configs.schema import TrainConfig, UserError
from dataset.lm_dataset import DPODataset, PretrainDataset, rows_of_step
from model.model_minillm import MiniLLM
from model.weights import read_weights
from tests.tiny_run import TinyRun, killed_in_step, same
from trainer import optim
from trainer.loop import Batch, BatchStream, Outcome, Run, clip_gradients
from trainer.objectives import NextToken, Preference
from trainer.runtime import Runtime

STAGES = ("pretrain", "sft", "dpo")
SMALL_STEPS = ("--embedding_lr_ratio", "1")
"""Flags for tests that compare weights. AdamW makes full-size steps even of gradients that are only
rounding, so the embedding must not have a higher rate."""


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_splits_agree(tiny: TinyRun, stage: str) -> None:
    results = []
    for size, parts in ((1, 8), (8, 1), (2, 4)):
        split = ["--batch_size", str(size), "--accumulation_steps", str(parts), "--optimizer", "adamw", *SMALL_STEPS]
        assert tiny.train(stage, *split) == 0
        results.append((tiny.weights(stage), tiny.metric(stage)))
    for weights, losses in results[1:]:
        assert_close(losses, results[0][1], rtol=1e-5, atol=1e-6)
        assert_close(weights, results[0][0], rtol=1e-3, atol=1e-5)


def test_accumulation_splits_of_a_mixture_of_experts_agree(tiny: TinyRun) -> None:
    losses = []
    for size, parts in ((1, 4), (4, 1)):
        split = ["--batch_size", str(size), "--accumulation_steps", str(parts), "--moe_intermediate_size", "24"]
        assert tiny.train("pretrain", "--use_moe", *split) == 0
        losses.append(tiny.metric("pretrain"))
    assert (tiny.out / "pretrain_16_moe.pth").exists()
    assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", ["0", "0.2"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_in_any_step_ends_bit_for_bit_as_an_unbroken_one(tiny: TinyRun, stage: str, dropout: str) -> None:
    words = ["--dropout", dropout, "--seed", "5"]
    assert tiny.train(stage, *words) == 0
    unbroken, losses = tiny.weights(stage), tiny.metric(stage)
    for step in (1, 3, 4, 6):  # nothing saved yet; one step lost; killed before a save was due; in the last step
        tiny.path(stage).unlink()
        with killed_in_step(step):
            tiny.train(stage, *words)
        assert not tiny.path(stage).exists()
        assert tiny.train(stage, *words) == 0
        assert same(tiny.weights(stage), unbroken), f"killed in step {step}"
        assert tiny.metric(stage) == losses
    assert not (tiny.out / "checkpoints" / stage).exists()


def test_a_run_may_be_killed_again_and_again(tiny: TinyRun) -> None:
    words = ["--dropout", "0.1", "--save_interval", "1"]
    assert tiny.train("sft", *words) == 0
    unbroken = tiny.weights("sft")
    tiny.path("sft").unlink()
    for step in (2, 3, 5):
        with killed_in_step(step):
            tiny.train("sft", *words)
    assert tiny.train("sft", *words) == 0
    assert same(tiny.weights("sft"), unbroken)


def test_dropout_and_the_seed_reach_the_weights(tiny: TinyRun) -> None:
    assert tiny.train("sft", "--seed", "5") == 0
    plain = tiny.weights("sft")
    assert tiny.train("sft", "--seed", "5", "--dropout", "0.2") == 0
    assert not same(tiny.weights("sft"), plain)
    assert tiny.train("sft", "--seed", "6") == 0
    assert not same(tiny.weights("sft"), plain)


def break_rows(numbers: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of these rows NaN, and of no others."""
    batch, loss_sum = PretrainDataset.batch, NextToken.loss_sum

    def marked(data: PretrainDataset, indices: np.ndarray) -> Batch:
        return batch(data, indices) | {"bad": torch.tensor([int(row) in numbers for row in indices])}

    def loss(objective: NextToken, model: nn.Module, rows: Batch) -> torch.Tensor:
        value = loss_sum(objective, model, rows)
        return value * float("nan") if model.training and rows["bad"].any() else value

    monkeypatch.setattr(PretrainDataset, "batch", marked)
    monkeypatch.setattr(NextToken, "loss_sum", loss)


def test_a_row_that_gives_nan_is_skipped_and_its_number_is_printed(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    num_rows = len(PretrainDataset(tiny.data / "pretrain_pretrain_tokens"))
    bad = int(rows_of_step(1, 4, num_rows, seed=3)[2])
    break_rows({bad}, monkeypatch)
    assert tiny.train("pretrain", "--seed", "3", "--max_steps", "4") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "step skipped" in line]
    assert len(said) == 1
    assert said[0].startswith("step 2: loss nan")
    assert str(bad) in said[0].split("Its rows: ")[1].split(", ")
    assert all(tensor.isfinite().all() for tensor in tiny.weights("pretrain").values())
    assert tiny.metric("pretrain").keys() == {1, 3, 4}


def test_all_rows_of_a_skipped_step_are_printed(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_rows({0}, monkeypatch)
    with pytest.raises(UserError, match="1 step of 1 without a finite loss"):
        tiny.train("pretrain", "--seed", "3", "--max_steps", "1", "--batch_size", "30")
    said = next(line for line in capsys.readouterr().err.splitlines() if "step skipped" in line)
    assert len(said.split("Its rows: ")[1].split(", ")) == 60


def test_five_skipped_steps_in_a_row_are_an_error(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    break_rows(set(range(1000)), monkeypatch)
    before = tiny.weights("pretrain")
    with pytest.raises(UserError, match=r"5 steps in a row of 6 without a finite loss .* Lower --learning_rate"):
        tiny.train("pretrain", "--seed", "3")
    assert same(tiny.weights("pretrain"), before)


@pytest.mark.parametrize("steps", ["2", "3", "4"])
def test_a_short_run_that_diverges_writes_no_weights_either(tiny: TinyRun, steps: str) -> None:
    before = tiny.path("sft").read_bytes()
    with pytest.raises(UserError, match=r"without a finite loss|hold NaN or infinity"):
        tiny.train("sft", "--learning_rate", "1e38", "--optimizer", "adamw", "--max_steps", steps)
    assert tiny.path("sft").read_bytes() == before


@pytest.mark.parametrize(
    ("step", "value", "words"),
    [
        (6, float("nan"), r"pretrain_16\.pth: not written.* after step 6 of stage pretrain"),
        (2, float("inf"), r"state\.pt: not written.* after step 2,"),
    ],
)
def test_weights_that_are_no_numbers_replace_nothing(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, step: int, value: float, words: str
) -> None:
    before = tiny.path("pretrain").read_bytes()
    update, taken = optim.MuonAdamW.step, []

    def breaking(self: optim.MuonAdamW, *arguments: Any, **named: Any) -> None:
        update(self, *arguments, **named)
        taken.append(1)
        if len(taken) == step:
            with torch.no_grad():
                self.param_groups[-1]["params"][0].view(-1)[0] = value

    monkeypatch.setattr(optim.MuonAdamW, "step", breaking)
    with pytest.raises(UserError, match=words):
        tiny.train("pretrain", "--seed", "3")
    assert tiny.path("pretrain").read_bytes() == before
    assert len(tiny.states("pretrain")) == (step == 6)  # that of step 4


def test_steps_that_are_skipped_but_not_in_a_row_end_no_run(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    num_rows = len(PretrainDataset(tiny.data / "pretrain_pretrain_tokens"))
    bad = [0, 1, 2, 4, 5]
    break_rows({int(rows_of_step(step, 4, num_rows, seed=3)[1]) for step in bad}, monkeypatch)
    assert tiny.train("pretrain", "--seed", "3", "--max_steps", "8") == 0
    assert capsys.readouterr().err.count("step skipped") == len(bad)
    assert tiny.metric("pretrain").keys() == {4, 7, 8}


def test_a_resumed_run_counts_the_steps_that_were_skipped_before(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--seed", "4", "--max_steps", "9", "--save_interval", "1"]
    break_rows(set(range(1000)), monkeypatch)
    with killed_in_step(4):
        tiny.train("pretrain", *words)
    capsys.readouterr()
    with pytest.raises(UserError, match="5 steps in a row of 9 without a finite loss"):
        tiny.train("pretrain", *words)
    skipped = [line.split(":")[0] for line in capsys.readouterr().err.splitlines() if "step skipped" in line]
    assert skipped == ["step 4", "step 5"]


def test_steps_of_a_run_come_from_epochs_unless_max_steps_is_less(tiny: TinyRun) -> None:
    pairs, runtime = DPODataset(tiny.data / "dpo_dpo_tokens"), Runtime(torch.device("cpu"), torch.float32)
    for config, steps in (
        (TrainConfig(epochs=3, batch_size=4, accumulation_steps=2), 15),
        (TrainConfig(epochs=1, batch_size=7, accumulation_steps=1), 6),
        (TrainConfig(epochs=1, batch_size=7, accumulation_steps=1, max_steps=4), 4),
        (TrainConfig(epochs=1, batch_size=7, accumulation_steps=1, max_steps=99), 6),
        (TrainConfig(epochs=1, batch_size=500, accumulation_steps=1), 1),
    ):
        assert BatchStream(pairs, Preference(0.1, 0.0), config, runtime).num_steps() == steps


def test_a_second_epoch_of_a_jsonl_tokenizes_nothing_again(tiny: TinyRun) -> None:
    tensors = tiny.data / "sft_sft_tokens" / "input_ids.npy"
    before = tensors.stat().st_mtime_ns
    assert tiny.train("sft", "--epochs", "2", "--max_steps", "0", "--batch_size", "8") == 0
    assert tensors.stat().st_mtime_ns == before


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go the ways of an asynchronous device, on the CPU.

    Outcomes are read one step later, and a step is left out by multiplying its changes by 0.
    """
    monkeypatch.setattr(Runtime, "is_asynchronous", True)
    monkeypatch.setattr(optim, "on_host", lambda tensor: False)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_asynchronous_device_learns_and_logs_the_same(
    tiny: TinyRun, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    words = ["--seed", "3", "--optimizer", optimizer, "--eval_interval", "4", *SMALL_STEPS]
    num_rows = len(PretrainDataset(tiny.data / "pretrain_pretrain_tokens"))
    break_rows({int(rows_of_step(1, 4, num_rows, seed=3)[2])}, monkeypatch)
    assert tiny.train("pretrain", *words) == 0
    wanted, losses = tiny.weights("pretrain"), tiny.metric("pretrain")
    tiny.path("pretrain").unlink()
    request.getfixturevalue("as_on_a_gpu")
    assert tiny.train("pretrain", *words) == 0
    found = tiny.weights("pretrain")
    for name, tensor in wanted.items():
        assert_close(found[name], tensor, atol=1e-6, rtol=1e-4)
    assert tiny.metric("pretrain").keys() == losses.keys()
    assert list(tiny.metric("pretrain").values()) == pytest.approx(list(losses.values()), rel=1e-4)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_an_asynchronous_device_resumes_exactly_and_gives_up_as_soon(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.train("sft", "--seed", "7") == 0
    unbroken = tiny.weights("sft")
    tiny.path("sft").unlink()
    with killed_in_step(4):
        tiny.train("sft", "--seed", "7")
    assert tiny.train("sft", "--seed", "7") == 0
    assert same(tiny.weights("sft"), unbroken)
    break_rows(set(range(1000)), monkeypatch)
    with pytest.raises(UserError, match="5 steps in a row of 9 without a finite loss"):
        tiny.train("pretrain", "--seed", "4", "--max_steps", "9")


def overflow_in(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the embedding's gradient infinite in the first `passes` backward passes; no loss is."""
    loss_sum, left = NextToken.loss_sum, [passes]

    def infinite(gradient: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        return gradient * float("inf") if left[0] >= 0 else gradient

    def hooked(objective: NextToken, model: MiniLLM, rows: Batch) -> torch.Tensor:
        weight = model.output_weight
        if weight.requires_grad and not weight._backward_hooks:
            weight.register_hook(infinite)
        return loss_sum(objective, model, rows)

    monkeypatch.setattr(NextToken, "loss_sum", hooked)


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_gradients_too_large_for_float16_are_reported_and_the_run_continues(
    tiny: TinyRun,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    if where == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    overflow_in(12, monkeypatch)  # two passes a step
    assert tiny.train("pretrain", "--dtype", "float16", "--seed", "3", "--max_steps", "9") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "too large for float16" in line]
    assert [line.split(":")[0] for line in said] == [f"step {step}" for step in range(1, 7)]  # more than five
    assert "loss scale 65536" in said[0] and "loss scale 2048" in said[-1]
    assert all(tensor.isfinite().all() for tensor in tiny.weights("pretrain").values())
    losses = tiny.metric("pretrain")
    assert losses[9] < losses[1]


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_gradients_that_never_fit_float16_end_the_run_with_the_cause(
    tiny: TinyRun, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    overflow_in(1000, monkeypatch)
    words = ["--dtype", "float16", "--seed", "3", "--epochs", "50", "--max_steps", "40", "--save_interval", "4"]
    with killed_in_step(10):
        tiny.train("pretrain", *words)
    with pytest.raises(
        UserError, match=r"21 steps in a row whose gradients float16 cannot hold, .* 0\.0625\. .*float32"
    ):
        tiny.train("pretrain", *words)


def test_a_run_that_resumes_in_float16_after_another_dtype_starts_with_a_fresh_loss_scale(tiny: TinyRun) -> None:
    with killed_in_step(4):
        tiny.train("pretrain", "--seed", "4")
    path = tiny.states("pretrain")[0]
    state = torch.load(path, weights_only=True)
    assert state["scaler"] == {}
    torch.save(state | {"choices": state["choices"] | {"dtype": "float16"}}, path)
    assert tiny.train("pretrain", "--seed", "4") == 0
    assert tiny.manifest("pretrain").choices["dtype"] == "float16"


def test_a_validation_that_does_not_compile_is_found_out_before_the_first_step(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = tiny.weights("pretrain")
    compiled: list[bool] = []
    loss_sum = NextToken.loss_sum

    def failing(self: NextToken, model: nn.Module, batch: Batch) -> torch.Tensor:
        if compiled[-1] and not model.training:
            raise RuntimeError("no code without gradients")
        return loss_sum(self, model, batch)

    monkeypatch.setattr(NextToken, "loss_sum", failing)
    monkeypatch.setattr(MiniLLM, "compile_blocks", lambda self, wanted=True: compiled.append(wanted))
    monkeypatch.setattr(Runtime, "validates_compiled", True)
    assert tiny.train("pretrain", "--use_compile", "1") == 0
    assert "torch.compile failed (no code without gradients)" in capsys.readouterr().err
    assert compiled == [True, False]
    assert same(tiny.weights("pretrain"), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: on a CPU every run gives the same bits")
@pytest.mark.usefixtures("determinism_ends_with_the_test")
@pytest.mark.parametrize("stage", STAGES)
def test_a_deterministic_run_killed_and_resumed_ends_in_the_same_bits_on_cuda(tiny: TinyRun, stage: str) -> None:
    words = ["--device", "cuda", "--deterministic", "--dtype", "auto", "--save_interval", "1", "--seed", "3"]
    assert tiny.train(stage, *words) == 0
    unbroken = tiny.weights(stage)
    tiny.path(stage).unlink()
    with killed_in_step(3):
        tiny.train(stage, *words)
    assert tiny.train(stage, *words) == 0
    assert same(tiny.weights(stage), unbroken)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: on a CPU every run gives the same bits")
@pytest.mark.usefixtures("determinism_ends_with_the_test")
@pytest.mark.parametrize("compiled", ["0", "1"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_flex_attention_and_experts_give_the_same_bits_again_on_cuda(tiny: TinyRun, kind: str, compiled: str) -> None:
    words = ["--device", "cuda", "--deterministic", "--dtype", "auto", "--use_compile", compiled, "--hidden_size", "64"]
    if kind == "moe":  # heads of 32: those of the other tests are too small for FlexAttention
        words += ["--use_moe", "--num_experts", "4", "--moe_intermediate_size", "32"]
    path = tiny.out / ("pretrain_64_moe.pth" if kind == "moe" else "pretrain_64.pth")
    runs = []
    for _ in range(2):
        assert tiny.train("pretrain", *words, "--from_resume", "0") == 0
        runs.append(read_weights(path)[0])
    assert same(*runs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: on a CPU nothing waits for a device")
def test_whole_steps_wait_for_nothing_on_cuda(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step, read = Run.after_step, []

    def watched(run: Run, outcome: Outcome, *rest: Any) -> None:
        after_step(run, outcome, *rest)  # reads the numbers of the step before
        is_between = 1 < outcome.step < run.num_steps - 1  # kernels are loaded before, weights written after
        read.append(is_between)
        torch.cuda.set_sync_debug_mode("error" if is_between else "default")

    monkeypatch.setattr(Run, "after_step", watched)
    never = ["--eval_interval", "100", "--save_interval", "100"]
    try:
        assert tiny.train("pretrain", "--device", "cuda", "--max_steps", "8", "--log_interval", "1", *never) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert read.count(True) == 5


@pytest.mark.parametrize(("largest", "after"), [(1.0, 1.0), (5.0, 5.0), (20.0, 13.0), (0.0, 13.0)])
def test_gradients_are_scaled_down_to_the_largest_norm_and_never_up(largest: float, after: float) -> None:
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))])
    model[0].grad, model[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])  # the third has no gradient
    assert_close(clip_gradients(model, largest), torch.tensor(13.0))
    parts = torch.cat([model[0].grad, model[1].grad])
    assert_close(parts, torch.tensor([3.0, 4.0, 12.0]) * after / 13, rtol=1e-5, atol=1e-5)


def test_an_update_sees_gradients_of_the_norm_that_the_flag_allows(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = optim.MuonAdamW.step

    def noted(self: optim.MuonAdamW, *arguments: Any, **named: Any) -> Any:
        parts = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat(parts).norm().item())
        return step(self, *arguments, **named)

    monkeypatch.setattr(optim.MuonAdamW, "step", noted)
    assert tiny.train("pretrain", "--grad_clip", "0.01") == 0
    clipped, before = norms[:], tiny.metric("pretrain", "grad_norm")
    assert_close(clipped, [0.01] * 6, rtol=1e-3, atol=0)
    assert min(before.values()) > 0.02  # what is logged is the norm before
    norms.clear()
    assert tiny.train("pretrain", "--grad_clip", "0") == 0
    assert_close(norms, list(tiny.metric("pretrain", "grad_norm").values()), rtol=1e-3, atol=1e-6)
