"""The pipeline on Apple's GPU, tested on any machine with the stand-in of `tests/mps.py`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import eval_model
from configs.paths import TOKENIZER_DIR
from evaluation.likelihood import SCORE_TOKENS, row_nats
from inference.engine import Engine
from inference.sampling import Sampling
from model.device import choose_device
from model.model_minillm import MiniLLM
from scripts import evaluate_stage
from tests.mps import MPS, mps
from tests.tiny_run import DENSE, MOE, TinyRun, killed_in_step, lively, same, shipped_tokenizer
from trainer.autoconfig import MICRO_TOKENS
from trainer.runtime import Runtime, rng_states, set_rng_states

# --- the stand-in itself --------------------------------------------------------------------------


def old_nats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As evaluation once computed them: with float64 on the device."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none").double().cpu()


def test_float64_is_refused_on_what_was_moved_there_alone() -> None:
    hidden, weight, targets = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 4, 2])
    wanted = old_nats(hidden, weight, targets)
    with mps():
        assert torch.equal(old_nats(hidden, weight, targets), wanted)
        there = [tensor.to("mps") for tensor in (hidden, weight, targets)]
        with pytest.raises(TypeError, match="float64"):
            old_nats(*there)
        with pytest.raises(TypeError, match="float64"):
            wanted.to("mps")
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, dtype=torch.float64, device="mps")
        back = there[0].cpu()
        assert back.double().dtype == torch.float64


REFUSED: dict[str, Callable[[Tensor], object]] = {
    "a missing kernel": lambda x: torch.linalg.eigvals(x),
    "an operation that is slow or wrong in some releases": lambda x: x.index_copy(0, torch.arange(2).to("mps"), x[:2]),
    "its own attention without gradients": lambda x: F.scaled_dot_product_attention(*(x[None, None],) * 3),
    "two devices": lambda x: x + torch.ones(3, 3),
    "a copy that nobody waits for": lambda x: torch.ones(3).to("mps", non_blocking=True),
}


@pytest.mark.parametrize("work", REFUSED.values(), ids=REFUSED)
def test_what_mps_cannot_do_is_refused_there_and_nowhere_else(work: Callable[[Tensor], object]) -> None:
    with mps():
        there = torch.ones(3, 3).to("mps")
        with pytest.raises((NotImplementedError, RuntimeError), match=r"^MPS: "), torch.no_grad():
            work(there)
        torch.linalg.eigvals(there.cpu())
        torch.ones(3).index_copy(0, torch.arange(2), torch.zeros(2))


def test_a_mark_follows_views_results_gradients_and_modules_until_the_tensor_is_brought_back() -> None:
    with mps() as device:
        layer = torch.nn.Linear(3, 2).to("mps")
        x = torch.ones(4, 3).to(MPS)
        loss = layer(x[1:]).square().sum().float()
        loss.backward()
        there = [x, x[0], x.T, layer.weight, layer.weight.grad, loss.detach(), x.new_zeros(2), torch.zeros_like(x)]
        assert [tensor.device for tensor in there if tensor is not None] == [MPS] * 8
        home = [x.cpu(), x.to("cpu"), torch.ones(2), torch.zeros(2, device="cpu"), x.cpu()[0]]
        assert {tensor.device.type for tensor in home} == {"cpu"}
        assert {"addmm", "sum", "mm"} <= device.operations
    assert x.device.type == "cpu"


# --- the product on it ----------------------------------------------------------------------------


def answer(run: TinyRun, *words: str) -> int:
    """Ask the model a question on MPS. Returns: the exit code of eval_model.py."""
    flags = [
        "--weight", str(run.path("dpo")), "--tokenizer_dir", str(TOKENIZER_DIR), "--prompt", "1+1=?",
        "--device", "mps", "--max_new_tokens", "4",
    ]  # fmt: skip
    return eval_model.main([*flags, *words])


def evaluate(run: TinyRun, stage: str, results: Path) -> int:
    """Evaluate a stage on MPS. Returns: the exit code of evaluate_stage.py."""
    flags = [
        "--stage", stage, "--profile", "smoke", "--device", "mps", "--tokenizer_dir", str(TOKENIZER_DIR),
        "--checkpoint", str(run.path(stage)), "--data_path", str(run.data / f"{stage}_heldout.jsonl"),
        "--results_file", str(results), "--first_minutes", "none", "--danger_prompts", "none",
    ]  # fmt: skip
    return evaluate_stage.main(flags)


def test_pretraining_sft_dpo_evaluation_and_chat_run_there(
    trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, results = TinyRun(trained.data, tmp_path), tmp_path / "results.jsonl"
    with mps() as device:
        for stage in ("pretrain", "sft", "dpo"):
            assert run.train(stage, "--device", "mps") == 0
            assert evaluate(run, stage, results) == 0
        assert answer(run) == 0
        assert answer(run, "--temperature", "0.8", "--top_k", "20", "--top_p", "0.9") == 0
        assert {"_softmax_backward_data", "embedding_dense_backward", "scatter", "bmm"} <= device.operations
    assert "FlexAttention" not in capsys.readouterr().err
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [(line["stage"], line["device"]) for line in lines] == [("pretrain", "mps"), ("sft", "mps"), ("dpo", "mps")]
    for stage in ("pretrain", "sft", "dpo"):
        assert run.manifest(stage).choices["device"] == "mps"
        ours, theirs = run.metric(stage), trained.metric(stage)
        assert ours.keys() == theirs.keys()
        assert all(ours[step] == pytest.approx(theirs[step], rel=1e-3) for step in ours)


@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "experts"])
def test_a_model_computes_there_what_it_computes_on_the_cpu(shape: object) -> None:
    model = lively(MiniLLM(shape))  # type: ignore[arg-type]
    ids = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 15 + [1] * 25, [0] * 38 + [-1] * 2])
    rows = [(ids[0].tolist(), ids[1].tolist()), (ids[1, :7].tolist(), ids[0, :7].tolist())]
    sampling = Sampling(max_new_tokens=12, temperature=0.9, top_p=0.9)

    def found(place: str) -> tuple[Tensor, list[tuple[float, float]], list[list[int]], dict[str, Tensor]]:
        """Logits, nats of rows, generated tokens and gradients, computed on a device."""
        moved = lively(MiniLLM(shape)).to(place)  # type: ignore[arg-type]
        moved.load_state_dict(model.state_dict())
        logits = moved(ids.to(place), document_ids=documents.to(place))
        logits.square().mean().backward()
        gradients = {name: p.grad.cpu() for name, p in moved.named_parameters() if p.grad is not None}
        engine = Engine(moved, shipped_tokenizer())
        requests = [engine.add(prompt, sampling)[0] for prompt in ([3, 4, 5], [6])]
        engine.run()
        spoken = [request.ids for request in requests]
        return logits.detach().cpu(), row_nats(moved, rows, 2, "", None), spoken, gradients

    here = found("cpu")
    with mps():
        there = found("mps")
    torch.testing.assert_close(there[0], here[0])
    assert there[1] == [pytest.approx(pair, rel=1e-5) for pair in here[1]]
    assert there[2] == here[2]
    assert there[3].keys() == here[3].keys()
    for name, gradient in here[3].items():
        torch.testing.assert_close(there[3][name], gradient, rtol=1e-3, atol=1e-5)


def test_dropout_resumes_there_exactly() -> None:
    with mps():
        assert choose_device("auto").type == "mps"
        runtime = Runtime.start("mps", "auto")
        assert runtime.dtype == torch.float32
        states = rng_states(runtime)
        assert states.keys() == {"cpu", "mps"}
        kept = torch.mps.get_rng_state()
        torch.mps.set_rng_state(torch.Generator().manual_seed(7).get_state())
        set_rng_states(states, runtime)
        assert torch.equal(torch.mps.get_rng_state(), kept)


def test_a_killed_run_ends_there_as_an_unbroken_one(trained: TinyRun, tmp_path: Path) -> None:
    once, twice = TinyRun(trained.data, tmp_path / "once"), TinyRun(trained.data, tmp_path / "twice")
    with mps():
        assert once.train("pretrain", "--device", "mps") == 0
        with killed_in_step(5):
            twice.train("pretrain", "--device", "mps")
        assert twice.train("pretrain", "--device", "mps") == 0
    assert same(once.weights("pretrain"), twice.weights("pretrain"))


def test_each_kind_of_device_has_its_sizes() -> None:
    assert SCORE_TOKENS.keys() == MICRO_TOKENS.keys() == {"cpu", "mps", "cuda"}
