"""The cache of generation: keys and values of the tokens so far, so that each is computed once.

Shapes: B batch, K key/value heads, T new tokens, S tokens so far and new ones, D head size.
"""

from dataclasses import dataclass

from torch import Tensor

from configs.schema import ModelConfig


@dataclass
class KeyValueCache:
    """A pair of (B, K, capacity, D) for each layer, filled up to `length`."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> "KeyValueCache":
        """Room for `capacity` tokens in the dtype and on the device of `like`."""
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        return cls([like.new_zeros(shape) for _ in layers], [like.new_zeros(shape) for _ in layers])

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new tokens behind the ones of this layer; returns all of them, (B, K, S, D).

        `length` stays until all layers have written: the network raises it after its last block.
        """
        end = self.length + key.shape[2]
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
