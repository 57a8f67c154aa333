"""How far the weights of a GGUF file are from those of its source, tensor by tensor, without any runtime."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.chunks import Buffers, Chunk, check_budget, cut, run
from llmkit.convert.packed.reader import Inputs
from llmkit.convert.plan import ConversionPlan, PlannedTensor
from llmkit.convert.sources import open_inputs, read_rows, read_values
from llmkit.errors import EvaluationError
from llmkit.protocols import Progress
from llmkit.types import StoredType


@dataclass(frozen=True, slots=True)
class WeightError:
    """One tensor beside its source.

    type: as the file stores it. relative: root mean square of the errors by that of the weights. cosine: of the angle
    between both. largest: the largest error by the root mean square of the weights.
    """

    name: str
    type: StoredType
    n_weights: int
    relative: float
    cosine: float
    largest: float


@dataclass(slots=True)
class _Sums:
    """Of squared errors, of squares of both sides, and the largest error, chunk by chunk."""

    error: array[float] = field(default_factory=lambda: array("d"))
    source: array[float] = field(default_factory=lambda: array("d"))
    file: array[float] = field(default_factory=lambda: array("d"))
    largest: array[float] = field(default_factory=lambda: array("d"))


def distances(
    file: ConversionPlan, source: ConversionPlan, *, threads: int, memory: int, progress: Progress
) -> list[WeightError]:
    """The errors of all tensors of `file`, in its order; within `memory` bytes of buffers.

    Both are plans to float32, whose tensors tell where the values are; nothing is written.

    Raises EvaluationError if the tensors are not the same.
    """
    ours = {tensor.name: tensor for tensor in file.tensors}
    _check_same(file, ours, source)
    sums = {tensor.name: _Sums() for tensor in file.tensors}
    threads = min(threads, check_budget(source, memory), check_budget(file, memory))
    progress.start(f"comparing the weights of {file.source.name}", sum(4 * t.n_elements for t in source.tensors))
    try:
        with open_inputs(file.tensors) as our_inputs, open_inputs(source.tensors) as inputs:
            other = [Buffers() for _ in range(threads)]

            def compare(chunk: Chunk, buffers: Buffers) -> None:
                weights = read_values(chunk, read_rows(chunk, inputs, buffers), buffers)
                tensor = ours[chunk.tensor.name]
                theirs = other.pop()
                found = _same_values(tensor, chunk, our_inputs, theirs)
                _add(sums[tensor.name], weights.reshape(-1), found)
                other.append(theirs)
                progress.advance(weights.nbytes, tensor.name)

            run(compare, cut(source, memory // (2 * threads)), threads)
    except BaseException:
        progress.abort()
        raise
    progress.finish()
    return [_weight_error(tensor, sums[tensor.name]) for tensor in file.tensors]


def _check_same(file: ConversionPlan, ours: Mapping[str, PlannedTensor], source: ConversionPlan) -> None:
    theirs = {tensor.name: tensor.shape for tensor in source.tensors}
    for name, shape in theirs.items():
        if name not in ours:
            raise EvaluationError(f"{file.source}: has no tensor {name!r}, which {source.source} has")
        if ours[name].shape != shape:
            raise EvaluationError(
                f"{file.source}: tensor {name!r} is {ours[name].shape}, and {shape} in {source.source}"
            )
    for name in ours:
        if name not in theirs:
            raise EvaluationError(f"{file.source}: has a tensor {name!r}, which {source.source} does not have")


def _same_values(tensor: PlannedTensor, chunk: Chunk, inputs: Inputs, buffers: Buffers) -> NDArray[np.float32]:
    """The values of the file's tensor for those of a chunk of the source's, float32 [n]."""
    first, n_rows = chunk.first_row, chunk.n_rows
    columns = chunk.tensor.matrix[1]
    is_alike = tensor.matrix == chunk.tensor.matrix  # a vector may be a row here and a column there
    rows = Chunk(0, tensor, tensor.parts[0], 0, *((first, n_rows) if is_alike else (0, tensor.matrix[0])))
    values = read_values(rows, read_rows(rows, inputs, buffers), buffers).reshape(-1)
    return values if is_alike else values[first * columns : (first + n_rows) * columns]


def _add(sums: _Sums, weights: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    from llmkit.kernels.difference import squared_error

    error, square = squared_error(weights, found)
    sums.error.append(error)  # appending is atomic
    sums.source.append(square)
    sums.file.append(squared_error(found, weights)[1])
    sums.largest.append(float(np.abs(found - weights).max(initial=0.0)))


def _weight_error(tensor: PlannedTensor, sums: _Sums) -> WeightError:
    error, source, file = (math.fsum(values) for values in (sums.error, sums.source, sums.file))
    mean_square = source / max(1, tensor.n_elements)
    lengths = math.sqrt(source * file)
    return WeightError(
        name=tensor.name,
        type=tensor.source_type,
        n_weights=tensor.n_elements,
        relative=math.sqrt(error / source) if source else (math.inf if error else 0.0),
        cosine=(source + file - error) / (2 * lengths) if lengths else (1.0 if not error else 0.0),
        largest=max(sums.largest, default=0.0) / math.sqrt(mean_square) if mean_square else 0.0,
    )
