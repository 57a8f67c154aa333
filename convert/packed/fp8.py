"""FP8 checkpoints: DeepSeek V3's blocks with `weight_scale_inv`, and scales for rows or whole matrices.

transformers: FineGrainedFP8Config (`fp8`) and FbgemmFp8Config (`fbgemm_fp8`). Whatever they are called, and though
`_inv` says otherwise, weights are multiplied by the scales.
"""

from __future__ import annotations

from typing import Final

from llmkit.convert.archs.config import excerpt
from llmkit.convert.packed import floats8
from llmkit.convert.packed.base import PackedTensor, Packing, Unpacked
from llmkit.convert.packed.scaled import scaled
from llmkit.errors import FormatError

_SCALES: Final = ("_scale_inv", "_scale")
# Scales of activations and of the KV cache, which a file with ordinary weights does not need.
_OTHER: Final = (
    *("activation_scale", "input_scale", "output_scale", "k_scale", "v_scale", "q_scale", "prob_scale"),
    *("k_proj.output_scale", "v_proj.output_scale", "input_scale_ub"),
)


def unpack(packing: Packing) -> Unpacked:
    """Every 8-bit float tensor with its scales; other tensors stay as they are. Raises FormatError."""
    block = _block_size(packing)
    tensors: list[PackedTensor] = []
    used = set(activation_scales(packing))
    for name, codes in packing.tensors.items():
        if codes.dtype not in floats8.DTYPES:
            continue
        scale = next((name + ending for ending in _SCALES if name + ending in packing.tensors), None)
        if scale is None:
            raise FormatError(codes.path, f"has dtype {codes.dtype} but no {name}_scale_inv or _scale", tensor=name)
        tensors.append(scaled(codes, packing.tensors[scale], block=block))
        used |= {name, scale}
    return Unpacked(tuple(tensors), frozenset(used))


def activation_scales(packing: Packing) -> list[str]:
    """The names of scales that are not of weights."""
    return [name for name in packing.tensors if name.rpartition(".")[2] in _OTHER or name.endswith("_activation_scale")]


def _block_size(packing: Packing) -> tuple[int, int] | None:
    found = packing.settings.values.get("weight_block_size")
    if found is None:
        return None
    if not (isinstance(found, list) and len(found) == 2 and all(type(n) is int and 0 < n < 2**31 for n in found)):
        raise FormatError(packing.settings.path, f"weight_block_size must be two sizes, found {excerpt(found)}")
    return found[0], found[1]
