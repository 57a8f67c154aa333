"""Quantised checkpoints as their formats describe them, written without llmkit: codes and scales are drawn, packed in
plain loops or whole-array NumPy, and decoded by the formula. Every packer returns stored tensors and the weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.tinymodels import TinyLlama

Tensors = dict[str, torch.Tensor]
Packed = tuple[Tensors, NDArray[np.float32]]


def words_of(codes: NDArray[np.int64], bits: int) -> torch.Tensor:
    """Codes [n, m] as one stream of bits down each column, in 32-bit words [n * bits / 32, m]."""
    shifted = codes[:, None, :] >> np.arange(bits)[None, :, None] & 1
    stream = shifted.reshape(-1, 32, codes.shape[1])
    words = (stream << np.arange(32)[None, :, None]).sum(1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def gptq(
    rng: np.random.Generator, n_out: int, n_in: int, *, bits: int = 4, group_size: int = 128, act_order: bool = False,
    stored_less: int = 1, with_groups: bool = True, ones: tuple[int, ...] | None = None,
) -> Packed:  # fmt: skip
    groups = np.arange(n_in) // group_size
    if act_order:
        groups = rng.permutation(groups)
    n_groups = int(groups.max()) + 1
    codes = rng.integers(0, 1 << bits, (n_in, n_out))
    zeros = rng.integers(0, 1 << bits, (n_groups, n_out))
    if bits == 3 and ones is None:  # AutoGPTQ subtracts before it packs, and a zero point of 0 is lost
        zeros = np.maximum(zeros, 1)
        packed = words_of(np.ascontiguousarray(zeros.T - stored_less), bits).T.contiguous()
    else:
        packed = words_of(np.ascontiguousarray(zeros.T), bits).T.contiguous()
        each = ones or (sum(1 << place for place in range(0, 32, bits)),)
        subtracted = [stored_less * each[i % len(each)] for i in range(packed.shape[1])]
        packed = (packed.long() - torch.tensor(subtracted)).to(torch.int32)  # modulo 2**32
    scales = rng.uniform(0.001, 0.02, (n_groups, n_out)).astype(np.float16)
    weight = scales[groups].astype(np.float32) * (codes - zeros[groups]).astype(np.float32)
    tensors = {"qweight": words_of(codes, bits), "qzeros": packed, "scales": torch.from_numpy(scales)}
    if with_groups:
        tensors["g_idx"] = torch.from_numpy(groups.astype(np.int32))
    return tensors, np.ascontiguousarray(weight.T)


def awq(rng: np.random.Generator, n_out: int, n_in: int, *, group_size: int = 128) -> Packed:
    """AutoAWQ's `WQLinear_GEMM.from_linear`: four bits number i of a word hold output order_map[i]."""
    order_map = [0, 2, 4, 6, 1, 3, 5, 7]
    groups = np.arange(n_in) // group_size
    codes = rng.integers(0, 16, (n_in, n_out))
    zeros = rng.integers(0, 16, (groups.max() + 1, n_out))
    scales = rng.uniform(0.001, 0.02, zeros.shape).astype(np.float16)

    def packed(values: NDArray[np.int64]) -> torch.Tensor:
        words = np.zeros((len(values), n_out // 8), np.int64)
        for i, output in enumerate(order_map):
            words |= values[:, output::8] << 4 * i
        return torch.from_numpy(words.astype(np.uint32).view(np.int32))

    weight = scales[groups].astype(np.float32) * (codes - zeros[groups]).astype(np.float32)
    tensors = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": torch.from_numpy(scales)}
    return tensors, np.ascontiguousarray(weight.T)


def pack_quantized(
    rng: np.random.Generator, n_out: int, n_in: int, *, bits: int = 4, group_size: int = 128, symmetric: bool = True,
    act_order: bool = False, packed_zeros: bool = True,
) -> Packed:  # fmt: skip
    """compressed-tensors `pack-quantized`: signed codes plus 2**(bits - 1)."""
    groups = np.arange(n_in) // group_size
    if act_order:
        groups = rng.permutation(groups)
    half = 1 << bits - 1
    codes = rng.integers(-half, half, (n_out, n_in))
    scales = rng.uniform(0.001, 0.02, (n_out, groups.max() + 1)).astype(np.float16)
    zeros = np.zeros(scales.shape, np.int64) if symmetric else rng.integers(-half, half, scales.shape)
    weight = scales[:, groups].astype(np.float32) * (codes - zeros[:, groups]).astype(np.float32)
    tensors = {
        "weight_packed": _along_rows(codes + half, bits),
        "weight_scale": torch.from_numpy(scales).to(torch.bfloat16),
        "weight_shape": torch.tensor([n_out, n_in]),
    }
    weight = tensors["weight_scale"].float().numpy()[:, groups] * (codes - zeros[:, groups]).astype(np.float32)
    if not symmetric:
        down = _along_rows(np.ascontiguousarray((zeros + half).T), bits).T.contiguous()
        tensors["weight_zero_point"] = down if packed_zeros else torch.from_numpy(zeros.astype(np.int8))
    if act_order:
        tensors["weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
    return tensors, weight


def _along_rows(codes: NDArray[np.int64], bits: int) -> torch.Tensor:
    """Codes [n, m] in words [n, m * bits / 32], rounded up; the lowest bits first."""
    per_word = 32 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_word)))
    words = (padded.reshape(len(codes), -1, per_word) << bits * np.arange(per_word)).sum(-1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def int_quantized(rng: np.random.Generator, n_out: int, n_in: int, *, strategy: str, symmetric: bool = True) -> Packed:
    shape = {"tensor": (1,), "channel": (n_out, 1), "group": (n_out, n_in // 32)}[strategy]
    codes = rng.integers(-128, 128, (n_out, n_in)).astype(np.int8)
    scales = torch.from_numpy(rng.uniform(0.0005, 0.001, shape)).to(torch.bfloat16)
    zeros = rng.integers(-20, 20, shape).astype(np.int8)

    def spread(values: NDArray[Any]) -> NDArray[np.float32]:
        values = values.astype(np.float32)
        return np.repeat(values, 32, axis=1) if strategy == "group" else values

    weight = codes.astype(np.float32) - (0 if symmetric else spread(zeros))
    tensors = {"weight": torch.from_numpy(codes), "weight_scale": scales}
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy(zeros)
    return tensors, (weight * spread(scales.float().numpy())).astype(np.float32)


NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
FP4 = [0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25, 0.0, -0.0052, -0.6667, -1.0, -0.3333, -0.5, -0.1667, -0.25]


def bitsandbytes4(
    rng: np.random.Generator, n_out: int, n_in: int, *, kind: str = "nf4", block_size: int = 64, nested: bool = False
) -> Packed:
    codes = rng.integers(0, 16, n_out * n_in)
    n_blocks = -(-codes.size // block_size)
    levels = np.array(NF4 if kind == "nf4" else FP4, np.float32)
    padded = np.pad(codes, (0, codes.size % 2))
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": block_size,
        "dtype": "bfloat16",
        "shape": [n_out, n_in],
    }
    tensors = {
        "weight": torch.from_numpy((padded[::2] << 4 | padded[1::2]).astype(np.uint8))[:, None],
        "weight.quant_map": torch.from_numpy(levels),
    }
    if nested:
        outer_levels = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        stored = rng.integers(0, 256, n_blocks).astype(np.uint8)
        outer = rng.uniform(0.01, 0.05, -(-n_blocks // 256)).astype(np.float32)
        offset = np.float32(0.0625)
        absmax = outer_levels[stored] * outer[np.arange(n_blocks) // 256] + offset
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
        tensors |= {
            "weight.absmax": torch.from_numpy(stored),
            "weight.nested_absmax": torch.from_numpy(outer),
            "weight.nested_quant_map": torch.from_numpy(outer_levels),
        }
    else:
        absmax = rng.uniform(0.01, 0.1, n_blocks).astype(np.float32)
        tensors["weight.absmax"] = torch.from_numpy(absmax)
    text = json.dumps(state).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
    weight = levels[codes] * absmax[np.arange(codes.size) // block_size]
    return tensors, weight.reshape(n_out, n_in)


def write_checkpoint(
    folder: Path, settings: Mapping[str, Any], modules: Mapping[str, Tensors], model: TinyLlama | None = None
) -> Path:
    """A tiny Llama whose modules, by name, are stored as given; its other weights are float32."""
    model = model or TinyLlama(n_layers=1, dtype="F32")
    model.write(folder)
    config = {**model.config_json(), "quantization_config": dict(settings)}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.from_numpy(value) for name, value in model.weights().items()}
    for module, parts in modules.items():
        del tensors[f"{module}.weight"]
        tensors |= {f"{module}.{part}": value for part, value in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def linear_modules(model: TinyLlama) -> dict[str, tuple[int, int]]:
    """Name and [out, in] of every linear layer in the blocks."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in model.shapes().items()
        if name.endswith("_proj.weight")
    }
