"""Hyper-parameters from a GGUF file's metadata: `llmkit.convert.gguf_keys` read backwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from llmkit.convert.archs import Experts, HParams, LatentAttention, Rope, StateSpace, excerpt
from llmkit.convert.gguf_keys import EXPERT_KEYS, GATING, KEYS, POOLING, STATE_KEYS
from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.gguf_yarn import yarn_parameters
from llmkit.convert.packed.reader import reading
from llmkit.convert.restore.metadata import MetadataReader, share_of, shortest
from llmkit.convert.rotary import llama3_factors
from llmkit.convert.sources import read_tensor
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, boolean, f32, u32
from llmkit.types import TensorInfo

_AT_ONCE: Final = 1 << 20  # bytes
# What Llama 3.1's scaling is published with; the file has the factors that follow from them.
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXTS: Final = (8192, 4096, 2048, 16384, 32768, 1024, 512, 256, 128, 64)
_ROPE_KEYS: Final = ("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count")
_LATENT_KEYS: Final = (
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
)
_SCALING: Final = "rope.scaling."
# Numbers whose keys begin with `rope.scaling.`.
_SCALING_NUMBERS: Final = ("factor", "attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier")
_ORIGINAL: Final = "original_context_length"


def read_hparams(source: GGUFSource, architecture: str) -> HParams:
    """What the metadata of `source` says, and which tensors it has.

    Raises FormatError for what is missing or cannot be, UnsupportedError for what config.json could not say.
    """
    found = MetadataReader(source, architecture)
    tensors = {tensor.name: tensor for tensor in source.tensors}
    names = set(tensors)
    n_layers = found.required("block_count")
    if not 1 <= n_layers <= len(names):
        raise FormatError(
            source.path, f"metadata {found.prefix}block_count is {n_layers}, but there are {len(names)} tensors"
        )
    for key in ("context_length", "embedding_length", "feed_forward_length"):
        found.required(key)
    fields = _fields(found, KEYS)
    if "pooling" in fields:
        fields["pooling"] = next((name for name, number in POOLING.items() if number == fields["pooling"]), None)
    n_heads = found.required("attention.head_count")
    fields.setdefault("n_kv_heads", n_heads)
    head_dim = _head_dim(found, n_heads, fields["n_embd"])
    embedding, output = (tensors.get(name) for name in ("token_embd.weight", "output.weight"))
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(source.path, "is missing, or no matrix", tensor="token_embd.weight")
    fields["n_vocab"] = embedding.shape[0]
    known = {key for key, _ in (*KEYS.values(), *EXPERT_KEYS.values(), *STATE_KEYS.values())}
    known = {key for key in known if not found.differs_by_block(key)}
    known |= {"attention.key_length", *_ROPE_KEYS, *_LATENT_KEYS}
    known |= {_SCALING + key for key in ("type", _ORIGINAL, *_SCALING_NUMBERS)}
    return HParams(
        **fields,
        head_dim=head_dim,
        rope=_rope(source, found, head_dim, fields["n_context"], names),
        sliding_rope=_sliding_rope(source, found),
        tied_embeddings=output is None or _hold_the_same(embedding, output),
        attention_bias=bool(names & {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}),
        mlp_bias=bool(names & {"blk.0.ffn_up.bias", "blk.0.ffn_down.bias"}),
        qk_norm="blk.0.attn_q_norm.weight" in names,
        n_token_types=_n_token_types(source),
        n_parallel_norms=2 if "blk.0.attn_norm_2.weight" in names else 1,
        latent=_latent(found),
        experts=_experts(found),
        states=_states(found),
        extra={key: value for key, value in found.values.items() if key not in known},
    )


def _hold_the_same(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors of a file are the same, byte for byte: then one of the checkpoint became both."""
    if (a.dtype, a.shape) != (b.dtype, b.shape) or not a.nbytes:
        return False
    with reading(a, b) as reader:
        for first in range(0, a.nbytes, _AT_ONCE):
            count = min(_AT_ONCE, a.nbytes - first)
            if not np.array_equal(reader.bytes(a, first, count), reader.bytes(b, first, count)):
                return False
    return True


def _n_token_types(source: GGUFSource) -> int | None:
    key = "tokenizer.ggml.token_type_count"
    value = source.metadata.get(key)
    if value is not None and not isinstance(value.data, int):
        raise FormatError(source.path, f"metadata {key} must be a number, found {excerpt(value.data)}")
    return None if value is None else value.data


def _fields(found: MetadataReader, keys: Mapping[str, tuple[str, Callable[[Any], Value]]]) -> dict[str, Any]:
    """The fields that the file has, read by what their keys are written with."""
    readers: dict[Callable[[Any], Value], Callable[[str], Any]] = {
        u32: found.integer,
        f32: found.number,
        boolean: found.boolean,
    }
    fields = {}
    for field, (key, make) in keys.items():
        if field == "sliding_layers":
            value: Any = found.flags(key, found.required("block_count"))
        elif field in ("gating", "pooling"):
            value = found.integer(key)
        else:
            value = readers[make](key)
        if value is not None:
            fields[field] = value
    return fields


def _head_dim(found: MetadataReader, n_heads: int, n_embd: int) -> int:
    """Width of a head: that of latent attention's rotated part, where there is latent attention."""
    if not n_heads:
        return 0
    if "attention.kv_lora_rank" in found:
        return found.required("rope.dimension_count")
    n_kv_heads = found.integer("attention.head_count_kv")
    stated = not any(found.differs_by_block(f"attention.head_count{kind}") for kind in ("", "_kv"))
    if n_kv_heads is not None and stated and (n_kv_heads == 0 or n_heads % n_kv_heads):
        raise FormatError(
            found.path,
            f"metadata {found.prefix}attention.head_count {n_heads} is not divisible by head_count_kv {n_kv_heads}",
        )
    key_length = found.integer("attention.key_length")
    return n_embd // n_heads if key_length is None else key_length


