"""What a run settles for itself: by rule, within the memory, and kept when it resumes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from configs.hardware import cpu_has_bf16
from configs.schema import ModelConfig, TrainConfig, UserError, preset
from configs.stage_table import STAGE_TABLE
from model import device
from model.model_minillm import MiniLLM
from model.weights import read_checkpoint
from tests.tiny_run import TinyRun, killed_in_step, same
from trainer import autoconfig
from trainer.autoconfig import (
    CHOSEN,
    FRESH_EMBEDDING_RATIO,
    DataFacts,
    eval_steps,
    fill_in,
    fitting_rows,
    hidden_matrices,
    learning_rate,
    require_memory,
    row_bytes,
    split_rows,
    step_tokens,
    with_chosen,
)
from trainer.optim import build_optimizer, lr_at, set_lr
from trainer.runtime import Runtime

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = ModelConfig(**preset("192x4")).resolve()
LARGE = ModelConfig(**preset("minillm-26m")).resolve()
TINY = ModelConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=50)


def tensors(rows: int, row_tokens: int = 512, kind: str = "documents") -> DataFacts:
    """Data of so many rows."""
    return DataFacts(kind=kind, rows=rows, row_tokens=row_tokens)


@pytest.mark.parametrize("name", ["192x4", "minillm-26m", "minillm-moe-145m"])
def test_the_matrices_counted_are_those_that_muon_turns(name: str) -> None:
    shape = ModelConfig(**preset(name)).resolve()
    with torch.device("meta"):
        model = MiniLLM(shape)
    group = build_optimizer(model, TrainConfig(), torch.float32).param_groups[0]
    found = [tuple(p.shape[-2:]) for p in group["params"] for _ in range(math.prod(p.shape[:-2]))]
    assert sorted(found) == sorted(hidden_matrices(shape))


def test_a_step_grows_with_the_data_and_with_what_muon_costs() -> None:
    assert step_tokens(SMALL, 1e9, "muon") > step_tokens(SMALL, 1e6, "muon")
    assert step_tokens(LARGE, 1e8, "muon") > step_tokens(SMALL, 1e8, "muon")
    assert step_tokens(LARGE, 1e8, "muon") > step_tokens(LARGE, 1e8, "adamw")


def test_the_rate_falls_with_the_width_and_from_stage_to_stage() -> None:
    rates = [learning_rate(SMALL, stage, "muon") for stage in ("pretrain", "sft", "dpo")]
    assert rates == sorted(rates, reverse=True)
    ratio = learning_rate(SMALL, "pretrain", "muon") / learning_rate(LARGE, "pretrain", "muon")
    assert ratio == pytest.approx(math.sqrt(512 / 192), rel=0.05)
    assert learning_rate(SMALL, "pretrain", "adamw") < rates[0]


def test_everything_left_open_is_filled_in_and_everything_given_stays() -> None:
    filled = fill_in(TrainConfig(), "pretrain", SMALL, tensors(8000), CPU, fresh=True)
    wanted = step_tokens(SMALL, 8000 * 512, "muon")
    assert filled.batch_size * filled.accumulation_steps * 512 == wanted
    assert filled.learning_rate == learning_rate(SMALL, "pretrain", "muon") and filled.use_compile is False
    later = fill_in(TrainConfig(), "pretrain", SMALL, tensors(8000), CPU, fresh=False)
    assert filled.embedding_lr_ratio == FRESH_EMBEDDING_RATIO["muon"] and later == replace(
        filled, embedding_lr_ratio=1.0
    )
    adamw = fill_in(TrainConfig(optimizer="adamw"), "pretrain", SMALL, tensors(8000), CPU, fresh=True)
    assert adamw.embedding_lr_ratio == FRESH_EMBEDDING_RATIO["adamw"]
    given = TrainConfig(batch_size=3, accumulation_steps=5, learning_rate=0.1, embedding_lr_ratio=2.0, use_compile=True)
    assert fill_in(given, "pretrain", SMALL, tensors(8000), CPU, fresh=True) == given
    assert with_chosen(TrainConfig(), {name: getattr(filled, name) for name in CHOSEN}) == filled


def test_a_step_has_the_same_rows_however_many_processes_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "least_over_ranks", lambda self, most: min(most, 3))  # another process has less memory
    for world_size in (1, 2, 4):
        filled = fill_in(
            TrainConfig(tokens_per_step=16384),
            "pretrain",
            SMALL,
            tensors(8000),
            replace(CPU, world_size=world_size),
            fresh=True,
        )
        assert filled.batch_size == 2
        assert filled.batch_size * filled.accumulation_steps * world_size == 32


@pytest.mark.parametrize(("size", "parts"), [(4, 8), (3, 11)])
def test_a_given_micro_batch_leaves_the_step_as_large_or_a_part_larger(size: int, parts: int) -> None:
    filled = fill_in(
        TrainConfig(tokens_per_step=16384, batch_size=size), "pretrain", SMALL, tensors(8000), CPU, fresh=True
    )
    assert (filled.batch_size, filled.accumulation_steps) == (size, parts)


def test_accumulation_without_a_micro_batch_is_refused() -> None:
    with pytest.raises(UserError, match="accumulation_steps = 2 without a batch_size"):
        fill_in(TrainConfig(accumulation_steps=2), "pretrain", SMALL, tensors(8000), CPU, fresh=True)


def test_three_sizes_of_a_step_are_refused() -> None:
    config = TrainConfig(tokens_per_step=4096, batch_size=2, accumulation_steps=2)
    with pytest.raises(UserError, match="tokens_per_step = 4096 beside batch_size and accumulation_steps"):
        fill_in(config, "pretrain", SMALL, tensors(8000), CPU, fresh=True)


def test_a_run_that_max_steps_ends_early_takes_smaller_steps() -> None:
    whole = fill_in(TrainConfig(), "pretrain", SMALL, tensors(4_000_000), CPU, fresh=True)
    short = fill_in(TrainConfig(max_steps=50), "pretrain", SMALL, tensors(4_000_000), CPU, fresh=True)
    longer = fill_in(TrainConfig(max_steps=5000), "pretrain", SMALL, tensors(4_000_000), CPU, fresh=True)
    rows = [config.batch_size * config.accumulation_steps for config in (short, longer, whole)]
    assert rows == sorted(rows) and rows[0] < rows[-1]


def test_long_runs_are_compiled_and_pairs_never() -> None:
    for epochs, stage, compiled in ((1, "pretrain", False), (1000, "pretrain", True), (1000, "dpo", False)):
        data = tensors(2_000, kind=STAGE_TABLE[stage].data)
        assert fill_in(TrainConfig(epochs=epochs), stage, LARGE, data, CPU, fresh=True).use_compile is compiled


def test_a_micro_batch_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(autoconfig, "free_memory", lambda device: 1 << 40)
    assert fitting_rows(SMALL, 512, device, checkpointing=False) == 8  # 4,096 tokens
    assert fitting_rows(SMALL, 8192, device, checkpointing=False) == 1
    each = row_bytes(LARGE, 512, keeps_scores=True, checkpointing=False)
    monkeypatch.setattr(autoconfig, "free_memory", lambda device: int((5 * each + 16 * 26e6) / autoconfig.MEMORY_SHARE))
    assert fitting_rows(LARGE, 512, device, checkpointing=False) == 5
    assert row_bytes(LARGE, 512, keeps_scores=True, checkpointing=True) < each / 3
    monkeypatch.setattr(autoconfig, "free_memory", lambda device: 1000)
    assert fitting_rows(LARGE, 512, device, checkpointing=False) == 1


@pytest.mark.parametrize(
    ("rows", "most", "parts"),
    [
        (64, 8, (8, 8)),
        (6, 8, (6, 1)),
        (12, 8, (6, 2)),
        (41, 10, (9, 5)),
        (11, 5, (4, 3)),
        (9, 1, (1, 9)),
        (1, 4, (1, 1)),
        (15, 10, (5, 3)),
    ],
)
def test_a_step_is_split_into_equal_parts_or_grows_by_a_few_rows(rows: int, most: int, parts: tuple[int, int]) -> None:
    assert split_rows(rows, most) == parts


@given(st.integers(1, 3000), st.integers(1, 300))
def test_the_parts_of_a_step_fit_and_make_no_more_of_it_than_a_row_each(rows: int, most: int) -> None:
    size, parts = split_rows(rows, most)
    assert 1 <= size <= most
    assert rows <= size * parts < rows + parts
    assert rows % size == 0 or 2 * size >= min(most, rows)  # a prime number of rows makes no tiny ones


def test_a_resumed_run_repeats_what_was_chosen(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    open_flags = ["--batch_size", "0", "--accumulation_steps", "0", "--learning_rate", "0", "--tokens_per_step", "128"]
    assert tiny.train("pretrain", *open_flags) == 0
    unbroken = tiny.weights("pretrain")
    tiny.path("pretrain").unlink()
    with killed_in_step(4):
        tiny.train("pretrain", *open_flags)
    state = read_checkpoint(tiny.states("pretrain")[0], "")
    assert (state["choices"]["batch_size"], state["choices"]["accumulation_steps"]) == (4, 1)
    monkeypatch.setattr(autoconfig, "free_memory", lambda device: 0)  # now the memory would allow only one row
    assert tiny.train("pretrain", *open_flags) == 0
    assert same(tiny.weights("pretrain"), unbroken)
    assert tiny.manifest("pretrain").choices["batch_size"] == 4


def moved(tiny: TinyRun, **there: Any) -> None:
    """Change a state as if it had been saved on another machine.

    Args: there: what is different there: device, dtype, threads, or a part of `machine`.
    """
    path = tiny.states("pretrain")[0]
    state = read_checkpoint(path, "")
    chosen = state["choices"]
    for name, value in there.items():
        # `dtype` of the machine is what `auto` would choose; only the run's own is changed.
        for part in (chosen, chosen["machine"]):
            if name in part and (part, name) != (chosen["machine"], "dtype"):
                part[name] = value
    torch.save(state, path)


@pytest.mark.parametrize(
    ("there", "began"),
    [
        ({"cores": 64, "threads": 64}, "cpu, float32, 64 threads"),
        ({"dtype": "bfloat16", "cores": 64, "threads": 64}, "cpu, bfloat16, 64 threads"),
        ({"device": "cuda", "gpu": "NVIDIA A100-SXM4-80GB", "dtype": "bfloat16"}, "NVIDIA A100-SXM4-80GB, bfloat16"),
        ({"device": "mps", "dtype": "float16"}, "mps, float16"),
    ],
)
def test_a_state_from_another_machine_keeps_its_step_and_chooses_dtype_and_threads_again(
    tiny: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    there: dict[str, Any],
    began: str,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    words = ["--seed", "4", "--dtype", "auto"]
    with killed_in_step(4):
        tiny.train("pretrain", *words)
    moved(tiny, **there)
    assert tiny.train("pretrain", *words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "another machine" in line]
    threads = torch.get_num_threads()
    assert len(said) == 1 and began in said[0] and f"(cpu, float32, {threads} threads)" in said[0]
    assert asked == []
    assert tiny.metric("pretrain").keys() == set(range(1, 7))
    found = tiny.manifest("pretrain").choices
    assert (found["dtype"], found["threads"], found["batch_size"]) == ("float32", threads, 2)


def test_a_machine_that_chooses_the_same_resumes_without_a_word(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    with killed_in_step(4):
        tiny.train("pretrain", "--seed", "4")
    moved(tiny, cores=64)
    assert tiny.train("pretrain", "--seed", "4") == 0
    said = capsys.readouterr().err
    assert "resuming after step 2 of 6" in said and "another machine" not in said


def test_the_same_machine_repeats_the_threads_that_a_run_began_with(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_in_step(4):
        tiny.train("pretrain", "--seed", "4")
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # otherwise the threads would be lowered to the number of cores
    assert tiny.train("pretrain", "--seed", "4") == 0
    assert asked == [1]


def test_a_dtype_that_was_asked_for_is_kept_on_another_machine(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--seed", "4", "--dtype", "bfloat16"]
    with killed_in_step(4):
        tiny.train("pretrain", *words)
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: not cpu_has_bf16())
    assert tiny.train("pretrain", *words) == 0
    assert tiny.manifest("pretrain").choices["dtype"] == "bfloat16"


def test_the_rate_of_a_fresh_embedding_does_not_throw_a_wide_model_off() -> None:
    shape = ModelConfig(hidden_size=512, num_hidden_layers=1, vocab_size=6400).resolve()
    torch.manual_seed(0)
    model = MiniLLM(shape)
    config = TrainConfig(
        learning_rate=learning_rate(shape, "pretrain", "muon"), embedding_lr_ratio=FRESH_EMBEDDING_RATIO["muon"]
    )
    optimizer = build_optimizer(model, config, torch.float32)
    ranks = torch.arange(1, 6401, dtype=torch.float64)
    losses = []
    for step in range(12):
        ids = torch.multinomial(1 / ranks, 513).view(1, -1)  # frequencies as in text (Zipf)
        set_lr(optimizer, lr_at(step, 100, config))
        loss = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert max(losses) < 1.1 * losses[0] and losses[-1] < 0.98 * losses[0]  # 37 at worst if the last norm starts at 1


@pytest.mark.parametrize(
    "shape", [{"num_hidden_layers": 2**31 - 1}, {"intermediate_size": 2**31 - 1, "hidden_size": 2**20}]
)
def test_a_model_larger_than_all_memory_is_refused_before_it_is_built(shape: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"the weights alone are [\d.]+ GB, this machine has [\d.]+ GB"):
        require_memory(ModelConfig(**shape).resolve())


def test_validation_is_taken_after_the_last_step_and_before_it_as_often_as_asked() -> None:
    assert list(eval_steps(100, 0)) == [20, 40, 60, 80, 100]
    assert list(eval_steps(10, 4)) == [4, 8, 10]
    assert list(eval_steps(8, 4)) == [4, 8]
