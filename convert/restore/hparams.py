"""Hyper-parameters from a GGUF file's metadata: `llmkit.convert.gguf_keys` read backwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from llmkit.convert.archs import Experts, HParams, Rope, excerpt
from llmkit.convert.gguf_keys import EXPERT_KEYS, GATING, KEYS, llama3_factors
from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.sources import read_tensor
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value

# What Llama 3.1's scaling is published with; the file has the factors that follow from them.
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXTS: Final = (8192, 4096, 2048, 16384, 32768, 1024, 512, 256, 128, 64)
_ROPE_KEYS: Final = ("rope.freq_base", "rope.dimension_count")
_SCALING: Final = "rope.scaling."
# Key after `rope.scaling.` -> what config.json calls it.
_SCALING_PARAMETERS: Final = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def read_hparams(source: GGUFSource, architecture: str) -> HParams:
    """What the metadata of `source` says, and which tensors it has. Raises FormatError for what is missing."""
    prefix = f"{architecture}."
    found = {key.removeprefix(prefix): value for key, value in source.metadata.items() if key.startswith(prefix)}
    names = {tensor.name for tensor in source.tensors}
    fields = _fields(KEYS, found)
    for field in ("n_layers", "n_context", "n_embd", "n_ff", "n_heads"):
        if not isinstance(fields.get(field), int):
            raise FormatError(
                source.path, f"metadata {prefix}{KEYS[field][0]} must be a number, found {excerpt(fields.get(field))}"
            )
    fields.setdefault("n_kv_heads", fields["n_heads"])
    n_heads = fields["n_heads"]
    key_length = found.get("attention.key_length")
    head_dim = key_length.data if key_length is not None else fields["n_embd"] // n_heads if n_heads else 0
    embedding = next((tensor for tensor in source.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(source.path, "is missing, or no matrix", tensor="token_embd.weight")
    fields["n_vocab"] = embedding.shape[0]
    experts = {"n_used": 0, **_fields(EXPERT_KEYS, found)}
    if "gating" in experts:
        experts["gating"] = next((name for name, number in GATING.items() if number == experts["gating"]), None)
    known = {key for key, _ in (*KEYS.values(), *EXPERT_KEYS.values())} | {"attention.key_length", *_ROPE_KEYS}
    known |= {_SCALING + key for key in ("type", *_SCALING_PARAMETERS)}
    return HParams(
        **fields,
        head_dim=head_dim,
        rope=_rope(source, prefix, found, head_dim, fields["n_context"], names),
        tied_embeddings="output.weight" not in names,
        attention_bias=bool(names & {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}),
        mlp_bias=bool(names & {"blk.0.ffn_up.bias", "blk.0.ffn_down.bias"}),
        qk_norm="blk.0.attn_q_norm.weight" in names,
        experts=Experts(**experts) if experts.get("n_experts") else None,
        extra={k: v for k, v in found.items() if k not in known},
    )


def _fields(keys: Mapping[str, tuple[str, Any]], found: Mapping[str, Value]) -> dict[str, Any]:
    values = {field: found[key].data for field, (key, _) in keys.items() if key in found}
    return {field: shortest(value) if isinstance(value, float) else value for field, value in values.items()}


def shortest(value: float) -> float:
    """The number of fewest digits that is the same in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope(
    source: GGUFSource, prefix: str, found: Mapping[str, Value], head_dim: int, n_context: int, names: set[str]
) -> Rope | None:
    if "rope.freq_base" not in found and "rope.dimension_count" not in found:
        return None
    theta = shortest(found["rope.freq_base"].data) if "rope.freq_base" in found else 10000.0
    rotated = found["rope.dimension_count"].data if "rope.dimension_count" in found else head_dim
    scaling = found[_SCALING + "type"].data if _SCALING + "type" in found else "none"
    parameters = {
        name: shortest(value) if isinstance(value := found[_SCALING + key].data, float) else value
        for key, name in _SCALING_PARAMETERS.items()
        if _SCALING + key in found
    }
    rope = Rope(
        source.path,
        theta,
        "default" if scaling == "none" else scaling,
        parameters,
        rotated / head_dim if head_dim else 1,
    )
    if "rope_freqs.weight" in names:
        return _llama3(source, rope, rotated, n_context)
    if "rope_factors_long.weight" in names:
        factors = {kind: _read(source, f"rope_factors_{kind}.weight") for kind in ("long", "short")}
        parameters |= {f"{kind}_factor": [shortest(x) for x in values] for kind, values in factors.items()}
        return Rope(source.path, theta, "longrope", parameters, rope.share)
    if rope.scaling not in ("default", "linear", "yarn"):
        raise UnsupportedError(f"{source.path}: metadata {prefix}{_SCALING}type {excerpt(scaling)} is not known")
    return rope


def _llama3(source: GGUFSource, rope: Rope, n_rotated: int, n_context: int) -> Rope:
    """The parameters that give the file's factors: of those in use, the ones that fit exactly."""
    factors = _read(source, "rope_freqs.weight")
    for original in _LLAMA3_CONTEXTS:
        parameters = {"factor": max(factors), **_LLAMA3, "original_max_position_embeddings": original}
        candidate = Rope(source.path, rope.theta, "llama3", parameters, rope.share)
        if np.array_equal(np.array(llama3_factors(candidate, n_rotated, n_context), np.float32), factors):
            return candidate
    raise UnsupportedError(
        f"{source.path}: tensor 'rope_freqs.weight' is of no known scaling: config.json could not say the same"
    )


def _read(source: GGUFSource, name: str) -> list[float]:
    tensor = next(t for t in source.tensors if t.name == name)
    return [float(x) for x in read_tensor(tensor).ravel()]
