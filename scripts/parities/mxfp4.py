"""GPT-OSS's experts as published checkpoints store them: MXFP4 blocks and scales in place of transposed matrices."""

from __future__ import annotations

from typing import Any, Final

_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NAMES: Final = ("gate_up_proj", "down_proj")
_BLOCK: Final = 32


def round_experts(model: Any) -> None:
    """Round the experts of transformers' model to values that MXFP4 holds."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_NAMES):
                codes, scales = _encoded(parameter.transpose(1, 2))
                parameter.copy_(_decoded(codes, scales).transpose(1, 2))


def pack_experts(tensors: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and config of the checkpoint that holds such experts in MXFP4."""
    packed = {}
    for name, tensor in tensors.items():
        if name.endswith(_NAMES):
            codes, scales = _encoded(tensor.transpose(1, 2))
            packed[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
            packed[f"{name}_scales"] = scales
        else:
            packed[name] = tensor
    modules = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return packed, {**config, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": modules}}


def _encoded(weights: Any) -> tuple[Any, Any]:
    """Codes U8 [..., blocks, 32] and exponents U8 [..., blocks] of the nearest values that MXFP4 holds."""
    import torch

    blocks = weights.reshape(*weights.shape[:-1], -1, _BLOCK)
    exponents = torch.floor(torch.log2(blocks.abs().amax(-1))) - 2
    scaled = blocks / torch.exp2(exponents)[..., None]
    nearest = (scaled.abs()[..., None] - torch.tensor(_VALUES)).abs().argmin(-1)
    return (nearest | (scaled < 0).long() << 3).to(torch.uint8), (exponents + 127).to(torch.uint8)


def _decoded(codes: Any, scales: Any) -> Any:
    import torch

    values = torch.tensor([*_VALUES, *(-value for value in _VALUES)])
    decoded = values[codes.long()] * torch.exp2(scales.float() - 127)[..., None]
    return decoded.flatten(-2)
