#!/usr/bin/env python3
"""Make the golden files in tests/golden/older with the libraries whose formats they are.

    ENVIRONMENT/bin/python scripts/make_older_formats.py paddle | mxnet | caffe | tensorflow

Each library has an environment of its own, apart from the project's, which needs none of them:

    paddle        paddlepaddle==3.3.1
    mxnet         mxnet==1.9.1 numpy==1.23.5
    caffe         opencv-python-headless==4.14.*      (the last series that reads Caffe models)
    tensorflow    tensorflow-cpu==2.21.*

Beside a file `x` lies `x.npz` with what its library reads: `names`, `types` (SafeTensors' names for them), and the
arrays "0", "1", ...; of types that NumPy lacks, the bits as unsigned integers.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

OLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "older"
TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL", "complex64": "C64",
    "complex128": "C128",
}  # fmt: skip
Expected = Mapping[str, tuple[str, Any]]


def of(array: Any) -> tuple[str, Any]:
    """An array of a type that NumPy has, with SafeTensors' name of it."""
    values = np.asarray(array)
    return TYPES[values.dtype.name], values


def expect(file: str, tensors: Expected) -> None:
    """Write what the library reads of a file."""
    arrays = {str(number): values for number, (_, values) in enumerate(tensors.values())}
    types = [type for type, _ in tensors.values()]
    np.savez_compressed(OLDER / f"{file}.npz", names=np.array(list(tensors)), types=np.array(types), **arrays)
    print(f"{file}: {(OLDER / file).stat().st_size:,} bytes, {len(tensors)} tensors")


def same(file: str, found: Expected, wanted: Expected) -> None:
    """End the work unless the library reads a file, which was put together by hand, as it is meant."""
    assert found.keys() == wanted.keys(), (file, list(found), list(wanted))
    for name, (type, values) in wanted.items():
        assert found[name][0] == type, (file, name, found[name])
        assert found[name][1].shape == values.shape, (file, name, found[name][1].shape)
        assert found[name][1].tobytes() == values.tobytes(), (file, name)


# PaddlePaddle

PADDLE_TYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool",
                "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")  # fmt: skip
BITS = {"bfloat16": ("BF16", "uint16"), "float8_e4m3fn": ("F8_E4M3", "uint8"), "float8_e5m2": ("F8_E5M2", "uint8")}


