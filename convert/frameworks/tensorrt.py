"""TensorRT for RTX: an engine built from the graph of `onnx-standard`, or that graph and the command that builds one.

The engine is compiled for the GPU at hand when it is first loaded there; its numbers were not checked on one. TensorRT
for RTX knows GPUs of compute capability 8.0, 8.6, 8.9 and from 12.0 on, and says so of others, such as an H100 (9.0).
Graph and weights stay beside the engine, which is for one version of TensorRT only. TensorRT proper builds one from the
same graph, with trtexec and the same shapes.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final

from llmkit.convert.frameworks.base import Built, Workshop, tokens_at_once
from llmkit.convert.frameworks.onnx_standard import MODEL, write_graph
from llmkit.convert.network.decoder import Network
from llmkit.convert.onnx.decoder import PAST
from llmkit.errors import EngineError

ENGINE: Final = "model.engine"
COMMAND: Final = "build-engine.sh"
_UNCHECKED: Final = "TensorRT: its numbers were not checked on a GPU"


def build(shop: Workshop) -> Built:
    """Write the graph, and build an engine if TensorRT for RTX is installed."""
    write_graph(shop)
    shapes = input_shapes(shop.network)
    command = build_command(shapes)
    (shop.folder / COMMAND).write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    settings: dict[str, Any] = {"model": MODEL, "weights": shop.weights_name, "build_command": command}
    try:
        import tensorrt_rtx
    except ImportError:
        return Built(settings, (f"{_UNCHECKED}; without tensorrt-rtx here, {COMMAND} builds the engine where it is",))
    shop.say("building the engine")
    _build_engine(tensorrt_rtx, shop.folder, shapes)
    settings |= {"engine": ENGINE, "engine_version": str(tensorrt_rtx.__version__)}
    return Built(settings, (_UNCHECKED,))


def input_shapes(network: Network) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Of every input the least, the usual and the largest shape."""
    h, longest = network.hparams, network.n_context
    most = tokens_at_once(network)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {"input_ids": ((1, 1), (1, 1), (1, most))}
    for block in range(h.n_layers):
        for kind in ("key", "value"):
            lengths = (0, longest // 4, longest - 1)
            shapes[PAST.format(block, kind)] = tuple((1, h.n_kv_heads, n, h.head_dim) for n in lengths)
    return shapes


def build_command(shapes: dict[str, tuple[tuple[int, ...], ...]]) -> str:
    """The command line of TensorRT for RTX's tool that builds the engine, to be run in the folder."""
    options = [
        f"--{name}Shapes=" + ",".join(f"{key}:{'x'.join(map(str, found[number]))}" for key, found in shapes.items())
        for number, name in enumerate(("min", "opt", "max"))
    ]
    return shlex.join(["tensorrt_rtx", f"--onnx={MODEL}", f"--saveEngine={ENGINE}", *options])


def _build_engine(trt: Any, folder: Path, shapes: dict[str, tuple[tuple[int, ...], ...]]) -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(str(folder / MODEL)):
        raise EngineError(f"TensorRT does not read the graph: {parser.get_error(0)}")
    profile = builder.create_optimization_profile()
    for name, found in shapes.items():
        profile.set_shape(name, *found)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.clear_flag(trt.BuilderFlag.TF32)  # or float32 would be rounded to 10 bits of mantissa
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError("TensorRT could not build an engine from the graph")
    (folder / ENGINE).write_bytes(engine)
