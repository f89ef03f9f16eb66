"""The cache of generation: keys and values of the tokens so far, so that each is computed once.

It consists of slots. A slot holds one text; all slots are one tensor, so many texts take a step
together without copies.

Shapes: K key/value heads, S places that are read, D head size, B rows of a step, T tokens of a
text.
"""

from torch import Tensor

from configs.schema import ModelConfig

BORDER = 64
"""Rows of a step read a multiple of so many places (the last ones masked). So a row's shapes depend
on its own length alone, and rows of similar length go through one call."""


class SlotCache:
    """Keys and values of every layer, (slots, K, places, D) each, in one tensor.

    The last place of each slot belongs to no text: rows without a text write there.
    """

    def __init__(self, config: ModelConfig, like: Tensor) -> None:
        """Args: like: the cache gets its dtype and device."""
        self.like, self.num_layers = like, config.num_hidden_layers
        self.heads, self.head_dim = config.num_key_value_heads, config.head_dim
        self._all = self._room(0, 0)

    def _room(self, slots: int, places: int) -> Tensor:
        # Zeros, because a masked place still takes part in products, and 0 * NaN is NaN.
        shape = (self.num_layers, 2, slots, self.heads, places + 1, self.head_dim)
        return self.like.new_zeros(shape)

    @property
    def num_slots(self) -> int:
        """Texts that it has room for."""
        return self._all.shape[2]

    @property
    def num_places(self) -> int:
        """Tokens that each text has room for."""
        return self._all.shape[4] - 1

    def reserve(self, slots: int, places: int) -> None:
        """Make room for so many slots and places, if there is less. What it holds stays.

        Room at least doubles, so that a text that grows by one token a step is seldom copied.
        """
        old_slots, old_places = self.num_slots, self.num_places
        if slots <= old_slots and places <= old_places:
            return
        slots = max(slots, old_slots)
        if places > old_places:
            places = max(-(-places // BORDER) * BORDER, 2 * old_places)
        grown = self._room(slots, max(places, old_places))
        grown[:, :, :old_slots, :, :old_places] = self._all[..., :old_places, :]
        self._all = grown

    def write_rows(self, layer: int, rows: Tensor, places: Tensor, keys_values: Tensor) -> None:
        """One token for each of the first B slots.

        Args: rows (B,): 0 to B - 1. places (B,): where each goes; `num_places` for rows without a
        text. keys_values (B, 2, K, D).
        """
        self._all[layer][:, rows, :, places] = keys_values

    def write_text(self, layer: int, slot: int, start: int, keys_values: Tensor) -> None:
        """T tokens of one text. Args: keys_values (T, 2, K, D)."""
        self._all[layer, :, slot, :, start : start + len(keys_values)] = keys_values.permute(1, 2, 0, 3)

    def of_slots(self, layer: int, first: int, end: int, places: int) -> tuple[Tensor, Tensor]:
        """Keys and values of neighbouring slots, (slots, K, S, D) each, without a copy."""
        keys, values = self._all[layer, :, first:end, :, :places]
        return keys, values

    def copy(self, source: int, target: int, places: int) -> None:
        """Give a slot the first places of another one."""
        self._all[:, :, target, :, :places] = self._all[:, :, source, :, :places]

    def swap(self, one: int, other: int, places: int) -> None:
        """Let two slots change places, as far as either is filled."""
        kept = self._all[:, :, one, :, :places].clone()
        self.copy(other, one, places)
        self._all[:, :, other, :, :places] = kept

    def clear(self, slot: int) -> None:
        """Zero a slot whose numbers are not finite, before another text uses it."""
        self._all[:, :, slot] = 0