def make_paddle() -> None:
    """Programs with their parameters, and pickled state dicts."""
    import paddle

    paddle.seed(0)
    if "--legacy" in sys.argv:
        with patch("traceback.extract_stack", return_value=[]):  # programs name the lines of each operator's making
            _paddle_legacy(paddle)
        return

    class Net(paddle.nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.fc = paddle.nn.Linear(4, 3)
            self.norm = paddle.nn.BatchNorm1D(3)
            for type in PADDLE_TYPES:
                self.register_buffer(f"as_{type}", (paddle.rand([2, 3]) * 7).astype(type))
            self.register_buffer("scalar", paddle.to_tensor(2.5))
            self.register_buffer("empty", paddle.zeros([0, 3]))

        def forward(self, x: Any) -> list[Any]:
            copies = [paddle.assign(getattr(self, f"as_{type}")) for type in PADDLE_TYPES]
            return [self.norm(self.fc(x)), self.scalar + self.empty.sum(), *copies]

    net = Net()
    net.eval()
    state = net.state_dict()
    paddle.jit.save(net, str(OLDER / "program"), input_spec=[paddle.static.InputSpec([None, 4], "float32")])
    expect("program.pdiparams", dict(sorted((value.name, _paddle(paddle, value)) for value in state.values())))
    plain = {name: value for name, value in state.items() if "float8" not in name}
    for protocol in (2, 3, 4):
        paddle.save(plain, str(OLDER / f"state{protocol}.pdparams"), protocol=protocol)
        expect(f"state{protocol}.pdparams", _paddle_load(paddle, f"state{protocol}.pdparams"))
    turned = np.arange(6, dtype=np.int32).reshape(2, 3).T
    nested = {"model": dict(plain), "epoch": 3, "turned": turned, "best": np.float64(2.5), "all": [state["scalar"]]}
    paddle.save(nested, str(OLDER / "nested.pdparams"))
    expect("nested.pdparams", _paddle_load(paddle, "nested.pdparams"))
    _paddle_by_hand(paddle)


def _paddle(paddle: Any, value: Any) -> tuple[str, Any]:
    name = str(value.dtype).rpartition(".")[2].lower()
    if name in BITS:
        type, bits = BITS[name]
        if not value.size:
            return type, np.zeros(value.shape, bits)
        return type, np.asarray(value.view(bits) if bits == "uint8" else value.numpy()).view(bits)
    return of(value.numpy())


def _paddle_load(paddle: Any, file: str) -> dict[str, tuple[str, Any]]:
    """The tensors in what `paddle.load` returns, those within others named by the way to them."""
    found: dict[str, tuple[str, Any]] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        elif isinstance(value, paddle.Tensor):
            found[prefix] = _paddle(paddle, value)
        elif isinstance(value, np.ndarray | np.generic):
            found[prefix] = of(value)

    walk("", paddle.load(str(OLDER / file)))
    return found


def _paddle_legacy(paddle: Any) -> None:
    """A program of the kind before version 3, in a process that was started with FLAGS_enable_pir_api=0."""
    paddle.enable_static()
    program, start = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, start):
        x = paddle.static.data("x", [None, 4], "float32")
        y = paddle.static.nn.fc(x, 3)
        z = y + paddle.static.create_parameter([10, 3], "float32")[2]
    executor = paddle.static.Executor(paddle.CPUPlace())
    executor.run(start)
    paddle.static.save_inference_model(str(OLDER / "legacy"), [x], [z], executor, program=program)
    names = sorted(variable.name for variable in program.list_vars() if variable.persistable)
    tensors = {name: np.array(paddle.static.global_scope().find_var(name).get_tensor()) for name in names}
    expect("legacy.pdiparams", {name: of(values) for name, values in tensors.items()})


def _paddle_by_hand(paddle: Any) -> None:
    """What Python 2 wrote, and a large tensor in slices, which protocols below 4 made necessary."""
    values = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    minus = struct.pack("<i", -1)
    content = b"\x80\x02}q\x00(U\x01wcnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\x00\x85U\x01b\x87R("
    content += b"K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ" + minus + b"J" + minus
    content += b"K\x00tb\x89U\x18" + values.tobytes() + b"tbu."
    (OLDER / "python2.pdparams").write_bytes(content)
    same("python2.pdparams", _paddle_load(paddle, "python2.pdparams"), {"w": of(values)})
    expect("python2.pdparams", {"w": of(values)})
    flat = values.reshape(-1)
    slices = {"w@@.0": flat[:4], "w@@.1": flat[4:], "b": flat[:2]}
    how = {"w": {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}}
    paddle.save({**slices, "UnpackBigParamInfor@@": how}, str(OLDER / "slices.pdparams"), protocol=2)
    found = _paddle_load(paddle, "slices.pdparams")
    same("slices.pdparams", dict(sorted(found.items())), {"b": of(flat[:2]), "w": of(values)})
    expect("slices.pdparams", found)


# MXNet

V1 = 0xF993FAC8


