"""ONNX Runtime's own quantiser of MatMulNBits weights, and the operator: the judges of the blockwise forms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]


def quantize(rows: NDArray[Any], bits: int, block_size: int, symmetric: bool) -> Arrays:
    """Weights [N, K] of float32 or float16 -> (B, scales, zero points or None) of the operator MatMulNBits."""
    from onnxruntime.capi import _pybind_state

    n, k = rows.shape
    n_blocks = -(-k // block_size)
    # The quantiser is told the true K, but its callers pad the weights, as onnxruntime.quantization does.
    weights = np.zeros((n_blocks * block_size, n), rows.dtype)
    weights[:k] = rows.T
    codes = np.zeros((n, n_blocks, block_size * bits // 8), np.uint8)
    scales = np.zeros((n, n_blocks), rows.dtype)
    zero_points = np.zeros((n, -(-n_blocks * bits // 8)), np.uint8)
    function = {4: _pybind_state.quantize_matmul_4bits, 8: _pybind_state.quantize_matmul_8bits}[bits]
    function(codes, weights, scales, zero_points, block_size, n, k, symmetric)
    return codes, scales, None if symmetric else zero_points


def multiply(a: NDArray[np.float32], arrays: Arrays, bits: int, block_size: int) -> NDArray[np.float32]:
    """The operator on the CPU: float32 [M, K] times the transposed weights [N, K]."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    names = ["B", "scales", "zero_points"]
    tensors = [
        numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True) if array is not None
    ]
    n, k = len(arrays[0]), a.shape[1]
    node = helper.make_node(
        "MatMulNBits",
        ["A", *(tensor.name for tensor in tensors)],
        ["Y"],
        domain="com.microsoft",
        N=n,
        K=k,
        bits=bits,
        block_size=block_size,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, a.shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [len(a), n])],
        tensors,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"A": a})
    found: NDArray[np.float32] = product
    return found
