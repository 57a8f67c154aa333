"""Executing a plan: threads fill byte ranges of the output, within a budget of buffer memory.

Every chunk is a run of whole rows of one tensor. It is read, decoded to float32, brought into the target's row order,
checked, encoded and written to its place; a tensor that keeps its type is copied. The bytes do not depend on the number
of threads or the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.chunks import Buffers, Chunk, check_budget, cut, run
from llmkit.convert.filelayout import file_paths
from llmkit.convert.packed.reader import Inputs
from llmkit.convert.plan import ConversionPlan
from llmkit.convert.sources import open_inputs, origin, read_rows, read_values, require_finite
from llmkit.convert.verify import Verification, verify
from llmkit.errors import NonFiniteError
from llmkit.formats.output import OutputFile, publish_all
from llmkit.protocols import Progress
from llmkit.quantize.schemes import SCHEMES, BlockwiseScheme, Scheme, scheme
from llmkit.types import TensorType


def execute(
    plan: ConversionPlan,
    output: Path,
    *,
    threads: int,
    memory: int,
    progress: Progress,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    verified: bool = False,
    title: str | None = None,
) -> Verification | None:
    """Write the planned files to `output` and its like, with `threads` threads and at most `memory` bytes of buffers.

    Fewer threads work where the budget has no room for more. With `verified`, what was written is compared with its
    source before it appears under its name; returns what that found. `title` is what progress calls the work.

    Raises NonFiniteError, FormatError (an input changed since it was planned), OutputError, VerificationError,
    LlmkitError if the budget is too small for a single thread (see `check_budget`).
    """
    threads = min(threads, check_budget(plan, memory))
    chunks = cut(plan, memory // threads)
    paths = file_paths(output, plan.files)
    sizes = [file.total_bytes for file in plan.files]
    with (
        open_inputs(plan.tensors) as inputs,
        publish_all(list(zip(paths, sizes, strict=True)), overwrite=overwrite) as outputs,
    ):
        progress.start(title or f"writing {output.name}", plan.total_bytes)
        try:
            for planned, file in zip(plan.files, outputs, strict=True):
                file.write_at(planned.header, 0)
                progress.advance(len(planned.header))
            run(partial(_write, outputs, inputs, allow_nonfinite, progress), chunks, threads)
        except BaseException:
            progress.abort()
            raise
        progress.finish()
        if not verified:
            return None
        return verify(
            plan,
            outputs,
            inputs,
            threads=threads,
            memory=memory,
            progress=progress,
            allow_nonfinite=allow_nonfinite,
        )


def _write(
    outputs: Sequence[OutputFile],
    inputs: Inputs,
    allow_nonfinite: bool,
    progress: Progress,
    chunk: Chunk,
    buffers: Buffers,
) -> None:
    tensor = chunk.tensor
    packed = read_rows(chunk, inputs, buffers)
    if not tensor.is_copied:
        packed = _encode(chunk, packed, buffers, allow_nonfinite)
    elif not allow_nonfinite and tensor.type in SCHEMES:
        require_finite(read_values(chunk, packed, buffers), chunk)
    data, begin = packed.reshape(-1), 0
    for offset, n_bytes in tensor.ranges(chunk.first_row, chunk.n_rows):
        outputs[chunk.file].write_at(data[begin : begin + n_bytes].data, offset)
        begin += n_bytes
    progress.advance(packed.nbytes, tensor.name)


def _encode(chunk: Chunk, stored: NDArray[np.uint8], buffers: Buffers, allow_nonfinite: bool) -> NDArray[np.uint8]:
    """The chunk's rows in the target's type, uint8 [n_rows, row_bytes]."""
    tensor = chunk.tensor
    columns = tensor.matrix[1]
    values = read_values(chunk, stored, buffers)
    if not allow_nonfinite:
        require_finite(values, chunk)
    target = scheme(tensor.type)
    row_bytes = target.row_bytes(columns)
    packed = buffers.get("packed", chunk.n_rows * row_bytes).reshape(chunk.n_rows, row_bytes)
    if tensor.feedback is not None and isinstance(target, BlockwiseScheme):
        target.encode(values, packed, chunk.importance, tensor.feedback.carry())
    else:
        target.encode(values, packed, chunk.importance)
    if not allow_nonfinite:
        _require_finite_scales(packed, target, chunk)
    return packed


def _require_finite_scales(packed: NDArray[np.uint8], target: Scheme | BlockwiseScheme, chunk: Chunk) -> None:
    """Values that are finite in float32 can exceed the 16-bit floats in which weights or scales are stored."""
    if isinstance(target, BlockwiseScheme):
        finite = target.has_finite_scales(packed, chunk.tensor.matrix[1])
    else:
        finite = _has_finite_halves(packed, target)
    if not finite:
        raise NonFiniteError(
            f"{origin(chunk.tensor, chunk.part)} holds values too large for {target.type.name}, whose weights or "
            "scales are 16-bit floats; gguf-f32 and onnx-fp32 hold every value"
        )


def _has_finite_halves(packed: NDArray[np.uint8], target: Scheme) -> bool:
    blocks = packed.reshape(-1, target.block.itemsize)
    for offset, exponent in _half_floats(target):
        bits = blocks[:, offset : offset + 2].view(np.uint16)
        if ((bits & exponent) == exponent).any():
            return False
    return True


def _half_floats(target: Scheme) -> list[tuple[int, int]]:
    """Where in a block of this type 16-bit floats lie, in bytes, and the bits of their exponent."""
    if target.type is TensorType.BF16:
        return [(0, 0x7F80)]
    fields: Mapping[str, Any] = target.block.fields or {}
    return [(offset, 0x7C00) for dtype, offset, *_ in fields.values() if dtype == np.float16]
