"""Slots: prefixes are found and reused up to a border, old ones go first, steps stay small."""

from typing import Any

import pytest

from dataset.tokenizer import RustBPETokenizer
from inference.request import Request
from inference.sampling import Sampling
from inference.scheduler import Scheduler, Slot
from model.decoder import CHUNK


class Cache:
    """Notes what a scheduler asks of the cache."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def scheduler(self, max_slots: int) -> Scheduler:
        return Scheduler(
            max_slots,
            copy=lambda *numbers: self.calls.append(("copy", *numbers)),
            swap=lambda *numbers: self.calls.append(("swap", *numbers)),
        )


@pytest.fixture
def cache() -> Cache:
    return Cache()


def request(tokenizer: RustBPETokenizer, prompt: list[int]) -> Request:
    return Request(tokenizer, prompt, Sampling(), frozenset())


def served(scheduler: Scheduler, tokenizer: RustBPETokenizer, prompt: list[int], answer: int = 0) -> Slot:
    """The slot of a prompt that was read; `answer` tokens were generated."""
    scheduler.waiting.append(request(tokenizer, prompt))
    slot = scheduler.admit()
    while slot.is_reading:
        slot.read(slot.next_chunk(slot.num_read))
    slot.tokens += [1] * answer
    return slot


LONG = list(range(100, 100 + 3 * CHUNK + 10))


def test_a_conversation_that_goes_on_is_read_from_the_last_border_of_its_prompt(
    cache: Cache, tokenizer: RustBPETokenizer
) -> None:
    scheduler = cache.scheduler(4)
    slot = served(scheduler, tokenizer, LONG, answer=200)
    scheduler.release(slot)
    assert slot.tokens == LONG  # what was generated is computed anew: its shapes were others
    again = served(scheduler, tokenizer, [*LONG, *[1] * 200, 5])
    assert again is slot and again.request is not None
    assert again.request.cached_tokens == 3 * CHUNK
    assert not cache.calls


def test_the_last_token_of_a_prompt_is_always_read(cache: Cache, tokenizer: RustBPETokenizer) -> None:
    scheduler = cache.scheduler(4)
    prompt = LONG[: 2 * CHUNK]
    scheduler.release(served(scheduler, tokenizer, prompt))
    again = served(scheduler, tokenizer, prompt)
    assert again.request is not None and again.request.cached_tokens == CHUNK


def test_a_beginning_that_many_share_is_copied_and_its_owner_keeps_it(
    cache: Cache, tokenizer: RustBPETokenizer
) -> None:
    scheduler = cache.scheduler(3)
    first = served(scheduler, tokenizer, LONG)  # still running
    second = served(scheduler, tokenizer, [*LONG[: 2 * CHUNK], 1, 2])
    assert cache.calls == [("copy", first.number, second.number, 2 * CHUNK)]
    scheduler.release(first)
    third = served(scheduler, tokenizer, [*LONG[:CHUNK], 3, 4])  # the free one holds much more: a copy
    assert third is not first and cache.calls[1] == ("copy", first.number, third.number, CHUNK)
    assert first.tokens == LONG


def test_the_slot_that_was_free_for_longest_is_taken_first(cache: Cache, tokenizer: RustBPETokenizer) -> None:
    scheduler = cache.scheduler(3)
    slots = [served(scheduler, tokenizer, [number] * 5) for number in range(3)]
    for place in (1, 0, 2):
        scheduler.release(slots[place])
    assert [served(scheduler, tokenizer, [9, 9]) for _ in range(3)] == [slots[1], slots[0], slots[2]]
    assert not scheduler.has_room


def test_slots_that_step_are_moved_to_the_front(cache: Cache, tokenizer: RustBPETokenizer) -> None:
    scheduler = cache.scheduler(8)
    slots = [served(scheduler, tokenizer, [number] * (5 + number)) for number in range(8)]
    assert scheduler.gather() == 8 and not cache.calls
    for slot in (*slots[:5], slots[6]):
        scheduler.release(slot)
    assert scheduler.gather() == 2
    assert sorted(slot.number for slot in (slots[5], slots[7])) == [0, 1]
    assert [slot.number for slot in scheduler.slots] == list(range(8))
    # 5 and 7 change places with 0 and 1, as far as either is filled.
    assert cache.calls == [("swap", 5, 0, 10), ("swap", 7, 1, 12)]
    assert slots[0].tokens == [0] * 5 and slots[0].number == 5


def test_nothing_is_kept_of_a_slot_that_holds_no_numbers(cache: Cache, tokenizer: RustBPETokenizer) -> None:
    scheduler = cache.scheduler(1)
    slot = served(scheduler, tokenizer, LONG)
    scheduler.release(slot, keep=False)
    again = served(scheduler, tokenizer, LONG)
    assert again.request is not None and again.request.cached_tokens == 0
