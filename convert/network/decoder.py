"""A decoder as a function of arrays, from a family's structure, hyper-parameters and tensors.

Written once against a few operations (`Arrays`): torch and JAX trace it, graph builders record it. Its weights are
those of `llmkit.convert.network.weights` with all that can be joined joined, and the rotary tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmkit.convert.archs import Experts, HParams
from llmkit.convert.archs.structure import Structure
from llmkit.convert.network.arrays import Array, Arrays, Attention, StaticArrays
from llmkit.convert.network.cache import Cache, StaticCache
from llmkit.convert.network.rotary import ROTARY, SLIDING_ROTARY

Weights = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Network:
    """What the function is of one model: its shapes, of the weights by name; no weights.

    n_context: positions of a cache of fixed length. short_positions: how many tokens LongRoPE's rotation of short texts
    is for.
    """

    hparams: HParams
    structure: Structure
    shapes: Mapping[str, tuple[int, ...]]
    n_context: int
    short_positions: int | None = None

    @property
    def cache_shape(self) -> tuple[int, int, int, int, int]:
        """Of keys, and of values: [blocks, 1, heads, positions, width of a head]."""
        h = self.hparams
        return h.n_layers, 1, h.n_kv_heads, self.n_context, h.head_dim

    def forward(
        self, arrays: StaticArrays, weights: Weights, ids: Array, position: Array, keys: Array, values: Array
    ) -> tuple[Array, Array, Array]:
        """Process tokens behind those in a cache of fixed length.

        ids: integers [1, n]. position: how many tokens the cache holds, an integer without axes. keys, values: see
        `cache_shape`. Returns logits, float [1, n, n_vocab], and both caches with the tokens.
        """
        cache = StaticCache(arrays, ids, position, keys, values, self.cache_shape)
        logits = Decoder(arrays, self, weights).logits(ids, cache)
        return logits, cache.keys, cache.values


class Decoder:
    """One pass: computes with the operations of `arrays` on `weights`."""

    def __init__(self, arrays: Arrays, network: Network, weights: Weights) -> None:
        self._arrays = arrays
        self._network = network
        self._h = network.hparams
        self._structure = network.structure
        self._weights = weights
        self._masks: dict[int | None, Array] = {}
        self._rotations: dict[str, tuple[Array, Array]] = {}

    def logits(self, ids: Array, cache: Cache) -> Array:
        """Of the tokens ids [1, n] behind those in the cache: [1, n, n_vocab]."""
        h, structure = self._h, self._structure
        x = _scaled(self._arrays.take(self._weights["token_embd.weight"], ids), structure.embedding_scale(h))
        for block in range(h.n_layers):
            name = f"blk.{block}."
            y = self._attention(self._normed(x, name, structure.norm_before_attention), block, cache)
            x = x + self._leave(y, name, structure.norm_after_attention)
            y = self._mlp(self._normed(x, name, structure.norm_before_mlp), f"{name}ffn_")
            x = x + self._leave(y, name, structure.norm_after_mlp)
        found = self._linear(self._norm(x, "output_norm"), "output" if self._has("output.weight") else "token_embd")
        found = _scaled(found, structure.logit_scale(h))
        return self._arrays.tanh(found / h.final_softcap) * h.final_softcap if h.final_softcap else found

    def _has(self, name: str) -> bool:
        return name in self._network.shapes

    def _normed(self, x: Array, prefix: str, norm: str | None) -> Array:
        return x if norm is None else self._norm(x, f"{prefix}{norm}")

    def _leave(self, x: Array, prefix: str, norm: str | None) -> Array:
        """What is added to the stream, of what a part has computed."""
        return _scaled(self._normed(x, prefix, norm), self._h.residual_scale)

    def _norm(self, x: Array, name: str) -> Array:
        assert self._h.rms_eps is not None, "graphs are of models with root mean square norms"
        return self._arrays.rms_norm(x, self._weights[f"{name}.weight"], self._h.rms_eps)

    def _linear(self, x: Array, name: str) -> Array:
        bias = self._weights[f"{name}.bias"] if self._has(f"{name}.bias") else None
        return self._arrays.linear(x, self._weights[f"{name}.weight"], bias)

    def _attention(self, x: Array, block: int, cache: Cache) -> Array:
        a, h, name = self._arrays, self._h, f"blk.{block}.attn"
        window = self._structure.window(h, block)
        q, k, v = self._queries_keys_values(x, name)
        if self._structure.rotates(h, block):
            table = SLIDING_ROTARY if window is not None and h.sliding_rope is not None else ROTARY
            cos, sin = self._rotation(table, cache)
            q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
        keys, values = cache.extend(block, k, v)
        scale = self._structure.attention_scale(h)
        how = Attention(h.n_heads, h.n_kv_heads, h.head_dim, scale, h.attention_softcap)
        sinks = self._weights[f"{name}_sinks.weight"] if self._has(f"{name}_sinks.weight") else None
        y = a.attend(how, q, keys, values, self._mask(cache, window), sinks)
        y = a.reshape(a.transpose(y, (0, 2, 1, 3)), (a.batch, -1, h.n_heads * h.head_dim))
        return self._linear(y, f"{name}_output")

    def _queries_keys_values(self, x: Array, name: str) -> tuple[Array, Array, Array]:
        """Each [1, heads, n, width], normalised where the model does that, together or head by head."""
        h = self._h
        if self._has(f"{name}_qkv.weight"):
            sizes = [n * h.head_dim for n in (h.n_heads, h.n_kv_heads, h.n_kv_heads)]
            q, k, v = self._arrays.split(self._linear(x, f"{name}_qkv"), sizes)
        else:
            q, k, v = (self._linear(x, f"{name}_{role}") for role in "qkv")
        norm = self._network.shapes.get(f"{name}_q_norm.weight")
        if norm is not None and norm != (h.head_dim,):
            q, k = self._norm(q, f"{name}_q_norm"), self._norm(k, f"{name}_k_norm")
        q, k, v = self._heads(q, h.n_heads), self._heads(k, h.n_kv_heads), self._heads(v, h.n_kv_heads)
        if norm == (h.head_dim,):
            q, k = self._norm(q, f"{name}_q_norm"), self._norm(k, f"{name}_k_norm")
        return q, k, v

    def _heads(self, x: Array, n_heads: int) -> Array:
        a = self._arrays
        return a.transpose(a.reshape(x, (a.batch, -1, n_heads, self._h.head_dim)), (0, 2, 1, 3))

    def _rotation(self, table: str, cache: Cache) -> tuple[Array, Array]:
        """Cosines and sines for the new tokens, each [batch, 1, n, rotated dimensions / 2].

        The row is the position, or in LongRoPE's second set, which follows the first one, where the text is longer than
        that is for.
        """
        if table not in self._rotations:
            a, short, rows = self._arrays, self._network.short_positions, cache.places
            if short is not None:
                rows = a.where(cache.total > short, rows + short, rows)
            shape = (a.batch, 1, -1, self._network.shapes[f"{table}.cos"][1])
            tables = (self._weights[f"{table}.{function}"] for function in ("cos", "sin"))
            cos, sin = (a.reshape(a.take(values, rows), shape) for values in tables)
            self._rotations[table] = cos, sin
        return self._rotations[table]

    def _rotate(self, x: Array, cos: Array, sin: Array) -> Array:
        half = self._network.shapes[f"{ROTARY}.cos"][1]
        rest = self._h.head_dim - 2 * half
        one, other, *kept = self._arrays.split(x, [half, half, rest] if rest else [half, half])
        return self._arrays.concatenate([one * cos - other * sin, other * cos + one * sin, *kept], -1)

    def _mask(self, cache: Cache, window: int | None) -> Array:
        """Whether a new token attends to a slot; see `Arrays.mask`."""
        if window not in self._masks:
            a = self._arrays
            own, slots = a.reshape(cache.own, (1, 1, -1, 1)), a.reshape(cache.slots, (1, 1, 1, -1))
            seen = slots <= own if cache.filled is None else (slots <= own) & cache.filled
            self._masks[window] = a.mask(seen) if window is None else a.window_mask(seen, own, slots, window)
        return self._masks[window]

    def _mlp(self, x: Array, prefix: str) -> Array:
        if self._h.experts is not None:
            return self._experts(x, prefix, self._h.experts)
        up = self._linear(x, f"{prefix}up")
        if self._has(f"{prefix}gate.weight"):
            gate = self._linear(x, f"{prefix}gate")
        else:
            half = self._network.shapes[f"{prefix}up.weight"][0] // 2
            gate, up = self._arrays.split(up, [half, half])
        return self._linear(self._activated(gate) * up, f"{prefix}down")

    def _activated(self, x: Array) -> Array:
        return self._arrays.gelu_tanh(x) if self._structure.activation == "gelu_tanh" else self._arrays.silu(x)

    def _experts(self, x: Array, prefix: str, experts: Experts) -> Array:
        """Each token by its own experts, whose matrices are gathered: memory for every token and expert."""
        a, structure = self._arrays, self._structure
        tokens = (a.batch, -1)
        chances = self._linear(x, f"{prefix}gate_inp")
        if structure.normalizes_experts:
            chosen, which = a.largest(chances, experts.n_used)
            shares = a.softmax(chosen)
        else:
            shares, which = a.largest(a.softmax(chances), experts.n_used)
        y = self._by_experts(a.reshape(x, (*tokens, 1, self._h.n_embd, 1)), f"{prefix}gate_up_exps", which)
        # Gates and what they multiply take turns.
        each = (*tokens, experts.n_used, self._network.shapes[f"{prefix}gate_up_exps.weight"][1] // 2)
        gate, up = (a.reshape(z, each) for z in a.split(a.reshape(y, (*each, 2)), [1, 1]))
        y = self._gated(gate) * (self._bounded(up) + 1 if structure.activation == "swiglu_oss" else up)
        y = self._by_experts(a.reshape(y, (*each, 1)), f"{prefix}down_exps", which)
        return a.sum(y * a.reshape(shares, (*tokens, experts.n_used, 1)), 2)

    def _by_experts(self, x: Array, name: str, which: Array) -> Array:
        """x [batch, n, 1 or used, columns, 1] times the matrices of the experts: [batch, n, used, rows]."""
        a = self._arrays
        product = a.without_column(a.matmul(a.take(self._weights[f"{name}.weight"], which), x))
        return product + a.take(self._weights[f"{name}.bias"], which) if self._has(f"{name}.bias") else product

    def _gated(self, gate: Array) -> Array:
        structure = self._structure
        if structure.activation != "swiglu_oss":
            return self._activated(gate)
        limit = structure.gate_limit
        gate = gate if limit is None else self._arrays.bounded(gate, None, limit)
        return gate * self._arrays.sigmoid(gate * structure.gate_alpha)

    def _bounded(self, x: Array) -> Array:
        limit = self._structure.gate_limit
        return x if limit is None else self._arrays.bounded(x, -limit, limit)


def _scaled(x: Array, scale: float | None) -> Array:
    return x if scale is None or scale == 1 else x * scale
