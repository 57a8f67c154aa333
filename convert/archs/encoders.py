"""Rules for the parts that encoders share, BERT and those like it: every norm has a bias and comes after its sum."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.blocks import Rules
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.pooling import MODULES, longest_text, read_pooling
from llmkit.convert.archs.rules import Presence, Source, TensorRule, tensor
from llmkit.errors import FormatError

LAYER = "encoder.layer.{i}."

# llama.cpp computes the approximation by tanh, through a table in float16, for all of these.
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")


def _always(h: HParams) -> Presence:
    return Presence.REQUIRED


def norm(role: str, name: str) -> Rules:
    """A LayerNorm; checkpoints made from TensorFlow's call its weights gamma and beta."""
    return tuple(
        tensor(f"{role}.{kind}", lambda h: (h.n_embd,), f"{name}.{kind}", f"{name}.{older}")
        for kind, older in (("weight", "gamma"), ("bias", "beta"))
    )


def token_types() -> TensorRule:
    """Embeddings by the part of a pair of texts that a token is in; llama.cpp has the first part only."""
    return tensor(
        "token_types.weight", lambda h: (h.n_token_types or 0, h.n_embd), "embeddings.token_type_embeddings.weight"
    )


def embeddings() -> Rules:
    """Token, type and position embeddings and their norm, as BERT and RoBERTa have them.

    The first positions of RoBERTa stand for padding: llama.cpp counts from the first that a token can have.
    """
    return (
        *blocks.embedding("embeddings.word_embeddings"),
        token_types(),
        tensor(
            "position_embd.weight",
            lambda h: (h.n_context, h.n_embd),
            Source(
                "embeddings.position_embeddings.weight",
                stored=lambda h: (h.first_position + h.n_context, h.n_embd),
                view=lambda h, stored: stored.part(0, h.first_position),
            ),
        ),
        *norm("token_embd_norm", "embeddings.LayerNorm"),
    )


BERT_TENSORS = (
    *embeddings(),
    *blocks.linear("attn_q", blocks.queries, blocks.embd, LAYER + "attention.self.query", bias=_always),
    *blocks.linear("attn_k", blocks.keys, blocks.embd, LAYER + "attention.self.key", bias=_always),
    *blocks.linear("attn_v", blocks.keys, blocks.embd, LAYER + "attention.self.value", bias=_always),
    *blocks.linear("attn_output", blocks.embd, blocks.queries, LAYER + "attention.output.dense", bias=_always),
    *norm("attn_output_norm", LAYER + "attention.output.LayerNorm"),
    *blocks.linear("ffn_up", blocks.ff, blocks.embd, LAYER + "intermediate.dense", bias=_always),
    *blocks.linear("ffn_down", blocks.embd, blocks.ff, LAYER + "output.dense", bias=_always),
    *norm("layer_output_norm", LAYER + "output.LayerNorm"),
)

# The pooler was trained to tell whether two sentences follow one another, heads predict masked tokens.
UNUSED = (
    r"embeddings\.(position|token_type)_ids",
    r"pooler\.dense\.(weight|bias)",
    r"(cls|lm_head)\..*",
)


def read_encoder(config: ConfigReader, *, first_position: int = 0) -> HParams:
    """What the config.json of BERT and RoBERTa states; what it leaves out has the default of transformers' classes.

    The first `first_position` positions are for padding.
    """
    config.require("hidden_act", GELU, "gelu")
    config.require("position_embedding_type", ("absolute",), "absolute")
    if config.boolean("is_decoder", False):
        raise FormatError(config.path, "is_decoder is true; this architecture computes encoders")
    heads = decoder.Heads(config)
    n_positions = config.integer("max_position_embeddings", 512)
    if n_positions <= first_position:
        raise FormatError(
            config.path, f"max_position_embeddings {n_positions}: the first {first_position} are for padding"
        )
    return HParams(
        n_layers=config.integer("num_hidden_layers"),
        n_embd=config.integer("hidden_size"),
        n_ff=config.integer("intermediate_size"),
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        n_vocab=config.integer("vocab_size"),
        n_context=n_positions - first_position,
        norm_eps=config.number("layer_norm_eps", 1e-12),
        tied_embeddings=True,
        causal=False,
        first_position=first_position,
        n_token_types=config.integer("type_vocab_size", 2),
        pooling=read_pooling(config.path.parent),
    )


def write_encoder(h: HParams) -> dict[str, Any]:
    """`read_encoder` backwards; files do not say which GELU it is."""
    return {
        "vocab_size": h.n_vocab,
        "hidden_size": h.n_embd,
        "intermediate_size": h.n_ff,
        "num_hidden_layers": h.n_layers,
        "num_attention_heads": h.n_heads,
        "hidden_act": "gelu",
        "max_position_embeddings": h.first_position + h.n_context,
        "layer_norm_eps": h.norm_eps,
        "position_embedding_type": "absolute",
        "type_vocab_size": h.n_token_types,
    }


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """What sentence-transformers does and the file cannot say."""
    found = []
    if hparams.pooling is None:
        found.append(
            f"without {MODULES} the file does not say how the embeddings of tokens become one of the text: the mean is "
            "taken unless another pooling is asked for"
        )
    longest = longest_text(config.path.parent)
    if longest is not None and longest < hparams.n_context:
        found.append(f"sentence-transformers cuts texts after {longest} tokens; here they may have {hparams.n_context}")
    return tuple(found)
