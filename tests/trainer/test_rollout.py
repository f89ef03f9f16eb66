"""Sampled answers as tensors: the mask, the log-probabilities, and what is padding."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from configs.schema import ModelConfig
from dataset.prompts import Prompt
from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from inference.request import Request
from inference.sampling import Sampling
from model.model_minillm import MiniLLM
from tests.tiny_run import lively, sum_record
from trainer.rollout import answer_ids, answer_logps, generate, rollout_of, sample_of

ENDS = tuple(range(0, 6400, 4))
SAMPLING = Sampling(max_new_tokens=5, temperature=1.0, logprobs=0, stop_token_ids=ENDS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> MiniLLM:
    """A small network with random weights, which ends an answer now and then."""
    torch.manual_seed(1)
    shape = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    return lively(MiniLLM(shape))


@pytest.fixture(scope="module")
def prompts(tokenizer: RustBPETokenizer) -> list[Prompt]:
    """Prompts of two lengths."""
    records = [sum_record(3, 5), sum_record(123456, 654321)]
    return [Prompt(tuple(tokenizer.render_for_completion(r["conversations"][:-1])), r) for r in records]


def sampled(model: MiniLLM, tokenizer: RustBPETokenizer, prompts: list[Prompt], **changed: float) -> list[Request]:
    """Four answers to each prompt. A quarter of all tokens ends an answer."""
    sampling = replace(SAMPLING, **changed)
    groups = generate(model, tokenizer, prompts, sampling, [5, 900], 4)
    return [request for group in groups for request in group]


def test_targets_are_the_answer_and_its_end_token_and_nothing_else(
    model: MiniLLM, tokenizer: RustBPETokenizer, prompts: list[Prompt]
) -> None:
    requests = sampled(model, tokenizer, prompts)
    assert {request.finish_reason for request in requests} == {"stop", "length"}  # both kinds are here
    rollout = rollout_of(requests, CPU)
    for row, request in enumerate(requests):
        targets = rollout.labels[row][rollout.labels[row] != IGNORE].tolist()
        assert targets == answer_ids(request)
        ends = [token in ENDS for token in targets]
        assert ends == [False] * len(request.ids) + [True] * (request.finish_reason == "stop")
        first = int((rollout.labels[row] != IGNORE).nonzero()[0])
        assert first == len(request.prompt) - 1
        read = rollout.input_ids[row, : len(request.prompt) + len(targets) - 1].tolist()
        assert read == [*request.prompt, *targets][:-1]
    assert rollout.mask.sum(dim=1).tolist() == [len(answer_ids(request)) for request in requests]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_engine_and_the_training_forward_pass_agree(
    model: MiniLLM, tokenizer: RustBPETokenizer, prompts: list[Prompt], temperature: float
) -> None:
    rollout = rollout_of(sampled(model, tokenizer, prompts, temperature=temperature), CPU)
    assert_close(answer_logps(model, rollout, temperature), rollout.logprobs[rollout.mask], atol=1e-5, rtol=0)


def test_a_second_forward_pass_gives_the_same_bits_with_and_without_gradients(
    model: MiniLLM, tokenizer: RustBPETokenizer, prompts: list[Prompt]
) -> None:
    rollout = rollout_of(sampled(model, tokenizer, prompts), CPU)
    with torch.no_grad():
        old = answer_logps(model, rollout, 1.0)
    now = answer_logps(model, rollout, 1.0)
    assert now.requires_grad and torch.equal(old, now.detach())


def test_log_probabilities_are_those_of_the_whole_distribution(
    model: MiniLLM, tokenizer: RustBPETokenizer, prompts: list[Prompt]
) -> None:
    rollout = rollout_of(sampled(model, tokenizer, prompts), CPU)
    logits: Tensor = model(rollout.input_ids)
    expected = logits.softmax(dim=-1).log().flatten(0, 1)[rollout.target_places]
    targets = rollout.labels.flatten()[rollout.target_places]
    assert_close(answer_logps(model, rollout, 1.0), expected.gather(1, targets[:, None])[:, 0], atol=1e-5, rtol=1e-5)


def test_some_rows_give_what_they_give_among_all(
    model: MiniLLM, tokenizer: RustBPETokenizer, prompts: list[Prompt]
) -> None:
    rollout = rollout_of(sampled(model, tokenizer, prompts), CPU)
    rows = torch.tensor([1, 3])
    part = rollout.select(rows)
    assert part.input_ids.shape[1] < rollout.input_ids.shape[1]  # the long prompt is not among them
    assert torch.equal(part.lengths, rollout.lengths[rows])
    whole = torch.zeros_like(rollout.logprobs)
    whole[rollout.mask] = answer_logps(model, rollout, 1.0).detach()
    assert_close(answer_logps(model, part, 1.0).detach(), whole[rows][rollout.mask[rows]], atol=1e-5, rtol=0)
    assert torch.equal(part.logprobs[part.mask], rollout.logprobs[rows][rollout.mask[rows]])
    assert part.row_of_token.tolist() == [0] * int(part.lengths[0]) + [1] * int(part.lengths[1])
    assert len(rollout.select(torch.tensor([], dtype=torch.int64))) == 0


def test_a_sample_says_what_was_asked_answered_and_how_it_ended(
    model: MiniLLM, tokenizer: RustBPETokenizer, prompts: list[Prompt]
) -> None:
    for request in sampled(model, tokenizer, prompts)[:4]:
        sample = sample_of(request, prompts[0], tokenizer)
        assert sample.prompt == "3+5等于多少？" and sample.record["conversations"][-1]["content"] == "3+5=8。"
        assert sample.ids == (*prompts[0].ids, *answer_ids(request))
        assert sample.num_tokens == len(answer_ids(request)) and sample.ended == (request.finish_reason == "stop")


def test_the_answers_depend_on_the_seeds_alone(
    model: MiniLLM, tokenizer: RustBPETokenizer, prompts: list[Prompt]
) -> None:
    one, again = (sampled(model, tokenizer, prompts) for _ in range(2))
    assert [request.ids for request in one] == [request.ids for request in again]
    assert len({tuple(request.ids) for request in one}) > 4
