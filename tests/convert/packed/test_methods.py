"""Every method of quantisation: a tiny Llama stored by it converts to the weights that the format's formula gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import llmkit
from llmkit.formats.gguf import open_gguf
from tests.convert.packed import packing
from tests.convert.packed.packing import Packed
from tests.tinymodels import TinyLlama

MODEL = TinyLlama(n_layers=1, dtype="F32")
Packer = Callable[[np.random.Generator, int, int], Packed]


def fp8(
    dtype: torch.dtype, shape: Callable[[int, int], tuple[int, ...]], block: tuple[int, int], key: str,
    scales: torch.dtype = torch.float32,
) -> Packer:  # fmt: skip
    """Random weights in torch's own 8-bit floats, with a scale for each block; the weight is what torch computes."""

    def pack(rng: np.random.Generator, n_out: int, n_in: int) -> Packed:
        codes = torch.from_numpy(rng.standard_normal((n_out, n_in)).astype(np.float32)).to(dtype)
        scale = torch.from_numpy(rng.uniform(0.01, 0.1, shape(n_out, n_in)).astype(np.float32)).to(scales)
        high, wide = min(block[0], n_out), min(block[1], n_in)
        grid = scale.float().reshape(-(-n_out // high), -1)
        full = grid.repeat_interleave(high, 0)[:n_out].repeat_interleave(wide, 1)[:, :n_in]
        return {"weight": codes, key: scale}, (codes.float() * full).numpy()

    return pack


def blocks(n_out: int, n_in: int) -> tuple[int, int]:
    return -(-n_out // 96), -(-n_in // 96)


E4M3, E5M2, ANY = torch.float8_e4m3fn, torch.float8_e5m2, 1 << 20
FP8: dict[str, tuple[Packer, dict[str, Any]]] = {
    "blocks": (fp8(E4M3, blocks, (96, 96), "weight_scale_inv"), {"weight_block_size": [96, 96]}),
    "blocks in bf16": (
        fp8(E4M3, blocks, (96, 96), "weight_scale_inv", torch.bfloat16), {"weight_block_size": [96, 96]}),
    "powers of two": (
        fp8(E4M3, blocks, (96, 96), "weight_scale_inv", torch.float8_e8m0fnu), {"weight_block_size": [96, 96]}),
    "E5M2": (fp8(E5M2, blocks, (96, 96), "weight_scale_inv"), {"weight_block_size": [96, 96]}),
    "whole, a scalar": (fp8(E4M3, lambda o, i: (), (ANY, ANY), "weight_scale_inv"), {"weight_block_size": None}),
    "whole": (fp8(E4M3, lambda o, i: (1,), (ANY, ANY), "weight_scale"), {}),
    "rows": (fp8(E4M3, lambda o, i: (o,), (1, ANY), "weight_scale"), {}),
    "rows, a column": (fp8(E4M3, lambda o, i: (o, 1), (1, ANY), "weight_scale"), {}),
}  # fmt: skip


def compressed(format: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", **weights}}}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": groups}


PACKED, NAIVE = "pack-quantized", "naive-quantized"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": False}
GPTQMODEL_ONES = (
    0b00100100100100100100100100100100, 0b10010010010010010010010010010010, 0b01001001001001001001001001001001,
)  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True}


def with_(pack: Callable[..., Packed], **options: Any) -> Packer:
    return lambda rng, n_out, n_in: pack(rng, n_out, n_in, **options)


CASES: dict[str, tuple[Packer, dict[str, Any]]] = {
    **{f"FP8, {name}": (pack, {"quant_method": "fp8", **settings}) for name, (pack, settings) in FP8.items()},
    **{f"GPTQ, {bits} bits": (with_(packing.gptq, bits=bits), {**GPTQ, "bits": bits}) for bits in (2, 3, 4, 8)},
    "GPTQ, groups in no order": (with_(packing.gptq, act_order=True), {**GPTQ, "desc_act": True}),
    "GPTQ, 3 bits in no order": (with_(packing.gptq, bits=3, act_order=True), {**GPTQ, "bits": 3}),
    "GPTQ, 3 bits of GPTQModel": (
        with_(packing.gptq, bits=3, ones=GPTQMODEL_ONES),
        {**GPTQ, "bits": 3, "meta": {"quantizer": ["gptqmodel:2.2.0"]}}),
    "GPTQ, without g_idx": (with_(packing.gptq, with_groups=False), GPTQ),
    "GPTQ, one group": (with_(packing.gptq, group_size=4096), {**GPTQ, "group_size": -1}),
    "GPTQ, a last group that is smaller": (with_(packing.gptq, group_size=96), {**GPTQ, "group_size": 96}),
    "GPTQ, v2": (with_(packing.gptq, stored_less=0), {**GPTQ, "checkpoint_format": "gptq_v2"}),
    "GPTQ, modules of other bits": (with_(packing.gptq, bits=8), GPTQ),
    "AWQ": (packing.awq, AWQ),
    "AWQ, small groups": (with_(packing.awq, group_size=32), {**AWQ, "group_size": 32}),
    "AWQ, one group": (with_(packing.awq, group_size=4096), {**AWQ, "group_size": -1}),
    "packed int4": (packing.pack_quantized, compressed(PACKED, num_bits=4, group_size=128)),
    "packed int8": (with_(packing.pack_quantized, bits=8), compressed(PACKED, num_bits=8)),
    "packed int4, rows": (with_(packing.pack_quantized, group_size=4096), compressed(PACKED, num_bits=4)),
    "packed int4, zero points": (with_(packing.pack_quantized, symmetric=False), compressed(PACKED, num_bits=4)),
    "packed int8, zero points": (
        with_(packing.pack_quantized, bits=8, symmetric=False), compressed(PACKED, num_bits=8)),
    "packed int4, zero points as they are": (
        with_(packing.pack_quantized, symmetric=False, packed_zeros=False), compressed(PACKED, num_bits=4)),
    "packed int4, groups in no order": (
        with_(packing.pack_quantized, symmetric=False, act_order=True), compressed(PACKED, num_bits=4)),
    "int8, tensor": (with_(packing.int_quantized, strategy="tensor"), compressed("int-quantized")),
    "int8, rows": (with_(packing.int_quantized, strategy="channel"), compressed("int-quantized")),
    "int8, groups with zero points": (
        with_(packing.int_quantized, strategy="group", symmetric=False), compressed(NAIVE)),
    "float8, rows": (FP8["rows, a column"][0], compressed("float-quantized", type="float")),
    "float8, blocks": (
        fp8(E4M3, blocks, (96, 96), "weight_scale"), compressed("float-quantized", block_structure=[96, 96])),
    "float8, blocks in the older words": (
        fp8(E4M3, blocks, (96, 96), "weight_scale"), compressed(NAIVE, block_structure="96x96")),
    "NF4": (packing.bitsandbytes4, NF4),
    "NF4, nested": (with_(packing.bitsandbytes4, nested=True), NF4),
    "FP4": (with_(packing.bitsandbytes4, kind="fp4"), NF4),
    "NF4, blocks across rows": (with_(packing.bitsandbytes4, block_size=1536, nested=True), NF4),
}  # fmt: skip


def converted(folder: Path, output: Path, **options: Any) -> dict[str, NDArray[np.float32]]:
    path = llmkit.convert(folder, "gguf-f32", output=output, **options).path
    with open_gguf(path) as file:
        return {name: file.raw(name).view(np.float32).reshape(info.shape) for name, info in file.tensors.items()}


GGUF_NAMES = {
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
}  # fmt: skip


def expected_rows(name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """What GGUF has for a Llama's weight: queries and keys with the halves of each head interleaved."""
    if not name.endswith(("q_proj", "k_proj")):
        return weight
    n_in = weight.shape[1]
    return weight.reshape(-1, 2, MODEL.head_dim // 2, n_in).swapaxes(1, 2).reshape(-1, n_in)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_formula(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    pack, settings = CASES[name]
    made = {module: pack(rng, *shape) for module, shape in packing.linear_modules(MODEL).items()}
    folder = packing.write_checkpoint(
        tmp_path / "model", settings, {module: tensors for module, (tensors, _) in made.items()}, MODEL
    )
    for number, options in enumerate(({"memory": "1GiB", "threads": 1}, {"memory": "200KiB", "threads": 3})):
        found = converted(folder, tmp_path / f"{number}.gguf", **options)
        for module, (_, weight) in made.items():
            role = GGUF_NAMES[module.removeprefix("model.layers.0.")]
            np.testing.assert_array_equal(
                found[f"blk.0.{role}.weight"], expected_rows(module, weight), err_msg=f"{module}, {options}"
            )
        np.testing.assert_array_equal(found["token_embd.weight"], MODEL.weights()["model.embed_tokens.weight"])


def test_int8_of_bitsandbytes(tmp_path: Path, rng: np.random.Generator) -> None:
    module, (n_out, n_in) = next(iter(packing.linear_modules(MODEL).items()))
    codes = rng.integers(-127, 128, (n_out, n_in)).astype(np.int8)
    scales = rng.uniform(0.1, 0.2, n_out).astype(np.float32)
    tensors = {"weight": torch.from_numpy(codes), "SCB": torch.from_numpy(scales)}
    tensors["weight_format"] = torch.zeros((), dtype=torch.uint8)
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    folder = packing.write_checkpoint(tmp_path / "model", settings, {module: tensors}, MODEL)
    found = converted(folder, tmp_path / "x.gguf")["blk.0.attn_q.weight"]
    weight = codes * scales[:, None] / np.float32(127)
    np.testing.assert_allclose(found, expected_rows(module, weight), rtol=2e-7)


def test_what_is_quantised_again_notes_it(tmp_path: Path, rng: np.random.Generator) -> None:
    module, shape = next(iter(packing.linear_modules(MODEL).items()))
    folder = packing.write_checkpoint(tmp_path / "model", AWQ, {module: packing.awq(rng, *shape)[0]}, MODEL)
    result = llmkit.convert(folder, "gguf-q4_0", output=tmp_path / "x.gguf", verify=True)
    assert any("quantised (awq): 1 tensors are decoded" in note for note in result.plan.notes)
    assert result.verification is not None


def test_fp8_is_what_transformers_makes_of_it(rng: np.random.Generator, tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    made = {m: FP8["blocks"][0](rng, *shape) for m, shape in packing.linear_modules(TinyLlama(n_embd=192)).items()}
    dequantize = Fp8Dequantize(None)._dequantize_one
    for tensors, weight in made.values():
        if all(n % 96 == 0 for n in weight.shape):  # transformers takes whole blocks only
            theirs = dequantize(tensors["weight"], tensors["weight_scale_inv"], torch.float32)
            np.testing.assert_array_equal(theirs.numpy(), weight)
    assert any(weight.shape == (192, 192) for _, weight in made.values())
