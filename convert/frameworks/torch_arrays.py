"""The decoder's operations in torch, and the module that torch's formats are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from llmkit.convert.network.arrays import Array, Attention, StaticArrays
from llmkit.convert.network.decoder import Network


class TorchArrays(StaticArrays):
    """Operations on tensors; `put` writes into the cache that it is given."""

    def positions(self, ids: Array) -> Array:
        return torch.arange(ids.shape[1])

    def count(self, n: int) -> Array:
        return torch.arange(n)

    def take(self, table: Array, rows: Array) -> Array:
        return functional.embedding(rows, table) if table.dim() == 2 else table[rows]

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def transpose(self, x: Array, axes: Sequence[int]) -> Array:
        return x.permute(tuple(axes))

    def split(self, x: Array, sizes: Sequence[int]) -> Sequence[Array]:
        parts: Sequence[Array] = x.split(list(sizes), -1)
        return parts

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array:
        return torch.cat(list(parts), axis)

    def where(self, condition: Array, x: Array, otherwise: Array | float) -> Array:
        return torch.where(condition, x, otherwise)

    def put(self, cache: Array, block: int, new: Array, position: Array) -> Array:
        cache[block].index_copy_(2, position + torch.arange(new.shape[2]), new)
        return cache

    def of_block(self, cache: Array, block: int) -> Array:
        return cache[block]

    def matmul(self, x: Array, y: Array) -> Array:
        return x @ y

    def inverse_root(self, x: Array) -> Array:
        return torch.rsqrt(x)

    def mean(self, x: Array) -> Array:
        return x.mean(-1, keepdim=True)

    def sum(self, x: Array, axis: int) -> Array:
        return x.sum(axis)

    def softmax(self, x: Array) -> Array:
        return torch.softmax(x, -1)

    def tanh(self, x: Array) -> Array:
        return torch.tanh(x)

    def sigmoid(self, x: Array) -> Array:
        return torch.sigmoid(x)

    def bounded(self, x: Array, low: float | None, high: float) -> Array:
        return torch.clamp(x, low, high)

    def largest(self, x: Array, n: int) -> tuple[Array, Array]:
        values, places = torch.topk(x, n)
        return values, places

    def without_last(self, x: Array) -> Array:
        return x[..., :-1]

    def without_column(self, x: Array) -> Array:
        return x.squeeze(-1)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return functional.linear(x, weight, bias)

    def rms_norm(self, x: Array, weight: Array, epsilon: float) -> Array:
        return functional.rms_norm(x, tuple(weight.shape), weight, epsilon)

    def silu(self, x: Array) -> Array:
        return functional.silu(x)

    def gelu_tanh(self, x: Array) -> Array:
        return functional.gelu(x, approximate="tanh")

    def mask(self, seen: Array) -> Array:
        # torch's fast attention on CPUs takes what is added to the products; of booleans it makes that in each block.
        return torch.where(seen, 0.0, -torch.inf)

    def masked(self, products: Array, mask: Array) -> Array:
        return products + mask

    def attend(self, how: Attention, q: Array, k: Array, v: Array, mask: Array, sinks: Array | None) -> Array:
        if how.softcap or sinks is not None:
            return super().attend(how, q, k, v, mask, sinks)
        grouped = how.n_heads != how.n_kv_heads
        return functional.scaled_dot_product_attention(q, k, v, mask, scale=how.scale, enable_gqa=grouped)


class WeightedModule(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
    """A module with a network's weights as buffers, `.` in their names `__`."""

    def __init__(self, network: Network, weights: Mapping[str, Any]) -> None:
        super().__init__()
        self._network = network
        for name, values in weights.items():
            # The file's pages are given back when memory is needed elsewhere. Nothing writes to them.
            self.register_buffer(name.replace(".", "__"), torch.from_numpy(values))

    def weights(self) -> dict[str, Any]:
        """By their own names, as the network's operations get them."""
        return {name: self.weight(name) for name in self._network.shapes}

    def weight(self, name: str) -> Any:
        """One of them."""
        return getattr(self, name.replace(".", "__"))


class TorchDecoder(WeightedModule):
    """`forward(ids, position, keys, values)`: see `Network.forward`."""

    def __init__(self, network: Network, weights: Mapping[str, Any], arrays: StaticArrays | None = None) -> None:
        super().__init__(network, weights)
        self._arrays = arrays or TorchArrays()

    def forward(
        self, ids: torch.Tensor, position: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._network.forward(self._arrays, self.weights(), ids, position, keys, values)

    def examples(self, n: int) -> tuple[torch.Tensor, ...]:
        """Arguments for tracing with n tokens; keys and values are two tensors, or they would be taken for one."""
        shape = self._network.cache_shape
        return torch.arange(n)[None], torch.tensor(0), torch.zeros(shape), torch.zeros(shape)
