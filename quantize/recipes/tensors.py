"""What a tensor's name and shape tell: its role, its block, and whether llama-quantize would quantise it."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final


class Role(Enum):
    """The kinds of tensors that recipes treat differently. ATTN_V includes fused matrices that hold the values."""

    OUTPUT = auto()
    TOKEN_EMBD = auto()
    ATTN_V = auto()
    ATTN_K = auto()
    ATTN_OUTPUT = auto()
    FFN_UP = auto()
    FFN_GATE = auto()
    FFN_DOWN = auto()
    OTHER = auto()


PER_LAYER_TOKEN_EMBD: Final = "per_layer_token_embd.weight"

_WHOLE_NAMES: Final = {
    "output.weight": Role.OUTPUT,
    "token_embd.weight": Role.TOKEN_EMBD,
    PER_LAYER_TOKEN_EMBD: Role.TOKEN_EMBD,
}

# The first that occurs in the name counts (llama-quant.cpp, `tensor_get_category`).
_PARTS: Final = (
    ("attn_qkv.weight", Role.ATTN_V),
    ("attn_kv_b.weight", Role.ATTN_V),
    ("attn_v.weight", Role.ATTN_V),
    ("attn_k.weight", Role.ATTN_K),
    ("attn_output.weight", Role.ATTN_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)


def role_of(name: str) -> Role:
    """The role of the tensor `name`."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    return next((role for part, role in _PARTS if part in name), Role.OTHER)


def block_number(name: str) -> int | None:
    """The i of `blk.<i>.`, or None outside the blocks."""
    match = re.match(r"blk\.(\d+)", name)
    return int(match[1]) if match else None


def file_order(name: str) -> tuple[int, str]:
    """Sort key of the order in which llama-quantize meets tensors (`weight_name_comparer`), whatever the file's."""
    block = block_number(name)
    return (-1 if block is None else block, name)


def n_dims(shape: tuple[int, ...]) -> int:
    """Dimensions as ggml counts them, at least 1; `shape` has the slowest first, and leading ones do not count."""
    return next((len(shape) - i for i, n in enumerate(shape) if n != 1), 1)


# Routers, tables and small matrices: parts of the names that keep their type (`tensor_allows_quantization`).
_KEPT: Final = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_KEPT_WHOLE_NAMES: Final = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_BY_ARCHITECTURE: Final = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        *(f"ssm_{part}.weight" for part in ("f_a", "f_b", "g_a", "g_b", "beta")),
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}


def is_quantizable(name: str, shape: tuple[int, ...], architecture: str) -> bool:
    """Whether llama-quantize would quantise the tensor; `architecture` is `general.architecture`."""
    if n_dims(shape) < 2 or not name.endswith("weight") or name in _KEPT_WHOLE_NAMES:
        return False
    kept = (*_KEPT, *_KEPT_BY_ARCHITECTURE.get(architecture, ()))
    return not any(part in name for part in kept)


# What converters to f16 and bf16 leave in float32 beside vectors and norms (conversion/base.py, `prepare_tensors`).
_ALWAYS_F32: Final = (
    "ffn_gate_inp",
    "position_embd",
    "token_types",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "altup_correct_coef",
    "altup_predict_coef",
    *(f"time_mix_{part}.weight" for part in ("first", "w1", "w2", "decay_w1", "decay_w2", "lerp_fused")),
)


def is_always_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether converting a checkpoint stores the tensor as float32 in every recipe."""
    if len(shape) <= 1 or not name.endswith(".weight") or name.endswith("_norm.weight"):
        return True
    return any(part in name for part in _ALWAYS_F32)
