"""The cache of slots: what a slot holds stays when others grow, move, or are cleared."""

import torch

from model.kv_cache import BORDER, SlotCache
from tests.tiny_run import DENSE

HEADS, SIZE = DENSE.resolve().num_key_value_heads, DENSE.resolve().head_dim


def filled(slots: int, places: int) -> tuple[SlotCache, torch.Tensor]:
    """A cache, and the keys of its first layer, (slots, places, K, D)."""
    cache = SlotCache(DENSE.resolve(), like=torch.zeros(1))
    cache.reserve(slots, places)
    numbers = torch.randn(slots, places, HEADS, SIZE)
    for slot in range(slots):
        cache.write_text(0, slot, 0, pair(numbers[slot]))
    return cache, numbers


def pair(keys: torch.Tensor) -> torch.Tensor:
    """Keys with their values, (N, 2, K, D)."""
    return torch.stack((keys, -keys), dim=1)


def keys(cache: SlotCache, slot: int, places: int) -> torch.Tensor:
    """What a slot holds, (places, K, D); values are their negatives."""
    found, values = cache.of_slots(0, slot, slot + 1, places)
    assert torch.equal(found, -values)
    return found[0].transpose(0, 1)


def test_room_grows_and_what_is_held_stays() -> None:
    cache, numbers = filled(2, 40)
    assert (cache.num_slots, cache.num_places) == (2, BORDER)
    cache.reserve(4, 10)
    cache.reserve(1, BORDER + 1)
    assert (cache.num_slots, cache.num_places) == (4, 2 * BORDER)
    for slot in range(2):
        assert torch.equal(keys(cache, slot, 40), numbers[slot])
    assert not keys(cache, 3, 2 * BORDER).any()  # a masked place must hold a number


def test_rows_write_one_place_each_and_rows_without_a_text_none() -> None:
    cache, numbers = filled(3, 20)
    new = torch.randn(3, HEADS, SIZE)
    cache.write_rows(0, torch.arange(3), torch.tensor([20, cache.num_places, 7]), pair(new))
    assert torch.equal(keys(cache, 0, 21), torch.cat((numbers[0], new[:1])))
    assert torch.equal(keys(cache, 1, 20), numbers[1]) and not keys(cache, 1, BORDER)[20:].any()
    assert torch.equal(keys(cache, 2, 20)[7], new[2])


def test_slots_are_copied_exchanged_and_cleared() -> None:
    cache, numbers = filled(3, 20)
    cache.copy(0, 2, 8)
    assert torch.equal(keys(cache, 2, 20), torch.cat((numbers[0, :8], numbers[2, 8:])))
    cache.swap(0, 1, 20)
    assert torch.equal(keys(cache, 0, 20), numbers[1]) and torch.equal(keys(cache, 1, 20), numbers[0])
    cache.clear(1)
    assert not keys(cache, 1, 20).any() and torch.equal(keys(cache, 0, 20), numbers[1])
