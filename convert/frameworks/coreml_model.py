"""Core ML's ML Program (.mlpackage) for iOS 18 and macOS 15: half precision, keys and values as states.

Inputs: input_ids int32 [1, n], n up to what `llmkit.json` calls tokens_at_once, and position int32 [1], how many tokens
the states hold. Output: logits float16 [1, n, n_vocab]. States: keys and values, float16 [layers, heads, positions,
width]; what lies behind `position` is not looked at. Weights of 8 and 4 bits are llmkit's own, codes and scales in
blocks, as MIL's constexpr_blockwise_shift_scale.

Core ML runs on Apple's systems only: what is written here is built and checked, and not run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, Final

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.converters.mil.mil.types.type_int import np_int4_dtype
from numpy.typing import NDArray

from llmkit.convert.frameworks.base import Built, Workshop, tokens_at_once
from llmkit.convert.frameworks.coreml_arrays import CoreMlArrays
from llmkit.convert.network.arrays import Array
from llmkit.convert.network.decoder import Decoder, Network
from llmkit.convert.plan import PlannedTensor
from llmkit.quantize.blockwise import BlockwiseFormat, unpacked

MODEL: Final = "model.mlpackage"
TARGET: Final = ct.target.iOS18
_STATES: Final = ("keys", "values")
# The graph is made as it is to be: passes that look for what other frameworks write would find nothing, slowly.
_PASSES: Final = ["common::dead_code_elimination"]


def build_package(shop: Workshop) -> Built:
    """Make the package."""
    shop.say("building the graph")
    program = make_program(shop.network, shop.tensors, shop.weights)
    shop.say("saving")
    with _temporary_files_in(shop.folder), redirect_stderr(StringIO()):  # coremltools always draws bars of progress
        ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=TARGET,
            compute_precision=ct.precision.FLOAT32,  # or the types that are there would be gone over again
            pass_pipeline=ct.PassPipeline(pass_names=_PASSES, pipeline_name="decoder"),
            skip_model_load=True,
            package_dir=str(shop.folder / MODEL),
        )
    note = "Core ML runs on Apple's systems only: the model was built for iOS 18 and macOS 15, and not run"
    return Built({"model": MODEL}, (note,))


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Where the model will be: coremltools writes the weights twice, and a system's own place may be in memory."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def make_program(network: Network, tensors: Mapping[str, PlannedTensor], weights: Mapping[str, Any]) -> Program:
    """The decoder as a program with one function, `main`; float tensors may use the memory of `weights`."""
    several = ct.RangeDim(1, tokens_at_once(network), default=1)
    layers, _, *shape = network.cache_shape
    inputs = {
        "input_ids": mb.placeholder((1, several.symbol), types.int32),
        "position": mb.placeholder((1,), types.int32),
        **{name: mb.state_tensor_placeholder((layers, *shape), types.fp16) for name in _STATES},
    }
    arrays = CoreMlArrays()
    with Function(inputs, TARGET) as function:
        values = {name: arrays.wrap(_weight(tensor, weights)) for name, tensor in tensors.items()}
        ids, position, *states = (function.inputs[name] for name in inputs)
        wrapped = arrays.wrap(ids, "integer")
        cache = StateCache(arrays, network, wrapped, arrays.wrap(position, "integer"), *states)
        logits = Decoder(arrays, network, values).logits(wrapped, cache)
        function.set_outputs([mb.identity(x=logits.value, name="logits")])
    function.set_input_types((ct.TensorType("input_ids", (1, several), np.int32),))
    program = Program()
    program.add_function("main", function)
    return program


class StateCache:
    """Implements `llmkit.convert.network.cache.Cache` with two states of the model."""

    def __init__(
        self, arrays: CoreMlArrays, network: Network, ids: Array, position: Array, keys: Any, values: Any
    ) -> None:
        self._arrays = arrays
        self._states = keys, values
        self._latest = [mb.read_state(input=state) for state in self._states]
        self._position = position
        self.places = self.own = arrays.positions(ids) + position
        self.slots = arrays.count(network.n_context)
        self.filled = None
        self.total = position + arrays.size(ids, 1)

    def extend(self, block: int, keys: Array, values: Array) -> tuple[Array, Array]:
        begin, end = (
            mb.concat(values=[[first], [0], place.value, [0]], axis=0)
            for first, place in ((block, self._position), (block + 1, self.total))
        )
        found = []
        for i, new in enumerate((keys, values)):
            whole = [False, True, False, True]
            written = mb.slice_update(
                x=self._latest[i], update=new.value, begin=begin, end=end, begin_mask=whole, end_mask=whole
            )
            self._latest[i] = mb.coreml_update_state(state=self._states[i], value=written)
            part = mb.slice_by_index(
                x=self._latest[i],
                begin=[block, 0, 0, 0],
                end=[block + 1, 0, 0, 0],
                end_mask=[False, True, True, True],
            )
            found.append(self._arrays.wrap(part))
        return found[0], found[1]


def _weight(tensor: PlannedTensor, weights: Mapping[str, Any]) -> Any:
    """A weight as it is computed with, float16."""
    form, name = tensor.type, tensor.name
    if not isinstance(form, BlockwiseFormat):
        return mb.const(val=np.asarray(weights[name], np.float16), name=name)
    rows, _ = tensor.matrix
    codes = signed_codes(weights[f"{name}.codes"].reshape(rows, -1), form.bits)
    return mb.constexpr_blockwise_shift_scale(data=codes, scale=weights[f"{name}.scales"], name=name)


def signed_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Codes around 8 or 128, two of 4 bits in a byte, as numbers around 0, each in a byte.

    Those of 4 bits are in MIL's type for these, which is NumPy's int8 with a remark.
    """
    if bits == 8:
        return (codes ^ np.uint8(0x80)).view(np.int8)
    apart = unpacked(codes.reshape(len(codes), -1), bits)
    return (apart.view(np.int8) - np.int8(8)).astype(np_int4_dtype)
