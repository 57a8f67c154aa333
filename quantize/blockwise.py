"""Blockwise int4 and int8 weights of ONNX Runtime: the inputs of its operator com.microsoft.MatMulNBits.

A weight matrix [N, K], rows of output features as in PyTorch, becomes three tensors:

- B, uint8 [N, n_blocks, blob_size]: the codes of blocks of `block_size` weights, the last block of a row filled up
  with codes that count for nothing. Of two 4-bit codes in a byte the first has the low half.
- scales, float32 or float16 [N, n_blocks].
- zero_points, uint8 [N, ceil(n_blocks * bits / 8)], packed like codes: the code of zero. It is left out where the codes
  are symmetric around 8 (int4) or 128 (int8).

w = scale * (code - zero point). The bits are those of ONNX Runtime's own quantiser (MlasQuantizeBlockwise, which
onnxruntime.quantization.matmul_nbits_quantizer calls), the last half byte of an odd K included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.quantize.feedback import Carry, covers

BITS: Final = (4, 8)
BLOCK_SIZES: Final = (16, 32, 64, 128, 256)

Rows = NDArray[np.float32]
Codes = NDArray[np.uint8]
Scales = NDArray[np.float32] | NDArray[np.float16]
ZeroPoints = NDArray[np.uint8]

_LEAST_IMPORTANCE: Final = 1e-5  # of the mean
_NO_IMPORTANCE: Final = np.empty(0, np.float32)
_NO_FEEDBACK: Final = np.empty((0, 1, 1), np.float32)
_NO_ZERO_POINTS: Final = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class BlockwiseFormat:
    """One of the forms of MatMulNBits: `bits` and `block_size` are the operator's attributes of these names.

    symmetric: whether there are no zero points. half_scales: whether files store the scales as float16, for models
    that compute in float16, and not as float32.

    Raises ValueError for bits and block sizes that the operator does not have.
    """

    bits: int
    block_size: int
    symmetric: bool
    half_scales: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.block_size not in BLOCK_SIZES:
            raise ValueError(
                f"MatMulNBits takes bits of {BITS} and blocks of {BLOCK_SIZES}, not {self.bits} and {self.block_size}"
            )

    @property
    def name(self) -> str:
        """Such as INT4/32, or INT4/32Z with zero points."""
        return f"INT{self.bits}/{self.block_size}{'' if self.symmetric else 'Z'}"

    def widths(self, columns: int) -> tuple[int, ...]:
        """Bytes that a row takes of the codes, of the scales and, where there are any, of the zero points."""
        n_blocks = self.n_blocks(columns)
        widths = (n_blocks * self.block_size * self.bits // 8, n_blocks * (2 if self.half_scales else 4))
        return widths if self.symmetric else (*widths, -(-n_blocks * self.bits // 8))

    def n_blocks(self, columns: int) -> int:
        """Blocks in a row of K = `columns` weights."""
        return -(-columns // self.block_size)

    def codes_shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """The shape of B for N = `rows` and K = `columns`."""
        return rows, self.n_blocks(columns), self.block_size * self.bits // 8

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales."""
        return rows, self.n_blocks(columns)

    def zero_points_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the zero points, where there are any."""
        return rows, -(-self.n_blocks(columns) * self.bits // 8)

    def encode(self, rows: Rows, codes: Codes, scales: Scales, zero_points: ZeroPoints | None = None) -> None:
        """Encode float32 [N, K] into arrays of the shapes above; zero_points is None if the format is symmetric.

        Float16 scales give what ONNX Runtime makes of float16 weights, if those here have such values. Runs serially
        and without the GIL; rows are independent, so that threads may each take some. Whether weights that are not
        finite may be encoded is for the caller to decide: NaN gets code 0, infinity makes its block's scale infinite.

        Raises ValueError for arrays that do not belong together or are not contiguous.
        """
        from llmkit.kernels.blockwise import encode_blocks

        self._check(rows, codes, scales, zero_points)
        if not rows.size:
            return
        found = np.empty(scales.shape, np.float32)
        encode_blocks(
            rows.reshape(-1),
            rows.shape[1],
            self.block_size,
            self.bits,
            scales.dtype == np.float16,
            codes.reshape(-1),
            found.reshape(-1),
            _flat(zero_points),
        )
        with np.errstate(over="ignore", invalid="ignore"):
            scales[:] = found  # to float16 exactly, since the kernel has rounded

    def encode_searched(
        self,
        rows: Rows,
        codes: Codes,
        scales: Scales,
        zero_points: ZeroPoints | None = None,
        *,
        importance: NDArray[np.float32] | None = None,
        carry: Carry | None = None,
    ) -> None:
        """`encode` with the scale and zero point of each block that come nearest to its weights; 4 bits only.

        importance: float32 [K], the weight of each column's squared error, none of them negative; by default large
        weights count more than small ones (see the kernel). A block that holds NaN or infinity becomes zeros.
        carry: how the error of a weight is made good by later ones of its row; see `llmkit.quantize.feedback`.

        Raises ValueError as `encode` does.
        """
        from llmkit.kernels.blockwise_search import search_blocks

        self._check(rows, codes, scales, zero_points)
        if self.bits != 4:
            raise ValueError(f"{self}: scales are searched for with 4 bits only")
        if not rows.size:
            return
        found = np.empty(scales.shape, np.float32)
        if carry is None:
            carry = _NO_FEEDBACK
        elif not covers(carry, rows.shape[1]):
            raise ValueError(f"{self}: feedback of {carry.dtype} {carry.shape} is not for {rows.shape[1]} columns")
        search_blocks(
            rows.reshape(-1),
            _weights_of_errors(importance, rows.shape[1]),
            rows.shape[1],
            self.block_size,
            self.symmetric,
            scales.dtype == np.float16,
            carry.reshape(-1),
            carry.shape[-1],
            codes.reshape(-1),
            found.reshape(-1),
            _flat(zero_points),
        )
        with np.errstate(over="ignore", invalid="ignore"):
            scales[:] = found

    def decode(self, codes: Codes, scales: Scales, zero_points: ZeroPoints | None, out: Rows) -> None:
        """Decode to float32 [N, K], the weights that the operator multiplies by; arrays and errors as in `encode`."""
        from llmkit.kernels.blockwise import decode_blocks

        self._check(out, codes, scales, zero_points)
        if not out.size:
            return
        flat_scales = np.ascontiguousarray(scales, np.float32).reshape(-1)
        zeros = _flat(zero_points)
        decode_blocks(codes.reshape(-1), flat_scales, zeros, out.shape[1], self.block_size, self.bits, out.reshape(-1))

    def decode_oracle(self, codes: Codes, scales: Scales, zero_points: ZeroPoints | None, columns: int) -> Rows:
        """Decode in plain NumPy: float32 [N, columns]."""
        n_blocks = self.n_blocks(columns)
        whole = unpacked(codes, self.bits).reshape(len(codes), n_blocks, self.block_size)
        middle = np.full((1, n_blocks), 1 << (self.bits - 1), np.uint8)
        zeros = middle if zero_points is None else unpacked(zero_points, self.bits)[:, :n_blocks]
        steps = whole.astype(np.float32) - zeros[..., None].astype(np.float32)
        weights: Rows = steps * scales.astype(np.float32)[..., None]
        return weights.reshape(len(codes), -1)[:, :columns]

    def _check(self, rows: Rows, codes: Codes, scales: Scales, zero_points: ZeroPoints | None) -> None:
        if rows.ndim != 2 or rows.dtype != np.float32:
            raise ValueError(f"{self}: expected a float32 matrix of weights, got {rows.dtype} {rows.shape}")
        if self.symmetric != (zero_points is None):
            raise ValueError(f"{self}: expected {'no ' if self.symmetric else ''}zero points")
        n, k = rows.shape
        expected: list[tuple[str, NDArray[Any], tuple[int, ...], tuple[str, ...]]] = [
            ("codes", codes, self.codes_shape(n, k), ("uint8",)),
            ("scales", scales, self.scales_shape(n, k), ("float32", "float16")),
        ]
        if zero_points is not None:
            expected.append(("zero points", zero_points, self.zero_points_shape(n, k), ("uint8",)))
        for name, array, shape, dtypes in expected:
            if array.shape != shape or array.dtype.name not in dtypes:
                wanted = f"{' or '.join(dtypes)} {shape}"
                raise ValueError(f"{self}: expected {name} of {wanted}, got {array.dtype} {array.shape}")
        for array in (rows, *(array for _, array, _, _ in expected)):
            if not array.flags.c_contiguous:
                raise ValueError(f"{self}: arrays must lie contiguously in memory")


def _weights_of_errors(importance: NDArray[np.float32] | None, columns: int) -> NDArray[np.float32]:
    """The importance with what never counted counting a little: such weights, too, are to come near; or nothing."""
    if importance is None:
        return _NO_IMPORTANCE
    if importance.shape != (columns,):
        raise ValueError(f"expected the importance of {columns} columns, got {importance.shape}")
    mean = importance.mean(dtype=np.float64)
    if not 0 < mean < np.inf:
        return _NO_IMPORTANCE
    weighed: NDArray[np.float32] = np.maximum(importance / np.float32(mean), np.float32(_LEAST_IMPORTANCE))
    return weighed


def _flat(zero_points: ZeroPoints | None) -> ZeroPoints:
    """A flat view that is empty where there are no zero points, as the kernels take them."""
    return _NO_ZERO_POINTS if zero_points is None else zero_points.reshape(-1)


def unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of 4 or 8 bits, a byte each: [..., n] bytes to [..., 8 * n / bits]."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