def make_mxnet() -> None:
    """Arrays of all types and versions, sparse ones, and without names."""
    import mxnet as mx

    random = np.random.default_rng(0)
    base = random.normal(size=(2, 3)) * 7
    arrays = {
        f"arg:as_{type}": mx.nd.array(base.astype(type), dtype=type)
        for type in ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")
    }
    bfloat16 = np.dtype([("bfloat16", np.uint16)])
    arrays["aux:as_bfloat16"] = mx.nd.array(base.astype(np.float32)).astype(bfloat16)
    dense = {name: _mxnet(array) for name, array in arrays.items()}
    mx.nd.save(str(OLDER / "dense.params"), arrays)
    expect("dense.params", dense)
    mx.nd.save(str(OLDER / "unnamed.params"), list(arrays.values())[:2])
    expect("unnamed.params", {f"tensor.{number}": found for number, found in enumerate(list(dense.values())[:2])})
    rows = mx.nd.sparse.row_sparse_array((base.astype("f4"), [1, 4]), shape=(6, 3))
    cells = mx.nd.sparse.csr_matrix(([1.5, 2.5, 3.5], [1, 0, 2], [0, 1, 1, 3]), shape=(3, 4), dtype="float64")
    empty_rows = mx.nd.sparse.zeros("row_sparse", (4, 2))
    empty_cells = mx.nd.sparse.zeros("csr", (4, 2))
    sparse = {"rows": rows, "cells": cells, "empty_rows": empty_rows, "empty_cells": empty_cells}
    mx.nd.save(str(OLDER / "sparse.params"), sparse)
    loaded = mx.nd.load(str(OLDER / "sparse.params"))
    expect("sparse.params", {name: of(array.asnumpy()) for name, array in loaded.items()})
    _mxnet_by_hand(mx, base.astype("f4"))
    mx.npx.set_np()
    news = {"scalar": mx.np.array(3.5), "empty": mx.np.zeros((0, 3)), "flags": mx.np.array([True, False])}
    mx.npx.save(str(OLDER / "numpy.params"), news)
    expect(
        "numpy.params", {name: of(array.asnumpy()) for name, array in mx.npx.load(str(OLDER / "numpy.params")).items()}
    )


def _mxnet(array: Any) -> tuple[str, Any]:
    if "bfloat16" not in str(array.dtype):
        return of(array.asnumpy())
    return "BF16", (array.astype("float32").asnumpy().view(np.uint32) >> 16).astype(np.uint16)


def _mxnet_by_hand(mx: Any, values: Any) -> None:
    """The two forms before version 1.0, which today's library only reads."""
    end = struct.pack("<iii", 1, 0, 0) + values.tobytes()  # on the CPU, number 0, float32
    first = struct.pack("<III", 2, *values.shape) + end
    second = struct.pack("<IIqq", V1, 2, *values.shape) + end
    names = [b"first", b"second"]
    content = struct.pack("<QQQ", 0x112, 0, 2) + first + second + struct.pack("<Q", 2)
    content += b"".join(struct.pack("<Q", len(name)) + name for name in names)
    (OLDER / "ancient.params").write_bytes(content)
    found = mx.nd.load(str(OLDER / "ancient.params"))
    tensors = {name: of(array.asnumpy()) for name, array in found.items()}
    same("ancient.params", tensors, {"first": of(values), "second": of(values)})
    expect("ancient.params", tensors)


# Caffe


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _field(number: int, value: int | bytes) -> bytes:
    """One field of a protobuf message: a varint, or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _blob(values: Any, *, old_shape: bool = False) -> bytes:
    if old_shape:
        shape = b"".join(_field(1 + axis, size) for axis, size in enumerate((1,) * (4 - values.ndim) + values.shape))
    else:
        shape = _field(7, _field(1, b"".join(_varint(size) for size in values.shape)))
    return shape + _field(8 if values.dtype == np.float64 else 5, values.tobytes())


PROTOTXT = """
input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 5 } }
"""
V1_CONVOLUTION, V1_INNER_PRODUCT = 4, 14


def make_caffe() -> None:
    """Models of two generations of layers, and one in float16, which OpenCV writes."""
    import cv2

    random = np.random.default_rng(0)
    conv, bias = random.normal(size=(4, 3, 3, 3)).astype("f4"), random.normal(size=4).astype("f4")
    fc, fc_bias = random.normal(size=(5, 144)).astype("f4"), random.normal(size=5).astype("f4")
    blobs = {"conv": [conv, bias], "fc": [fc, fc_bias]}
    head = _field(1, b"net")

    def new(name: str, type: str) -> bytes:
        stored = b"".join(_field(7, _blob(values)) for values in blobs[name])
        return _field(100, _field(1, name.encode()) + _field(2, type.encode()) + stored)

    def old(name: str, type: int) -> bytes:
        stored = b"".join(_field(6, _blob(values, old_shape=True)) for values in blobs[name])
        return _field(2, _field(4, name.encode()) + _field(5, type) + stored)

    files = {
        "layers.caffemodel": head + new("conv", "Convolution") + new("fc", "InnerProduct"),
        "v1.caffemodel": head + old("conv", V1_CONVOLUTION) + old("fc", V1_INNER_PRODUCT),
    }
    prototxt = OLDER / "net.prototxt"
    prototxt.write_text(PROTOTXT)
    try:
        for file, content in files.items():
            (OLDER / file).write_bytes(content)
            shapes = {} if file == "layers.caffemodel" else {1: (1, 1, 1), 2: (1, 1)}
            wanted = {
                f"{name}/{number}": of(values.reshape(shapes.get(values.ndim, ()) + values.shape))
                for name, both in blobs.items()
                for number, values in enumerate(both)
            }
            _caffe_check(cv2, prototxt, OLDER / file, wanted)
            expect(file, wanted)
        cv2.dnn.shrinkCaffeModel(str(OLDER / "layers.caffemodel"), str(OLDER / "half.caffemodel"))
        half = {f"{n}/{i}": of(values.astype("f2")) for n, both in blobs.items() for i, values in enumerate(both)}
        _caffe_check(cv2, prototxt, OLDER / "half.caffemodel", half)
        expect("half.caffemodel", half)
    finally:
        prototxt.unlink()


def _caffe_check(cv2: Any, prototxt: Path, model: Path, wanted: Expected) -> None:
    """Every blob as OpenCV's network has it."""
    network = cv2.dnn.readNetFromCaffe(str(prototxt), str(model))
    for name, (_, values) in wanted.items():
        layer, _, number = name.partition("/")
        found = network.getParam(layer, int(number))
        assert np.array_equal(found.reshape(-1), values.reshape(-1).astype(np.float32)), (model, name)


