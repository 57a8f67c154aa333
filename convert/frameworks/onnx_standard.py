"""ONNX of standard operators alone, for TensorRT, OpenVINO, ONNX Runtime and others that read no contributed ones.

Inputs: input_ids int64 [1, n], and of every block the keys and values of earlier tokens, past_key_values.N.key and
.value, float32 [1, heads, earlier tokens, width]. Outputs: logits float32 [1, n, n_vocab], and present.N.key and
.value, those of all tokens. The weights lie in a SafeTensors file, of which the graph knows the places.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from llmkit.convert.frameworks.base import Built, Workshop
from llmkit.convert.frameworks.onnx_arrays import OPSET, OnnxArrays
from llmkit.convert.network.cache import GrowingCache
from llmkit.convert.network.decoder import Decoder
from llmkit.convert.onnx.decoder import PAST, PRESENT
from llmkit.convert.onnx.graph import Graph
from llmkit.formats.safetensors import read_header

MODEL: Final = "model.onnx"
_KINDS: Final = ("key", "value")
_FLOAT: Final = ir.DataType.FLOAT


def build(shop: Workshop) -> Built:
    """Record the decoder as a graph and write it."""
    write_graph(shop)
    return Built({"model": MODEL, "weights": shop.weights_name})


def write_graph(shop: Workshop) -> None:
    """The file of the graph."""
    from llmkit import __version__

    shop.say("building the graph")
    network, h = shop.network, shop.network.hparams
    graph = Graph(shop.settings["architecture"], shop.weights_name, standard=True, opset=OPSET)
    arrays = OnnxArrays(graph)
    ids = arrays.wrap(graph.input("input_ids", ir.DataType.INT64, (1, "sequence_length")), "integer")
    past_shape = (1, h.n_kv_heads, "past_sequence_length", h.head_dim)
    past = [
        (keys, values)
        for block in range(h.n_layers)
        for keys, values in [
            [arrays.wrap(graph.input(PAST.format(block, kind), _FLOAT, past_shape)) for kind in _KINDS]
        ]
    ]
    weights = {
        name: arrays.wrap(graph.external(name, _FLOAT, info.shape, info.offset, info.nbytes))
        for name, info in read_header(shop.folder / shop.weights_name).tensors.items()
    }
    before = arrays.size(past[0][0], 2)
    total = before + arrays.size(ids, 1)
    cache = GrowingCache(arrays, past, places=arrays.positions(ids) + before, slots=arrays.range(total), total=total)
    logits = Decoder(arrays, network, weights).logits(ids, cache)
    graph.output(logits.value, "logits", _FLOAT, (1, "sequence_length", h.n_vocab))
    for block, present in enumerate(cache.present):
        for kind, found in zip(_KINDS, present, strict=True):
            shape = (1, h.n_kv_heads, "total_sequence_length", h.head_dim)
            graph.output(found.value, PRESENT.format(block, kind), _FLOAT, shape)
    (shop.folder / MODEL).write_bytes(graph.serialize("llmkit", __version__))
