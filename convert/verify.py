"""Verifying a file that was written: every tensor is read back, decoded and compared with its source.

The measure is the relative error of a tensor, the root of the mean squared difference over that of the mean square of
the weights: 0 is exact, 1 is no better than zeros. What was just written is read from the system's cache: verifying
tells of weights that were encoded or placed wrong, or that a type cannot hold, and not of a failing disk.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from llmkit.convert.chunks import Buffers, Chunk, cut, run
from llmkit.convert.packed.reader import Inputs
from llmkit.convert.plan import ConversionPlan, PlannedTensor
from llmkit.convert.sources import decode_rows, read_rows, read_values
from llmkit.errors import VerificationError
from llmkit.formats.output import OutputFile
from llmkit.protocols import Progress
from llmkit.quantize.blockwise import BlockwiseFormat
from llmkit.quantize.schemes import WeightType, array_widths
from llmkit.types import TensorType

T = TensorType

# The relative error on normally distributed weights (measured: tests/convert/test_verify.py).
EXPECTED_ERROR: Final[dict[TensorType, float]] = {
    T.F32: 0.0,
    T.F16: 0.00021,
    T.BF16: 0.00166,
    T.Q8_0: 0.0054,
    T.Q6_K: 0.0178,
    T.Q5_K: 0.0362,
    T.Q5_1: 0.0379,
    T.Q5_0: 0.0428,
    T.Q4_K: 0.0715,
    T.Q4_1: 0.0783,
    T.Q4_0: 0.0861,
    T.IQ4_NL: 0.0762,
    T.IQ4_XS: 0.0768,
    T.MXFP4: 0.115,
    T.Q3_K: 0.151,
    T.Q2_K: 0.297,
}
_BLOCKWISE_ERROR: Final = {4: 0.11, 8: 0.0065}  # in blocks of 256, the largest
# Whatever their distribution, weights come within twice the expectation. Beyond this many times it the encoding has
# gone wrong, or the weights are of a kind that the type cannot hold, such as ones too small for scales in float16.
_TOLERANCE: Final = 5.0
_SMALLEST_LIMIT: Final = 0.05  # float16 itself is that coarse for weights of 3e-7

# Types whose encoders search for the best scales, which takes many times as long as decoding; the second ones do so
# with importance only.
_SEARCHED: Final = frozenset({T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS})
_SEARCHED_WITH_IMPORTANCE: Final = frozenset({T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1})
_FEW_WEIGHTS: Final = 500_000_000  # verified in less than half a second


@dataclass(frozen=True, slots=True)
class TensorError:
    """One tensor's relative error; NaN where its weights are not all finite. `limit` is what is accepted."""

    name: str
    type: WeightType
    relative: float
    limit: float

    @property
    def is_acceptable(self) -> bool:
        return self.relative <= self.limit


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying found: `tensors` in the order of the file, the error of all that changed together, the time."""

    tensors: tuple[TensorError, ...]
    relative: float
    seconds: float

    def worst(self, count: int) -> list[TensorError]:
        """The tensors of the largest errors, largest first."""
        return sorted(self.tensors, key=lambda t: -math.inf if math.isnan(t.relative) else t.relative)[
            : -count - 1 : -1
        ]


@dataclass(slots=True)
class _Sums:
    """Of squared differences and of squared weights, chunk by chunk."""

    error: array[float] = field(default_factory=lambda: array("d"))
    square: array[float] = field(default_factory=lambda: array("d"))


def is_cheap(plan: ConversionPlan) -> bool:
    """Whether verifying takes little of the whole time: the scales of most weights are searched for, or there are few.

    It takes about 0.8 ns per weight on one core. Quantising to Q4_K_M from bf16 takes 8.5, so verifying adds a tenth;
    to Q8_0 or Q4_0 it takes 1.8, and verifying would add half. (CPU time, 1.08 billion weights, Zen 4.)
    """
    searched = sum(
        t.n_elements
        for t in plan.tensors
        if t.type in _SEARCHED or (t.importance is not None and t.type in _SEARCHED_WITH_IMPORTANCE)
    )
    return 2 * searched >= plan.n_params or plan.n_params <= _FEW_WEIGHTS


def verify(
    plan: ConversionPlan,
    outputs: Sequence[OutputFile],
    inputs: Inputs,
    *,
    threads: int,
    memory: int,
    progress: Progress,
    allow_nonfinite: bool,
) -> Verification:
    """Compare what was written with the source, within `memory` bytes of buffers.

    Copied tensors must be equal byte for byte. Raises VerificationError, naming the worst tensor, if one is not, holds
    a value that is not finite (unless `allow_nonfinite`), or is far from its source.
    """
    started = time.monotonic()
    sums = {tensor.name: _Sums() for tensor in plan.tensors}

    def compare(chunk: Chunk, buffers: Buffers) -> None:
        error, square = _compare(chunk, outputs[chunk.file], inputs, buffers)
        found = sums[chunk.tensor.name]
        found.error.append(error)  # appending is atomic
        found.square.append(square)
        progress.advance(_stored_bytes(chunk), chunk.tensor.name)

    progress.start("verifying", sum(tensor.nbytes for tensor in plan.tensors))
    try:
        run(compare, cut(plan, memory // threads), threads)
        tensors = tuple(_tensor_error(tensor, sums[tensor.name]) for tensor in plan.tensors)
        refused = [t for t in tensors if not t.is_acceptable and not (allow_nonfinite and math.isnan(t.relative))]
        if refused:
            raise VerificationError(_explain(refused))
    except BaseException:
        progress.abort()
        raise
    progress.finish()
    changed = [found for found in sums.values() if any(found.error)]
    total = _Sums(
        array("d", (x for found in changed for x in found.error)),
        array("d", (x for found in changed for x in found.square)),
    )
    return Verification(tensors, _relative(total), time.monotonic() - started)


def _compare(chunk: Chunk, output: OutputFile, inputs: Inputs, buffers: Buffers) -> tuple[float, float]:
    """Sums of squared differences and of squared weights; copies that are not equal are infinitely far off."""
    from llmkit.kernels.difference import squared_error

    tensor = chunk.tensor
    columns = tensor.matrix[1]
    stored = read_rows(chunk, inputs, buffers)
    n_bytes = _stored_bytes(chunk)
    packed = buffers.get("packed", n_bytes)
    begin = 0
    for offset, n in tensor.ranges(chunk.first_row, chunk.n_rows):
        output.read_at(packed[begin : begin + n].data, offset)
        begin += n
    if tensor.is_copied:
        return (0.0 if np.array_equal(packed, stored.reshape(-1)) else math.inf), 0.0
    weights = read_values(chunk, stored, buffers)
    decoded = decode_rows(tensor.type, packed.reshape(chunk.n_rows, -1), columns, buffers, "decoded")
    return squared_error(weights.reshape(-1), decoded.reshape(-1))


def _stored_bytes(chunk: Chunk) -> int:
    return chunk.n_rows * sum(array_widths(chunk.tensor.type, chunk.tensor.matrix[1]))


def _tensor_error(tensor: PlannedTensor, sums: _Sums) -> TensorError:
    return TensorError(tensor.name, tensor.type, _relative(sums), _limit(tensor))


def _relative(sums: _Sums) -> float:
    error, square = math.fsum(sums.error), math.fsum(sums.square)
    if not (math.isfinite(square) and not math.isnan(error)):
        return math.nan
    if error == 0:
        return 0.0
    return math.sqrt(error / square) if square else math.inf


def expected_error(type: WeightType) -> float:
    """The relative error of normally distributed weights in this type."""
    if isinstance(type, BlockwiseFormat):
        return _BLOCKWISE_ERROR[type.bits]
    return EXPECTED_ERROR[type] if isinstance(type, TensorType) else 0.0


def _limit(tensor: PlannedTensor) -> float:
    """The relative error that is accepted: 0 for copies, else by the type.

    With importance the errors of columns that hardly count may be as large as the weights.
    """
    if tensor.is_copied:
        return 0.0
    limit = min(1.0, max(_SMALLEST_LIMIT, _TOLERANCE * expected_error(tensor.type)))
    return limit if tensor.importance is None else 1.0


def _explain(refused: list[TensorError]) -> str:
    worst = max(refused, key=lambda t: math.inf if math.isnan(t.relative) else t.relative)
    found = "holds values that are not finite" if math.isnan(worst.relative) else f"is off by {worst.relative:.3g}"
    more = f" ({len(refused) - 1} other tensors are refused too)" if len(refused) > 1 else ""
    return (
        f"tensor {worst.name!r}, read back as {worst.type.name}, {found} of its weights' size, expected at most "
        f"{worst.limit:.3g}{more}; nothing was written. Give such a tensor a type of more bits with --tensor-type, or "
        "take the file as it is with --no-verify"
    )
