"""Optimizers against PyTorch's own, and the shape of the schedules."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from configs.schema import ModelConfig, TrainConfig
from model.model_minillm import MiniLLM
from trainer import optim
from trainer.optim import MuonAdamW, build_optimizer, decay_has_begun, lr_at, orthogonalize, set_lr


def random_gradients(parameters: list[nn.Parameter], steps: int) -> list[list[torch.Tensor]]:
    """Random gradients of each parameter, for so many steps; always the same ones."""
    generator = torch.Generator().manual_seed(3)
    return [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(steps)]


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_muon_equals_that_of_pytorch_within_bfloat16_tolerance(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = MuonAdamW(
        [{"params": [ours], "muon": True, "weight_decay": 0.1, "lr": 0.02}], newton_schulz_dtype=torch.bfloat16
    )
    b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for (gradient,) in random_gradients([ours], 5):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    assert_close(ours, theirs, atol=2e-3, rtol=2e-2)
    assert not torch.allclose(ours, start, atol=1e-2)


def test_adamw_equals_that_of_pytorch() -> None:
    torch.manual_seed(0)
    start = torch.randn(7, 5)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = MuonAdamW([{"params": [ours], "weight_decay": 0.1, "lr": 0.01}])
    b = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for (gradient,) in random_gradients([ours], 10):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    assert_close(ours, theirs)


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("on_host", [True, False])
def test_a_step_that_is_not_taken_changes_nothing_even_the_first(
    muon: bool, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "on_host", lambda tensor: on_host)
    torch.manual_seed(0)
    start = torch.randn(8, 8)
    tried, fresh = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one, other = (MuonAdamW([{"params": [p], "muon": muon, "weight_decay": 0.1, "lr": 0.01}]) for p in (tried, fresh))
    tried.grad = torch.full((8, 8), torch.nan)
    one.step(taken=torch.tensor(False))
    assert torch.equal(tried, start)
    for (gradient,) in random_gradients([tried], 3):
        tried.grad, fresh.grad = gradient.clone(), gradient.clone()
        one.step(taken=torch.tensor(True))
        other.step(taken=torch.tensor(True))
    assert torch.equal(tried, fresh)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((1, 32, 32), (3, 16, 64), (2, 64, 16)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape), torch.float32))
        assert singular.min() > 0.3 and singular.max() < 1.4


def test_stacked_experts_are_updated_as_single_matrices() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(3, 16, 24), torch.randn(3, 16, 24)
    stacked = nn.Parameter(start.clone())
    singles = [nn.Parameter(matrix.clone()) for matrix in start]
    stacked.grad = gradient.clone()
    for single, part in zip(singles, gradient, strict=True):
        single.grad = part.clone()
    for parameters in ([stacked], singles):
        MuonAdamW([{"params": parameters, "muon": True, "lr": 0.05}]).step()
    assert_close(stacked.detach(), torch.stack([single.detach() for single in singles]), atol=1e-5, rtol=1e-5)


def test_embeddings_norms_and_routers_are_adamws_without_decay() -> None:
    model = MiniLLM(
        ModelConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            use_moe=True,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=24,
        )
    )
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.3, embedding_lr_ratio=4.0), torch.float32)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, embedding, rest = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert muon | embedding | rest == set(names.values())
    assert not any("norm" in name or "embed" in name or name.endswith("gate.weight") for name in muon)
    assert embedding == {"model.embed_tokens.weight"}
    assert [group["muon"] for group in optimizer.param_groups] == [True, False, False]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0, 0.0]
    set_lr(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.4, 0.1]


def test_trapezoid_climbs_stays_and_falls_to_its_last_rate() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_ratio=0.1, warmdown_ratio=0.4, min_lr_ratio=0.1)
    rates = [lr_at(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[10:60] == [1.0] * 50
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[60:]))
    assert rates[99] == pytest.approx(0.1 + 0.9 / 40)


def test_cosine_falls_and_constant_stays() -> None:
    cosine = TrainConfig(learning_rate=1.0, schedule="cosine", warmup_ratio=0.1, min_lr_ratio=0.0)
    assert lr_at(55, 100, cosine) == pytest.approx(0.5)
    constant = TrainConfig(learning_rate=1.0, schedule="constant", warmup_ratio=0.1)
    assert lr_at(99, 100, constant) == 1.0


def test_set_lr_reaches_all_groups() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    optimizer = MuonAdamW([{"params": [parameter]} for parameter in parameters])
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(("schedule", "first"), [("trapezoid", 52), ("cosine", 12), ("constant", None)])
def test_the_decay_begins_with_the_first_step_below_the_peak(schedule: str, first: int | None) -> None:
    config = TrainConfig(schedule=schedule, warmup_ratio=0.1, warmdown_ratio=0.5, learning_rate=0.0123)
    begun = [steps for steps in range(1, 101) if decay_has_begun(steps, 100, config)]
    assert begun == ([] if first is None else list(range(first, 101)))