# TensorFlow


def make_tensorflow() -> None:
    """A checkpoint of variables of all types, and one of the first version's Saver in two parts."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    base = random.normal(size=(2, 3)) * 7
    names = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "uint16",
             "uint32", "uint64", "bool", "complex64", "complex128", "float8_e5m2", "float8_e4m3fn")  # fmt: skip
    values = {f"as_{name}": tf.cast(tf.constant(base), tf.as_dtype(name)) for name in names}
    values |= {"scalar": tf.constant(2.5), "empty": tf.zeros([0, 3]), "text": tf.constant(["a", "bc"])}
    variables = {name: tf.Variable(value) for name, value in values.items()}
    tf.train.Checkpoint(**variables).write(str(OLDER / "tf2"))
    expect("tf2.index", _tensorflow(tf, "tf2"))
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        large = v1.get_variable(
            "large", [4, 3], partitioner=v1.fixed_size_partitioner(2), initializer=v1.random_normal_initializer(seed=0)
        )
        columns = v1.get_variable(
            "columns", [3, 300], tf.int8, partitioner=v1.fixed_size_partitioner(3, axis=1),
            initializer=lambda shape, **_: tf.cast(tf.random.stateless_normal(shape, (0, 1), stddev=50.0), tf.int8),
        )  # fmt: skip
        with v1.device("/cpu:0"):
            small = v1.get_variable("layer/small", initializer=tf.constant([1.0, 2.0]))
        session.run(v1.global_variables_initializer())
        v1.train.Saver([*large, *columns, small], sharded=True).save(
            session, str(OLDER / "tf1.ckpt"), write_meta_graph=False, write_state=False
        )
    expect("tf1.ckpt.index", _tensorflow(tf, "tf1.ckpt"))


def _tensorflow(tf: Any, prefix: str) -> dict[str, tuple[str, Any]]:
    reader = tf.train.load_checkpoint(str(OLDER / prefix))
    found: dict[str, tuple[str, Any]] = {}
    for name, type in sorted(reader.get_variable_to_dtype_map().items()):
        if type == tf.string:
            continue
        value = np.asarray(reader.get_tensor(name))
        kind, bits = BITS.get(type.name, (None, None))
        found[name] = of(value) if kind is None else (kind, value.view(bits))
    return found


if __name__ == "__main__":
    OLDER.mkdir(parents=True, exist_ok=True)
    {"paddle": make_paddle, "mxnet": make_mxnet, "caffe": make_caffe, "tensorflow": make_tensorflow}[sys.argv[1]]()
