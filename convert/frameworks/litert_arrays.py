"""The decoder's operations in torch as LiteRT's converter wants them, and the module that it converts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice
from torch.nn import functional

from llmkit.convert.frameworks.torch_arrays import TorchArrays, TorchDecoder
from llmkit.convert.network.arrays import Array, Arrays, Attention
from llmkit.convert.network.decoder import Network

# The names by which LiteRT-LM's runtime knows inputs and outputs. Of the caches, with the number of the block.
IDS: Final = "tokens"
POSITIONS: Final = "input_pos"
KEYS: Final = "kv_cache_k_{}"
VALUES: Final = "kv_cache_v_{}"
LOGITS: Final = "logits"


@dataclass(frozen=True, slots=True)
class Exact:
    """A weight that keeps its precision when others are rounded."""

    values: torch.Tensor


class ExactPart(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
    """What is computed in this module bears its name, by which the quantiser leaves it out."""

    def forward(self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor | None) -> torch.Tensor:
        return function(*inputs)


class LiteRtArrays(TorchArrays):
    """Operations on tensors, integers of 32 bits. A cache is a list, of each block [1, heads, positions, width].

    One tensor for all blocks would be copied by every one of them.
    """

    def __init__(self) -> None:
        self.exact = ExactPart()

    def positions(self, ids: Array) -> Array:
        return torch.arange(ids.shape[1], dtype=torch.int32)

    def count(self, n: int) -> Array:
        return torch.arange(n, dtype=torch.int32)

    def take(self, table: Array, rows: Array) -> Array:
        if isinstance(table, Exact):
            return self.exact(functional.embedding, rows, table.values)
        return super().take(table, rows)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        if isinstance(weight, Exact):
            return self.exact(functional.linear, x, weight.values, bias)
        return super().linear(x, weight, bias)

    def put(self, cache: Array, block: int, new: Array, position: Array) -> Array:
        zero = torch.zeros((), dtype=torch.int32)
        changed = dynamic_update_slice(cache[block], new, [zero, zero, position, zero])
        return [*cache[:block], changed, *cache[block + 1 :]]

    def attend(self, how: Attention, q: Array, k: Array, v: Array, seen: Array, sinks: Array | None) -> Array:
        # torch's own would repeat the keys that queries share.
        return Arrays.attend(self, how, q, k, v, seen, sinks)


class LiteRtDecoder(TorchDecoder):
    """`forward(**inputs)` with the inputs of `examples` gives the outputs of the same names, and logits."""

    def __init__(self, network: Network, weights: Mapping[str, Any]) -> None:
        arrays = LiteRtArrays()
        super().__init__(network, weights, arrays)
        self.exact = arrays.exact

    def weight(self, name: str) -> Array:
        found = super().weight(name)
        keeps = name.startswith("rotary") or name.endswith(("ffn_gate_inp.weight", "_exps.bias"))
        return Exact(found) if keeps else found

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        names = cache_names(self._network)
        caches = ([inputs[name] for name in part] for part in names)
        logits, *changed = super().forward(inputs[IDS], inputs[POSITIONS][0], *caches)
        found = {LOGITS: logits}
        for part, tensors in zip(names, changed, strict=True):
            found |= zip(part, tensors, strict=True)
        return found

    def named_examples(self, n: int) -> dict[str, torch.Tensor]:
        """Arguments for tracing with n tokens; none shares its memory with another, or sizes would become symbols."""
        caches = [name for part in cache_names(self._network) for name in part]
        shape = self._network.cache_shape[1:]
        return {
            IDS: torch.zeros((1, n), dtype=torch.int32),
            POSITIONS: torch.arange(n, dtype=torch.int32),
            **{name: torch.zeros(shape) for name in caches},
        }


def cache_names(network: Network) -> Sequence[list[str]]:
    """Of keys and values, of each block."""
    return [[name.format(block) for block in range(network.hparams.n_layers)] for name in (KEYS, VALUES)]
