"""InternLM2 and 2.5: Llama's computation with queries, keys and values in one matrix."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, Source, TensorRule, tensor
from llmkit.convert.transforms import View
from llmkit.errors import UnsupportedError

_BLOCK = "model.layers.{i}."
_MLP = _BLOCK + "feed_forward."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of the published InternLM2Config."""
    if config.boolean("tie_word_embeddings", False):
        raise UnsupportedError(
            f"{config.path}: tie_word_embeddings is true; llama.cpp needs an output matrix for this architecture"
        )
    return decoder.read_decoder(config, n_context=2048)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**decoder.write_decoder(h), "bias": False}


def _per_group(h: HParams, stored: View) -> View:
    """Rows of wqkv by heads of keys: for each its query heads, the key head, the value head."""
    return stored.split(0, h.n_kv_heads, h.n_heads // h.n_kv_heads + 2, h.head_dim)


def _queries(h: HParams, stored: View) -> View:
    return _per_group(h, stored).part(1, 0, -2).split(2, 2, -1).swap(2, 3)


def _keys(h: HParams, stored: View) -> View:
    return _per_group(h, stored).at(1, -2).split(1, 2, -1).swap(1, 2)


def _values(h: HParams, stored: View) -> View:
    return _per_group(h, stored).at(1, -1)


def _joined_attention() -> tuple[TensorRule, ...]:
    def stored(h: HParams) -> tuple[int, ...]:
        return (blocks.queries(h) + 2 * blocks.keys(h), h.n_embd)

    name = _BLOCK + "attention.wqkv.weight"
    return (
        tensor("attn_q.weight", lambda h: (blocks.queries(h), h.n_embd), Source(name, stored, _queries)),
        tensor("attn_k.weight", lambda h: (blocks.keys(h), h.n_embd), Source(name, stored, _keys)),
        tensor("attn_v.weight", lambda h: (blocks.keys(h), h.n_embd), Source(name, stored, _values)),
        *blocks.linear("attn_output", blocks.embd, blocks.queries, _BLOCK + "attention.wo"),
    )


FAMILY = Family(
    model_type="internlm2",
    architectures=("InternLM2ForCausalLM",),
    gguf_architecture="internlm2",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding("model.tok_embeddings"),
        *blocks.norm("attn_norm", _BLOCK + "attention_norm"),
        *_joined_attention(),
        *blocks.norm("ffn_norm", _BLOCK + "ffn_norm"),
        *blocks.linear("ffn_gate", blocks.ff, blocks.embd, _MLP + "w1"),
        *blocks.linear("ffn_up", blocks.ff, blocks.embd, _MLP + "w3"),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, _MLP + "w2"),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head("output"),
    ),
)
