"""The decoder's operations as XNNPACK takes them, so that all blocks of a decoder are one part of the graph.

ExecuTorch prepares and serialises every part on its own, and what lies between two parts is computed by slow kernels.
So there is nothing in the blocks, but for experts, that XNNPACK does not have: means are products with a row, masks are
added, and the cache is read as it was before the tokens and written after all blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.nn import functional

from llmkit.convert.frameworks.torch_arrays import TorchArrays
from llmkit.convert.network.arrays import Array, Arrays, Attention

_UNSEEN: Final = -1e9  # comes to nothing in a softmax, and is no infinity, of which a kernel might take differences


class ExecutorchArrays(TorchArrays):
    """Operations on tensors for one trace, of a batch of one. `k` and `v` of `attend` are what `BufferCache` gives.

    rows: for means, by the number of values, [1, values] of 1 / values.
    """

    def __init__(self, rows: dict[int, torch.Tensor]) -> None:
        self._rows = rows
        self._masks: dict[tuple[int, int], tuple[Array, Array]] = {}

    def split(self, x: Array, sizes: Sequence[int]) -> Sequence[Array]:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [x[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def mean(self, x: Array) -> Array:
        return functional.linear(x, self._rows[x.shape[-1]])

    def rms_norm(self, x: Array, weight: Array, epsilon: float) -> Array:
        return Arrays.rms_norm(self, x, weight, epsilon)

    def silu(self, x: Array) -> Array:
        return Arrays.silu(self, x)

    def gelu_tanh(self, x: Array) -> Array:
        return Arrays.gelu_tanh(self, x)

    def mask(self, seen: Array) -> Array:
        return seen  # attention here makes of it what is added

    def attend(self, how: Attention, q: Array, k: Array, v: Array, seen: Array, sinks: Array | None) -> Array:
        """See `Arrays.attend`. Matrices of three axes only: with four, torch would add operations XNNPACK lacks."""
        (old_keys, new_keys), (old_values, new_values) = k, v
        n_groups, n_slots = how.n_heads // how.n_kv_heads, old_values.shape[1]
        rows = (q * how.scale).reshape(how.n_kv_heads, -1, how.head_dim)
        products = torch.cat([torch.bmm(rows, old_keys), torch.bmm(rows, new_keys)], -1)
        if how.softcap:
            products = torch.tanh(products / how.softcap) * how.softcap
        products = products + self._mask(seen, n_groups)
        if sinks is not None:
            each = (sinks.reshape(how.n_kv_heads, n_groups, 1) + torch.zeros(1, 1, q.shape[2])).reshape(
                how.n_kv_heads, -1, 1
            )
            products = torch.cat([products, each], -1)
        shares = torch.softmax(products, -1)
        end = n_slots + new_values.shape[1]
        found = torch.bmm(shares[..., :n_slots], old_values) + torch.bmm(shares[..., n_slots:end], new_values)
        return found.reshape(1, how.n_heads, -1, how.head_dim)

    def _mask(self, seen: Array, n_groups: int) -> Array:
        key = id(seen), n_groups
        if key not in self._masks:  # once for all blocks; what has the id is kept, so that nothing else gets it
            mask = torch.where(torch.cat([seen] * n_groups, -2), 0.0, _UNSEEN)
            self._masks[key] = seen, mask.reshape(1, mask.shape[-2], -1)
        return self._masks[key][1]


class BufferCache:
    """Implements `llmkit.convert.network.cache.Cache` with two buffers for each block, which `write` fills.

    buffers: keys [heads, width, positions] and values [heads, positions, width]. Slots are those of the buffers, of
    which the tokens see what was there before them, and then those of the tokens themselves.
    """

    def __init__(self, ids: Any, position: Any, buffers: Sequence[tuple[Any, Any]]) -> None:
        self._buffers = buffers
        self._new: list[tuple[Array, Array]] = []
        n, slots = ids.shape[1], torch.arange(buffers[0][1].shape[1])
        self.places = self.own = torch.arange(n) + position
        self.slots = torch.cat([slots, self.own])
        self.filled = torch.cat([slots < position, torch.ones(n, dtype=torch.bool)]).reshape(1, 1, 1, -1)
        self.total = position + n

    def extend(self, block: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Old and new keys, transposed, and old and new values."""
        old_keys, old_values = self._buffers[block]
        # Reshaped, since XNNPACK has no selection.
        new_keys, new_values = keys.reshape(keys.shape[1:]).transpose(-1, -2), values.reshape(values.shape[1:])
        self._new.append((new_keys, new_values))
        return (old_keys, new_keys), (old_values, new_values)

    def write(self) -> None:
        """Put what is new where it belongs."""
        for (keys, values), (new_keys, new_values) in zip(self._buffers, self._new, strict=True):
            keys[:, :, self.own] = new_keys
            values[:, self.own] = new_values
