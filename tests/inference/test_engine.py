"""The engine: each answer is what it would be alone, whatever else runs, comes or goes."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from configs.schema import ModelConfig, UserError
from dataset.tokenizer import RustBPETokenizer
from inference.engine import Engine, end_ids
from inference.request import Request
from inference.sampling import Sampling
from model.decoder import CHUNK
from model.model_minillm import MiniLLM
from model.quantize import quantize
from tests.tiny_run import lively

SHAPE = ModelConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12)
LENGTHS = (1, 3, 30, CHUNK - 1, CHUNK, CHUNK + 1, 100, 150)


@pytest.fixture(scope="module")
def model() -> MiniLLM:
    """A small model with lively weights."""
    return lively(MiniLLM(SHAPE)).eval()


@pytest.fixture(scope="module")
def int8() -> MiniLLM:
    """The same with weights of 8 bits: its rows do not depend on the number of rows."""
    return quantize(lively(MiniLLM(SHAPE)).eval(), "int8")


def prompts_of(count: int, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(6000) for _ in range(rng.choice(lengths))] for _ in range(count)]


def alone(model: MiniLLM, tokenizer: RustBPETokenizer, prompt: Sequence[int], sampling: Sampling) -> Request:
    """A request that has an engine for itself."""
    engine = Engine(model, tokenizer)
    request = engine.add(prompt, sampling)[0]
    engine.run()
    return request


def shape_of(request: Request) -> tuple[list[int], str | None, list[float]]:
    """What must not depend on anything else: tokens, end, scores to the last bit."""
    return request.ids, request.finish_reason, [one.logprob for one in request.logprobs]


# --- the right tokens -----------------------------------------------------------------------------


def test_greedy_tokens_are_the_likeliest_of_the_network(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    for prompt in prompts_of(8):
        request, ids = alone(model, tokenizer, prompt, Sampling(max_new_tokens=20)), list(prompt)
        for token in request.ids:
            with torch.no_grad():
                logits = model(torch.tensor([ids]))[0, -1]
            assert token == int(logits.argmax()) or float(logits.max() - logits[token]) < 1e-4
            ids.append(token)


def test_an_answer_ends_at_an_end_token_a_stop_token_and_the_limit(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    free = alone(model, tokenizer, [1, 2, 3], Sampling(max_new_tokens=9))
    assert (free.finish_reason, len(free.ids)) == ("length", 9)
    token = free.ids[3]
    stopped = alone(model, tokenizer, [1, 2, 3], Sampling(max_new_tokens=9, stop_token_ids=(token,)))
    assert stopped.ids == free.ids[: free.ids.index(token)] and stopped.finish_reason == "stop"
    forced = Sampling(max_new_tokens=9, logit_bias=((tokenizer.assistant_end_id, 100.0),))
    ended = alone(model, tokenizer, [1, 2, 3], forced)
    assert (ended.ids, ended.text, ended.finish_reason) == ([], "", "stop")


def test_an_answer_ends_before_a_stop_string_that_spans_tokens(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    free = alone(model, tokenizer, [1, 2, 3], Sampling(max_new_tokens=20))
    text = free.text
    middle = len(text) // 2
    stop = text[middle : middle + 3]
    found = alone(model, tokenizer, [1, 2, 3], Sampling(max_new_tokens=20, stop=(stop,)))
    assert found.text == text[: text.index(stop)] and found.finish_reason == "stop"


def test_answers_come_in_the_order_of_the_prompts(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    prompts, done = prompts_of(7), []
    said = Engine(model, tokenizer, max_batch_size=3).answers(
        prompts, Sampling(max_new_tokens=5), lambda: done.append(1)
    )
    assert len(done) == 7
    for prompt, one in zip(prompts, said, strict=True):
        lone = alone(model, tokenizer, prompt, Sampling(max_new_tokens=5))
        assert (one.text, one.ended, one.num_tokens) == (lone.text, lone.finish_reason == "stop", len(lone.ids))


def test_what_comes_out_has_no_gradient_and_can_be_trained_on(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    request = alone(model, tokenizer, [1, 2, 3], Sampling(max_new_tokens=4, logprobs=2))
    weight = torch.ones(4, requires_grad=True)
    logprobs = torch.tensor([one.logprob for one in request.logprobs])
    (weight * logprobs).sum().backward()
    assert torch.equal(weight.grad, logprobs)  # type: ignore[arg-type]


# --- company --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_arrivals_in_any_order_beside_anything_change_nothing(
    int8: MiniLLM, tokenizer: RustBPETokenizer, seed: int
) -> None:
    rng = random.Random(seed)
    shared = [rng.randrange(6000) for _ in range(2 * CHUNK + 5)]
    prompts = prompts_of(20, seed) + [[*shared[: rng.randrange(1, len(shared))], number] for number in range(10)]
    settings = [
        Sampling(max_new_tokens=rng.randrange(1, 25), logprobs=0, temperature=rng.choice((0.0, 0.8)), seed=number)
        for number in range(len(prompts))
    ]
    lone = [shape_of(alone(int8, tokenizer, *pair)) for pair in zip(prompts, settings, strict=True)]
    engine = Engine(int8, tokenizer, max_batch_size=5)
    order, requests = rng.sample(range(len(prompts)), len(prompts)), {}
    for number in order:
        requests[number] = engine.add(prompts[number], settings[number])[0]
        if rng.random() < 0.2:  # somebody who leaves
            gone = engine.add(prompts[rng.randrange(len(prompts))], Sampling(max_new_tokens=30))[0]
            for _ in range(rng.randrange(3)):
                engine.step()
            engine.abort(gone)
        for _ in range(rng.randrange(4)):
            engine.step()
    engine.run()
    assert [shape_of(requests[number]) for number in range(len(prompts))] == lone
    assert any(request.cached_tokens for request in requests.values())


def test_float_answers_beside_others_are_those_alone_but_for_rounding(
    model: MiniLLM, tokenizer: RustBPETokenizer
) -> None:
    prompts = prompts_of(20)
    engine = Engine(model, tokenizer, max_batch_size=8)
    requests = [engine.add(prompt, Sampling(max_new_tokens=12, logprobs=0))[0] for prompt in prompts]
    engine.run()
    for prompt, request in zip(prompts, requests, strict=True):
        lone = alone(model, tokenizer, prompt, Sampling(max_new_tokens=12, logprobs=0))
        assert request.ids == lone.ids
        assert shape_of(request)[2] == pytest.approx(shape_of(lone)[2], abs=1e-4)


def test_a_request_for_one_token_amid_31_long_ones_is_done_before_any_of_them(
    model: MiniLLM, tokenizer: RustBPETokenizer
) -> None:
    engine = Engine(model, tokenizer)
    endless = Sampling(max_new_tokens=40, logit_bias=tuple((token, -100.0) for token in sorted(end_ids(tokenizer))))
    long = [engine.add(prompt, endless)[0] for prompt in prompts_of(31, lengths=(20,))]
    for _ in range(3):
        engine.step()
    short = engine.add([1, 2, 3], Sampling(max_new_tokens=1))[0]
    for _ in range(8):
        engine.step()
    assert short.finished and not any(request.finished for request in long)


def test_a_row_that_is_no_number_ends_itself_alone(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    engine = Engine(model, tokenizer, max_batch_size=2)
    good = engine.add([1, 2, 3], Sampling(max_new_tokens=10))[0]
    bad = engine.add([4, 5], Sampling(max_new_tokens=10))[0]
    for _ in range(3):
        engine.step()
    slot = engine.scheduler.slot_of(bad)
    assert slot is not None
    with torch.inference_mode():
        engine.decoder.cache.of_slots(0, slot.number, slot.number + 1, 2)[0].fill_(torch.nan)
    engine.step()
    assert bad.finish_reason == "error" and not good.finished
    again = engine.add([4, 5], Sampling(max_new_tokens=10))[0]  # takes the same slot
    while engine.has_work:
        engine.step()
    for request in (good, again):
        assert request.ids == alone(model, tokenizer, request.prompt, Sampling(max_new_tokens=10)).ids


def test_damaged_weights_end_a_run_with_one_line(tokenizer: RustBPETokenizer) -> None:
    damaged = lively(MiniLLM(SHAPE)).eval()
    with torch.no_grad():
        damaged.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        Engine(damaged, tokenizer).answers([[1, 2]], Sampling())


# --- leaving --------------------------------------------------------------------------------------


def test_abort_frees_the_slot_at_once(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    engine = Engine(model, tokenizer, max_batch_size=1)
    first, second, third = (engine.add([number], Sampling(max_new_tokens=9))[0] for number in (1, 2, 3))
    engine.step()
    engine.abort(first)
    engine.abort(third)
    assert (first.finish_reason, third.finish_reason) == ("abort", "abort") and first.ids
    engine.step()
    assert second.ids and not second.finished
    engine.run()
    engine.abort(second)  # finished already: nothing happens
    assert second.finish_reason == "length" and not third.ids


def test_memory_is_flat_over_many_requests(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    engine = Engine(model, tokenizer, max_batch_size=4)
    sizes = set()
    for round_number in range(5):
        engine.answers(prompts_of(20, seed=round_number, lengths=(5, 30)), Sampling(max_new_tokens=8))
        sizes.add((engine.decoder.cache.num_slots, engine.decoder.cache.num_places, len(engine.scheduler.slots)))
    assert sizes == {(4, CHUNK, 4)}
    assert not engine.scheduler.waiting and not engine.has_work


# --- reuse ----------------------------------------------------------------------------------------


def test_a_conversation_reads_its_earlier_turns_once(int8: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    engine, sampling = Engine(int8, tokenizer), Sampling(max_new_tokens=30, logprobs=0)
    first = engine.add(prompts_of(1, lengths=(150,))[0], sampling)[0]
    engine.run()
    second = engine.add([*first.prompt, *first.ids, 7, 8, 9], sampling)[0]
    engine.run()
    assert (first.cached_tokens, second.cached_tokens) == (0, 2 * CHUNK)
    assert shape_of(second) == shape_of(alone(int8, tokenizer, second.prompt, sampling))


@pytest.mark.parametrize("slots", [8, 3])
def test_many_samples_of_a_prompt_read_it_once(int8: MiniLLM, tokenizer: RustBPETokenizer, slots: int) -> None:
    engine = Engine(int8, tokenizer, max_batch_size=slots)
    sampling = Sampling(max_new_tokens=10, temperature=1.0, seed=5, logprobs=0)
    prompt = prompts_of(1, lengths=(100,))[0]
    samples = engine.add(prompt, sampling, n=6)
    engine.run()
    for number, sample in enumerate(samples):
        assert shape_of(sample) == shape_of(alone(int8, tokenizer, prompt, replace(sampling, seed=5 + number)))
    assert [sample.cached_tokens for sample in samples[1:3]] == [100, 100]
    assert len({tuple(sample.ids) for sample in samples}) > 1


def test_samples_outlive_the_one_that_reads_for_them(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    for steps in (0, 1):
        engine = Engine(model, tokenizer, max_batch_size=2)
        engine.add([9] * 600, Sampling(max_new_tokens=2))  # so that the others are not read at once
        samples = engine.add([1, 2, 3], Sampling(max_new_tokens=4, temperature=1.0), n=3)
        for _ in range(steps):
            engine.step()
        engine.abort(samples[0])
        engine.abort(samples[1])
        engine.run()
        assert [sample.finish_reason for sample in samples] == ["abort", "abort", "length"]


# --- streaming ------------------------------------------------------------------------------------


def test_streamed_pieces_make_the_text(model: MiniLLM, tokenizer: RustBPETokenizer) -> None:
    engine = Engine(model, tokenizer)
    requests = [
        engine.add(prompt, Sampling(max_new_tokens=30, temperature=2.0, seed=number))[0]
        for number, prompt in enumerate(prompts_of(6))
    ]
    pieces: dict[int, str] = dict.fromkeys(range(6), "")
    while engine.has_work:
        engine.step()
        for number, request in enumerate(requests):
            pieces[number] += request.new_text()
    for number, request in enumerate(requests):
        assert pieces[number] == request.text == tokenizer.decode(request.ids)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "add",
    [
        lambda engine: engine.add([], Sampling()),
        lambda engine: engine.add([6400], Sampling()),
        lambda engine: engine.add([-1], Sampling()),
        lambda engine: engine.add([1], Sampling(stop_token_ids=(6400,))),
        lambda engine: engine.add([1], Sampling(logit_bias=((7000, 1.0),))),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(
    model: MiniLLM, tokenizer: RustBPETokenizer, add: Callable[[Engine], object]
) -> None:
    engine = Engine(model, tokenizer)
    with pytest.raises(UserError):
        add(engine)
    assert not engine.has_work


def test_end_tokens_are_those_of_an_answer_and_of_a_text(tokenizer: RustBPETokenizer) -> None:
    assert end_ids(tokenizer) == {tokenizer.assistant_end_id, tokenizer.end_of_text_id}