def _latent(found: MetadataReader) -> LatentAttention | None:
    kv_rank = found.integer("attention.kv_lora_rank")
    if kv_rank is None:
        return None
    # Files whose graph attends to the latent numbers state these as the keys and values, and the heads' own apart.
    suffix = "_mla" if "attention.key_length_mla" in found else ""
    n_keys, n_values = (found.required(f"attention.{kind}_length{suffix}") for kind in ("key", "value"))
    n_rotated = found.required("rope.dimension_count")
    if n_keys <= n_rotated:
        raise FormatError(
            found.path,
            f"metadata {found.prefix}attention.key_length{suffix} {n_keys} must be more than rope.dimension_count "
            f"{n_rotated}",
        )
    return LatentAttention(
        q_rank=found.integer("attention.q_lora_rank") or None,
        kv_rank=kv_rank,
        n_plain=n_keys - n_rotated,
        n_rotated=n_rotated,
        n_values=n_values,
    )


def _experts(found: MetadataReader) -> Experts | None:
    fields = {"n_used": 0, **_fields(found, EXPERT_KEYS)}
    if "gating" in fields:
        fields["gating"] = next((name for name, number in GATING.items() if number == fields["gating"]), None)
    return Experts(**fields) if fields.get("n_experts") else None


def _states(found: MetadataReader) -> StateSpace | None:
    if "ssm.inner_size" not in found:
        return None
    for field in ("n_convolved", "n_state", "rank"):
        found.required(STATE_KEYS[field][0])
    return StateSpace(**_fields(found, STATE_KEYS))


def _sliding_rope(source: GGUFSource, found: MetadataReader) -> Rope | None:
    theta = found.number("rope.freq_base_swa")
    if theta is not None and theta <= 0:
        raise found.error("rope.freq_base_swa", "a positive number")
    return None if theta is None else Rope(source.path, theta, "default", {})


def _rope(source: GGUFSource, found: MetadataReader, head_dim: int, n_context: int, names: set[str]) -> Rope | None:
    if not head_dim or not any(key in found for key in _ROPE_KEYS):
        return None
    theta = found.number("rope.freq_base")
    theta = 10000.0 if theta is None else theta
    if theta <= 0:
        raise found.error("rope.freq_base", "a positive number")
    rotated = found.integer("rope.dimension_count")
    rotated = head_dim if rotated is None else rotated
    if rotated % 2 or not 0 < rotated <= head_dim:
        raise FormatError(
            source.path,
            f"metadata {found.prefix}rope.dimension_count {rotated} must be even, and at most {head_dim}, the width of "
            "a head",
        )
    stated = {key: value for key in _SCALING_NUMBERS if (value := found.number(_SCALING + key)) is not None}
    original = found.integer(_SCALING + _ORIGINAL)
    stated |= {} if original is None else {_ORIGINAL: original}
    plain = {} if original is None else {"original_max_position_embeddings": original}
    rope = Rope(source.path, theta, "default", plain, share_of(rotated, head_dim))
    if "rope_freqs.weight" in names:
        return _llama3(source, rope, rotated, n_context)
    if "rope_factors_long.weight" in names:
        factors = {f"{kind}_factor": _read(source, f"rope_factors_{kind}.weight") for kind in ("long", "short")}
        parameters: dict[str, Any] = {kind: [shortest(x) for x in values] for kind, values in factors.items()}
        parameters |= plain
        if "attn_factor" in stated:
            parameters["attention_factor"] = stated["attn_factor"]
        return Rope(source.path, theta, "longrope", parameters, rope.share)
    # llama.cpp takes linear scaling if no type is stated, and none without a factor.
    scaling = found.text(_SCALING + "type") or "linear"
    if scaling not in ("none", "linear", "yarn"):
        raise UnsupportedError(
            f"{source.path}: metadata {found.prefix}{_SCALING}type {excerpt(scaling)} is not known here"
        )
    if scaling == "none" or not stated.get("factor"):
        return rope
    if scaling == "linear":
        return Rope(source.path, theta, scaling, {"factor": stated["factor"]}, rope.share)
    architecture = found.prefix.removesuffix(".")
    return Rope(source.path, theta, scaling, yarn_parameters(architecture, source.path, stated), rope.share)


def _llama3(source: GGUFSource, rope: Rope, n_rotated: int, n_context: int) -> Rope:
    """The parameters that give the file's factors: of those in use, the ones that fit exactly."""
    factors = _read(source, "rope_freqs.weight")
    if len(factors) != n_rotated // 2:
        raise FormatError(
            source.path, f"has {len(factors)} factors for {n_rotated} dimensions", tensor="rope_freqs.weight"
        )
    for original in _LLAMA3_CONTEXTS:
        parameters = {"factor": max(factors), **_LLAMA3, "original_max_position_embeddings": original}
        candidate = Rope(source.path, rope.theta, "llama3", parameters, rope.share)
        if np.array_equal(np.array(llama3_factors(candidate, n_rotated, n_context), np.float32), factors):
            return candidate
    raise UnsupportedError(
        f"{source.path}: tensor 'rope_freqs.weight' is of no known scaling: config.json could not say the same"
    )


def _read(source: GGUFSource, name: str) -> list[float]:
    tensor = next((t for t in source.tensors if t.name == name), None)
    if tensor is None:
        raise FormatError(source.path, "is missing", tensor=name)
    return [float(x) for x in read_tensor(tensor).ravel()]
