"""What the recipes minimise, against plain definitions on tiny models."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from configs.schema import ModelConfig
from dataset.lm_dataset import target_places
from dataset.tensors import IGNORE
from model.model_minillm import MiniLLM
from tests.tiny_run import lively
from trainer.objectives import NextToken, Preference, WeightedTokens

SHAPE = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
)


def random_rows() -> dict[str, torch.Tensor]:
    """Three rows of ten tokens: two documents of four, and two tokens of padding.

    The first token of a document is no target.
    """
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 40, (3, 10), generator=generator)
    documents = torch.tensor([[0] * 4 + [1] * 4 + [-1] * 2]).expand(3, -1)
    last = (documents != documents.roll(-1, dims=1)) | (documents < 0)
    labels = ids.roll(-1, dims=1).masked_fill(last, IGNORE)
    places = target_places(labels)
    return {"input_ids": ids, "labels": labels, "document_ids": documents, "target_places": places}


def test_next_token_loss_is_that_of_each_document_alone() -> None:
    model, rows, objective = lively(MiniLLM(SHAPE)), random_rows(), NextToken()
    alone = torch.zeros(())
    for row in rows["input_ids"]:
        for document in (row[:4], row[4:8]):
            alone = alone + F.cross_entropy(model(document[None, :-1])[0], document[1:], reduction="sum")
    assert_close(objective.loss_sum(model, rows), alone, rtol=1e-5, atol=1e-4)
    assert objective.num_targets(rows) == 3 * 2 * 3
    assert objective.num_tokens(rows) == 3 * 8


def test_the_balance_loss_of_experts_counts_in_training_alone_and_by_the_targets_of_its_row() -> None:
    config = replace(SHAPE, use_moe=True, num_experts=4, moe_intermediate_size=16, router_aux_loss_coef=0.5)
    model, rows = lively(MiniLLM(config)), random_rows()
    plain = NextToken().loss_sum(model, rows)
    _, balance = model.hidden_states(rows["input_ids"], document_ids=rows["document_ids"])
    assert balance is not None
    assert_close(NextToken().loss_sum(model.train(), rows), plain + 0.5 * 6 * balance.sum())


def weighted(*heavy: int, weight: float = 3.0) -> WeightedTokens:
    """The objective in which some tokens count more than the others."""
    weights = torch.ones(40)
    weights[list(heavy)] = weight
    return WeightedTokens(weights)


def test_a_heavy_token_counts_as_often_as_its_weight_says() -> None:
    model, rows = lively(MiniLLM(SHAPE)), random_rows()
    labels = rows["labels"][rows["labels"] != IGNORE]
    first = int(labels[0])
    logps = model(rows["input_ids"], document_ids=rows["document_ids"]).log_softmax(dim=-1)
    nats = -logps[rows["labels"] != IGNORE].gather(1, labels[:, None])[:, 0]
    wanted = (nats * torch.where(labels == first, 3.0, 1.0)).sum()
    assert_close(weighted(first).loss_sum(model, rows), wanted, rtol=1e-5, atol=1e-4)
    assert weighted(first).num_targets(rows) == len(labels) + 2 * int((labels == first).sum())


def test_with_equal_weights_loss_and_gradient_are_those_of_the_next_token() -> None:
    rows, model = random_rows(), lively(MiniLLM(SHAPE)).train()
    gradients = []
    for objective in (NextToken(), weighted(weight=1.0)):
        model.zero_grad()
        (objective.loss_sum(model, rows) / objective.num_targets(rows)).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))  # type: ignore[union-attr]
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_a_weighted_step_is_the_same_however_its_rows_are_divided() -> None:
    rows, model = random_rows(), lively(MiniLLM(SHAPE)).train()
    objective = weighted(*range(0, 40, 3))

    def part(numbers: list[int]) -> dict[str, torch.Tensor]:
        taken = {name: rows[name][numbers] for name in ("input_ids", "labels", "document_ids")}
        return taken | {"target_places": target_places(taken["labels"])}

    gradients = []
    for parts in ([[0, 1, 2]], [[0], [1], [2]], [[0, 2], [1]]):
        model.zero_grad()
        total = sum(objective.num_targets(part(numbers)) for numbers in parts)
        for numbers in parts:
            (objective.loss_sum(model, part(numbers)) / total).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))  # type: ignore[union-attr]
    assert_close(gradients[0], gradients[1])
    assert_close(gradients[0], gradients[2])


def test_validation_shows_the_weighted_loss_and_plain_bits_per_byte() -> None:
    model, rows, sizes = lively(MiniLLM(SHAPE)), random_rows(), torch.arange(40)
    objective = weighted(5, 6, 7)
    sums, plain = objective.text_sums(model, rows, sizes), NextToken().text_sums(model, rows, sizes)
    assert_close(sums[0], objective.loss_sum(model, rows).detach())
    assert_close(sums[1:], plain[1:])


def random_pairs() -> dict[str, torch.Tensor]:
    """Two pairs, chosen rows first, with the log-probabilities of a reference."""
    labels = torch.full((4, 6), IGNORE)
    labels[0, 2:5], labels[1, 3:4], labels[2, 2:4], labels[3, 3:6] = 7, 8, 9, 10
    ids = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(4))
    reference = {"reference_chosen": torch.tensor([-9.0, -3.0]), "reference_rejected": torch.tensor([-8.0, -12.0])}
    return {"input_ids": ids, "labels": labels, "target_places": target_places(labels), **reference}


def logps_of(model: MiniLLM, batch: dict[str, torch.Tensor]) -> list[float]:
    """Log-probability of the labels of each row, the slow way."""
    logps = model(batch["input_ids"]).detach().log_softmax(dim=-1)
    return [
        sum(float(logps[row, place, label]) for place, label in enumerate(labels) if label != IGNORE)
        for row, labels in enumerate(batch["labels"].tolist())
    ]


def test_preference_loss_is_dpos_with_the_chosen_answers_own_loss_where_wanted() -> None:
    model, batch = lively(MiniLLM(SHAPE)).train(), random_pairs()
    a, b, c, d = logps_of(model, batch)
    margins = [(a + 9.0) - (c + 8.0), (b + 3.0) - (d + 12.0)]
    wanted = sum(math.log1p(math.exp(-0.3 * margin)) for margin in margins)
    objective = Preference(beta=0.3, sft_loss_weight=0.0)
    assert objective.loss_sum(model, batch).item() == pytest.approx(wanted, rel=1e-4)
    assert (objective.num_targets(batch), objective.num_tokens(batch)) == (2, 6 + 5 + 5 + 7)
    with_sft = Preference(beta=0.3, sft_loss_weight=0.5)
    assert with_sft.loss_sum(model, batch).item() == pytest.approx(wanted - 0.5 * (a / 3 + b / 1), rel=1e-4)
    assert with_sft.loss_sum(model.eval(), batch).item() == pytest.approx(wanted, rel=1e-4)


def test_padding_at_the_end_changes_no_pair() -> None:
    model, batch = lively(MiniLLM(SHAPE)), random_pairs()
    labels = F.pad(batch["labels"], (0, 5), value=IGNORE)
    padded = batch | {
        "input_ids": F.pad(batch["input_ids"], (0, 5), value=1),
        "labels": labels,
        "target_places": target_places(labels),
    }
    objective = Preference(beta=0.3, sft_loss_weight=0.0)
    assert_close(objective.loss_sum(model, padded), objective.loss_sum(model, batch))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: on a CPU nothing waits for a device")
@pytest.mark.parametrize("use_moe", [False, True], ids=["dense", "moe"])
@pytest.mark.parametrize(
    ("objective", "rows"), [(NextToken(), random_rows), (Preference(beta=0.3, sft_loss_weight=0.5), random_pairs)]
)
def test_the_host_waits_for_no_gpu_in_a_step(
    objective: NextToken | Preference, rows: Callable[[], dict[str, torch.Tensor]], use_moe: bool
) -> None:
    if use_moe and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("before Hopper PyTorch's grouped product asks the GPU where groups end")
    config = replace(SHAPE, use_moe=use_moe, num_experts=4, moe_intermediate_size=16)
    model = lively(MiniLLM(config)).cuda().train()
    batch = {name: tensor.cuda() for name, tensor in rows().items()}
    mode = torch.cuda.get_sync_debug_mode()
    for first in (True, False):  # in the first step libraries set themselves up, and may wait
        torch.cuda.set_sync_debug_mode("default" if first else "error")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss = objective.loss_sum(model, batch)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    assert loss.isfinite()
