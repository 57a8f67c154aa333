"""What running a model needs beside its weights: memory for its context; and what share of the experts a token uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmkit.formats.gguf import Value


@dataclass(frozen=True, slots=True)
class Footprint:
    """The widths and counts that memory and speed follow from.

    n_layers: blocks. trained_context: tokens. keys_and_values: numbers that are kept of each token; states: numbers
    that recurrent layers keep of a whole sequence. n_vocab, n_embd, n_ff: widths. expert_share: of a mixture, the part
    of the experts' weights that a token uses.
    """

    n_layers: int
    trained_context: int
    keys_and_values: int
    states: int
    n_vocab: int
    n_embd: int
    n_ff: int
    expert_share: float

    def cache_bytes(self, n_context: int, bytes_per_number: int = 2) -> int:
        """Bytes for a context: keys and values are float16 unless said, states float32."""
        return n_context * self.keys_and_values * bytes_per_number + self.states * 4


def footprint(metadata: Mapping[str, Value]) -> Footprint:
    """What a GGUF file's metadata tell, as llama.cpp allocates it (src/llama-kv-cache.cpp, src/llama-hparams.cpp).

    Layers with a sliding window count in full, since llama.cpp keeps all their tokens unless told otherwise. Latent
    attention keeps keys only. What the metadata leave out counts as nothing.
    """
    architecture = metadata["general.architecture"].data if "general.architecture" in metadata else ""
    keys = _Counts(f"{architecture}.", metadata)
    n_layers, n_heads, n_embd = keys.one("block_count"), keys.each("attention.head_count"), keys.one("embedding_length")
    kv_heads = keys.each("attention.head_count_kv") or n_heads
    head = n_embd // max([1, *n_heads])
    width = keys.one("attention.key_length", head)
    if not keys.one("attention.key_length_mla"):
        width += keys.one("attention.value_length", head)
    layers = [kv_heads[min(layer, len(kv_heads) - 1)] if kv_heads else 0 for layer in range(min(n_layers, 1 << 16))]
    inner, states = keys.one("ssm.inner_size"), keys.one("ssm.state_size")
    convolved = max(0, keys.one("ssm.conv_kernel") - 1) * (inner + 2 * keys.one("ssm.group_count") * states)
    n_experts = keys.one("expert_count")
    tokens = metadata.get("tokenizer.ggml.tokens")
    return Footprint(
        n_layers=n_layers,
        trained_context=keys.one("context_length"),
        keys_and_values=sum(layers) * width,
        states=layers.count(0) * (convolved + states * inner),
        n_vocab=keys.one("vocab_size") or (len(tokens.data) if tokens is not None else 0),
        n_embd=n_embd,
        n_ff=max([0, *keys.each("feed_forward_length")]),
        expert_share=min(1.0, keys.one("expert_used_count") / n_experts) if n_experts else 1.0,
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    """The counts in metadata whose keys begin alike; what is none, or none that can be, is left out."""

    prefix: str
    metadata: Mapping[str, Value]

    def one(self, key: str, default: int = 0) -> int:
        found = self.each(key)
        return found[0] if found else default

    def each(self, key: str) -> list[int]:
        value = self.metadata.get(f"{self.prefix}{key}")
        if value is None:
            return []
        found = list(value.data) if isinstance(value.data, list | tuple) else [value.data]
        return found if all(type(number) is int and 0 <= number < 1 << 31 for number in found) else []
