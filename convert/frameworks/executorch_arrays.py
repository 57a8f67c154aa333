"""The decoder's operations in torch as XNNPACK takes them, so that few parts of a graph are left to other kernels."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn import functional

from llmkit.convert.frameworks.torch_arrays import TorchArrays
from llmkit.convert.network.arrays import Array, Arrays, Attention

_UNSEEN: Final = -1e9  # comes to nothing in a softmax


class ExecutorchArrays(TorchArrays):
    """Operations on tensors for one trace. Means are products with a row, masks are added."""

    def __init__(self) -> None:
        self._rows: dict[int, torch.Tensor] = {}
        self._masks: dict[tuple[int, int], tuple[Array, Array]] = {}

    def prepare(self, widths: set[int]) -> None:
        """Make what has to be there before a trace: the rows for means of so many values."""
        self._rows = {width: torch.full((1, width), 1 / width) for width in widths}

    def begin(self) -> None:
        """Forget what belongs to an earlier trace."""
        self._masks.clear()

    def mean(self, x: Array) -> Array:
        return functional.linear(x, self._rows[x.shape[-1]])

    def rms_norm(self, x: Array, weight: Array, epsilon: float) -> Array:
        return Arrays.rms_norm(self, x, weight, epsilon)

    def silu(self, x: Array) -> Array:
        return Arrays.silu(self, x)

    def gelu_tanh(self, x: Array) -> Array:
        return Arrays.gelu_tanh(self, x)

    def attend(self, how: Attention, q: Array, k: Array, v: Array, seen: Array, sinks: Array | None) -> Array:
        if how.softcap or sinks is not None:
            return Arrays.attend(self, how, q, k, v, seen, sinks)
        rows = q.reshape(1, how.n_kv_heads, -1, how.head_dim)
        products = (rows * how.scale) @ k.transpose(-1, -2)
        shares = torch.softmax(products + self._mask(seen, how.n_heads // how.n_kv_heads), -1)
        return (shares @ v).reshape(1, how.n_heads, -1, how.head_dim)

    def _mask(self, seen: Array, n_groups: int) -> Array:
        key = id(seen), n_groups
        if key not in self._masks:  # once for all blocks; what has the id is kept, so that nothing else gets it
            self._masks[key] = seen, torch.where(torch.cat([seen] * n_groups, -2), 0.0, _UNSEEN)
        return self._masks[key][1]


class BufferCache:
    """Implements `llmkit.convert.network.cache.Cache` with two buffers for each block, which are written in place."""

    def __init__(self, arrays: Arrays, ids: Any, position: Any, buffers: list[tuple[Any, Any]], n_context: int) -> None:
        self._buffers = buffers
        self.places = self.own = arrays.positions(ids) + position
        self.slots = arrays.count(n_context)
        self.filled = None
        self.total = position + ids.shape[1]

    def extend(self, block: int, keys: Array, values: Array) -> tuple[Array, Array]:
        found = self._buffers[block]
        for buffer, new in zip(found, (keys, values), strict=True):
            buffer.index_put_((None, None, self.own), new)
        return found
