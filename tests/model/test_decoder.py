"""The network as generation runs it: what MiniLLM computes, each row the same in any company."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from configs.schema import ModelConfig
from model import decoder as module
from model.decoder import CHUNK, Chunk, Decoder, bucket_of, next_border
from model.model_minillm import MiniLLM
from model.quantize import KINDS, NONE, quantize
from tests.tiny_run import DENSE, MOE, lively

DENSE_64 = replace(DENSE, hidden_size=64, head_dim=16)
SHAPES = {
    "dense": DENSE_64,
    "moe": replace(MOE, hidden_size=64, head_dim=16),
    "yarn": replace(DENSE_64, rope_scaling_factor=4.0),
    "one group": replace(DENSE_64, num_key_value_heads=4),
}
# Of the largest logit. Where inputs are rounded to 7 bits, a last bit may become a whole step.
TOLERANCE = {NONE: 1e-4, "fp16": 1e-4, "int8": 0.05, "int4": 0.1}
LENGTH = 150
"""Tokens of a text: chunks and steps cross several borders."""


@pytest.fixture(autouse=True)
def no_gradient() -> Iterator[None]:
    with torch.inference_mode():
        yield


def model_of(shape: ModelConfig, kind: str = NONE) -> MiniLLM:
    torch.manual_seed(0)
    return quantize(lively(MiniLLM(shape)).eval(), kind)


def text_of(length: int = LENGTH, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(DENSE.vocab_size) for _ in range(length)]


def read(decoder: Decoder, slot: int, ids: Sequence[int]) -> Tensor:
    """The logits after a prompt, (V,), read chunk after chunk."""
    start, logits = 0, torch.empty(0)
    while start < len(ids):
        end = min(next_border(start), len(ids))
        logits = decoder.read([Chunk(slot, start, ids[start:end], is_last=end == len(ids))])
        start = end
    return logits[0]


def ready(model: MiniLLM, slots: int = 1) -> Decoder:
    decoder = Decoder(model)
    decoder.reserve(slots, LENGTH + 1)
    return decoder


@pytest.mark.parametrize("kind", [NONE, *KINDS])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_chunks_and_steps_give_the_logits_of_the_network(shape: ModelConfig, kind: str) -> None:
    model, ids = model_of(shape, kind), text_of()
    wanted = model(torch.tensor([ids]))[0]
    decoder = ready(model)
    found = [read(decoder, 0, ids[:100])]
    found += [decoder.step([ids[place]], [place])[0] for place in range(100, LENGTH)]
    assert_close(torch.stack(found), wanted[99:], rtol=0, atol=TOLERANCE[kind] * float(wanted.abs().max()))


def test_a_decoder_made_after_a_change_of_the_model_computes_what_the_model_computes_now() -> None:
    model, ids = model_of(DENSE_64), text_of(10)
    before = read(ready(model), 0, ids)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    after = read(ready(model), 0, ids)
    assert not torch.equal(after, before)
    wanted = model(torch.tensor([ids]))[0, -1]
    assert_close(after, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


COMPANIES = {
    "nobody": lambda decoder, place: ([0] * 4, [-1] * 4),
    "others": lambda decoder, place: ([0, 5, 9, 2], [-1, 3, place, 140]),
    "NaN": lambda decoder, place: ([0, 95, 9, 2], [-1, 3, place, 140]),
    "20 times larger": lambda decoder, place: ([0, 94, 94, 94], [-1, 3, place, 140]),
}


@pytest.mark.parametrize("kind", [NONE, *KINDS])
@pytest.mark.parametrize("shape", ["dense", "moe"])
def test_a_row_is_the_same_to_the_last_bit_in_any_company_of_one_size(shape: str, kind: str) -> None:
    if shape == "moe" and kind == NONE:
        pytest.skip("float experts take as many rows as choose them, and a product's last bits follow their number")
    model = lively(MiniLLM(SHAPES[shape])).eval()
    model.model.embed_tokens.weight[94] *= 20
    model = quantize(model, kind)
    ids = [token % 90 for token in text_of()]
    found = {}
    for name, company in COMPANIES.items():
        decoder = ready(model, 4)
        for slot in range(1, 4):
            read(decoder, slot, [7, 8, 9, *text_of(30, seed=slot)])
        read(decoder, 0, ids[:100])
        if name == "NaN":
            decoder.cache.of_slots(0, 1, 2, 30)[0].fill_(torch.nan)
        logits = []
        for place in range(100, 120):
            tokens, lengths = company(decoder, place)
            logits.append(decoder.step([ids[place], *tokens[1:]], [place, *lengths[1:]])[0])
        found[name] = torch.stack(logits)
    assert found["nobody"].isfinite().all()
    for name in COMPANIES:
        assert torch.equal(found[name], found["nobody"]), name


@pytest.mark.parametrize("shape", ["dense", "moe"])
def test_with_8_bits_a_row_is_the_same_in_a_step_of_any_size(shape: str) -> None:
    model, ids = model_of(SHAPES[shape], "int8"), text_of(40)
    found = []
    for size in (1, 2, 4, 8, 32):
        decoder = ready(model, size)
        for slot in range(size):
            read(decoder, slot, ids[: 30 - slot % 3])
        rows = decoder.step([ids[30]] * size, [30, *[29 - slot % 3 for slot in range(1, size)]])
        found.append(rows[0])
    assert all(torch.equal(row, found[0]) for row in found)


def test_chunks_read_together_are_as_those_read_one_by_one() -> None:
    model = model_of(DENSE_64, "int8")
    prompts = [text_of(length, seed=length) for length in (1, 40, CHUNK, 100, LENGTH)]
    alone = [read(ready(model), 0, ids) for ids in prompts]
    decoder = ready(model, len(prompts))
    chunks = [
        Chunk(slot, start, ids[start : next_border(start)], is_last=next_border(start) >= len(ids))
        for slot, ids in enumerate(prompts)
        for start in range(0, len(ids), CHUNK)
    ]
    together = decoder.read(chunks)
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_slot_that_takes_no_step_keeps_what_it_holds() -> None:
    model, ids = model_of(DENSE_64), text_of(40)
    decoder = ready(model, 2)
    read(decoder, 0, ids)
    read(decoder, 1, ids)
    before = [decoder.cache.of_slots(layer, 1, 2, 64)[0].clone() for layer in range(model.config.num_hidden_layers)]
    decoder.step([1, 2], [40, -1])
    after = [decoder.cache.of_slots(layer, 1, 2, 64)[0] for layer in range(model.config.num_hidden_layers)]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_packed_matrices_give_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = model_of(DENSE_64), text_of(40)
    found = []
    for packs in (False, True):
        monkeypatch.setattr(module, "packing_helps", lambda packs=packs: packs)
        decoder = ready(model, 4)
        read(decoder, 0, ids[:30])
        found.append(decoder.step([ids[30], 0, 0, 0], [30, -1, -1, -1])[0])
        assert (decoder.layers[0].qkv.packed is not None) is packs  # type: ignore[attr-defined]
    assert_close(*found, rtol=1e-4, atol=1e-4)


def test_rows_that_read_equally_many_places_go_through_one_call() -> None:
    decoder = ready(model_of(DENSE_64), 8)
    assert decoder._runs([3, 20, 63, 64, 100, 5]) == [(0, 3, 64), (3, 5, 128), (5, 6, 64)]
    assert decoder._runs([-1, 70, 80, -1, 10, 11, -1]) == [(1, 3, 128), (4, 6, 64)]  # nothing is read for free slots


def test_buckets_are_powers_of_two_then_multiples_of_eight() -> None:
    assert [bucket_of(count) for count in (1, 2, 3, 4, 5, 8, 9, 17, 31, 32, 33)] == [
        1,
        2,
        4,
        4,
        8,
        8,
        16,
        24,
        32,
        32,
        40,
    ]
