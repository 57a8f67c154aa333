"""OpenVINO IR with its keys and values as state, in the folder that openvino_genai.LLMPipeline loads.

Inputs, as optimum-intel names them: input_ids, attention_mask [batch, all tokens] and position_ids int64 [batch, n],
beam_idx int32 [batch], which row of the cache each text goes on from. Output: logits float32 [batch, n, n_vocab].
Weights of 8 and 4 bits are llmkit's own, codes and scales in blocks, which OpenVINO's kernels decompress.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset15 as op

from llmkit.convert.frameworks.base import Built, Workshop
from llmkit.convert.frameworks.openvino_arrays import OpenVinoArrays, constant, integers
from llmkit.convert.network.arrays import Array
from llmkit.convert.network.decoder import Decoder, Network
from llmkit.convert.plan import PlannedTensor
from llmkit.formats.silence import silence
from llmkit.quantize.blockwise import BlockwiseFormat, unpacked

MODEL: Final = "openvino_model.xml"
_STATE: Final = "past_key_values.{0}.{1}present.{0}.{1}"  # as optimum-intel calls it

# Names, numbers of axes, types.
_INPUTS: Final = (
    ("input_ids", 2, ov.Type.i64),
    ("attention_mask", 2, ov.Type.i64),
    ("position_ids", 2, ov.Type.i64),
    ("beam_idx", 1, ov.Type.i32),
)


def build(shop: Workshop) -> Built:
    """Make the model, its tokenizer and its detokenizer."""
    shop.say("building the graph")
    weights = as_stored(shop.tensors, shop.weights)
    model = make_model(shop.network, shop.tensors, weights)
    shop.say("saving")
    ov.save_model(model, shop.folder / MODEL, compress_to_fp16=False)
    del model
    _save_tokenizers(shop.folder)
    return Built({"model": MODEL})


def make_model(network: Network, tensors: Mapping[str, PlannedTensor], weights: Mapping[str, Any]) -> ov.Model:
    """The decoder as a model whose constants use the memory of `weights`, which must outlive it."""
    arrays = OpenVinoArrays()
    parameters = [op.parameter([-1] * n_axes, type) for _, n_axes, type in _INPUTS]
    for parameter, (name, *_) in zip(parameters, _INPUTS, strict=True):
        parameter.friendly_name = name
        parameter.output(0).get_tensor().set_names({name})
    cache = StatefulCache(arrays, network, *parameters)
    values = {name: arrays.wrap(_weight(tensor, weights)) for name, tensor in tensors.items()}
    logits = Decoder(arrays, network, values).logits(arrays.wrap(parameters[0], "integer"), cache)
    result = op.result(logits.value)
    result.friendly_name = "logits"
    result.output(0).get_tensor().set_names({"logits"})
    return ov.Model([result], cache.assigned, parameters, "decoder")


class StatefulCache:
    """Implements `llmkit.convert.network.cache.Cache` with variables of the model, which are empty at first."""

    def __init__(
        self, arrays: OpenVinoArrays, network: Network, ids: Any, mask: Any, positions: Any, beams: Any
    ) -> None:
        h = network.hparams
        self._arrays = arrays
        self._beams = beams
        self._shape = [-1, h.n_kv_heads, -1, h.head_dim]
        batch = op.gather(op.shape_of(ids, "i64"), integers(0), op.constant(np.int64(0)))
        empty = op.concat([batch, integers(h.n_kv_heads), integers(0), integers(h.head_dim)], 0)
        self._empty = op.broadcast(op.constant(np.float32(0)), empty)
        self.assigned: list[Any] = []
        self.places = arrays.wrap(positions, "integer")
        self.total = arrays.size(arrays.wrap(mask), 1)
        n = arrays.size(arrays.wrap(ids), 1)
        self.own = arrays.range(n) + (self.total - n)
        self.slots = arrays.range(self.total)
        self.filled = arrays.reshape(arrays.wrap(op.convert(mask, ov.Type.boolean), "boolean"), (0, 1, 1, -1))

    def extend(self, block: int, keys: Array, values: Array) -> tuple[Array, Array]:
        return self._grown(block, "key", keys), self._grown(block, "value", values)

    def _grown(self, block: int, kind: str, new: Array) -> Array:
        info = ov.op.util.VariableInfo()
        info.data_shape, info.data_type = ov.PartialShape(self._shape), ov.Type.f32
        info.variable_id = _STATE.format(block, kind)
        variable = ov.op.util.Variable(info)
        past = op.gather(op.read_value(self._empty, variable), self._beams, op.constant(np.int64(0)))
        whole = op.concat([past, new.value], 2)
        self.assigned.append(op.assign(whole, variable))
        return self._arrays.wrap(whole)


def _weight(tensor: PlannedTensor, weights: Mapping[str, Any]) -> Any:
    """A weight as it is computed with, float32."""
    form, name = tensor.type, tensor.name
    if not isinstance(form, BlockwiseFormat):
        stored = constant(weights[name])
        return stored if weights[name].dtype == np.float32 else op.convert(stored, ov.Type.f32)
    (rows, columns), four = tensor.matrix, form.bits == 4
    shape = (rows, columns // form.block_size, form.block_size)
    types = (ov.Type.i4, ov.Type.i8) if form.symmetric else (ov.Type.u4, ov.Type.u8)
    codes = op.convert(constant(weights[f"{name}.codes"], types[not four], shape), ov.Type.f16)
    if not form.symmetric:
        zeros = constant(weights[f"{name}.zero_points"], types[not four], (*shape[:2], 1))
        codes = op.subtract(codes, op.convert(zeros, ov.Type.f16))
    scaled = op.multiply(codes, constant(weights[f"{name}.scales"][..., None]))
    return op.convert(op.reshape(scaled, integers(rows, columns), False), ov.Type.f32)


def as_stored(tensors: Mapping[str, PlannedTensor], weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in OpenVINO's forms.

    Without zero points codes are around 0, not 8 or 128: of the high bit of each the other value. Zero points of 4 bits
    follow each other without gaps, where a row has an odd number of them.
    """
    found = dict(weights)
    for tensor in tensors.values():
        form = tensor.type
        if not isinstance(form, BlockwiseFormat):
            continue
        if form.symmetric:
            key = f"{tensor.name}.codes"
            found[key] = found[key] ^ np.uint8(0x88 if form.bits == 4 else 0x80)
        elif form.bits == 4:
            key = f"{tensor.name}.zero_points"
            each = unpacked(found[key], form.bits)[:, : form.n_blocks(tensor.matrix[1])].reshape(-1)
            each = np.append(each, np.zeros(len(each) % 2, np.uint8))
            found[key] = each[0::2] | each[1::2] << 4
    return found


def _save_tokenizers(folder: Path) -> None:
    """The models that turn text into tokens and back."""
    with silence():  # transformers says that it found no torch, which its tokenizers do not need
        from openvino_tokenizers import convert_tokenizer
        from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    for name, model in zip(
        ("openvino_tokenizer.xml", "openvino_detokenizer.xml"),
        convert_tokenizer(tokenizer, with_detokenizer=True),
        strict=True,
    ):
        ov.save_model(model, folder / name)
