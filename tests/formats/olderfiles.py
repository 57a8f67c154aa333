"""Files of older formats: the golden ones with what is in them, and small ones that the tests put together."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.older import tables
from llmkit.formats.safetensors import read_header

OLDER = Path(__file__).resolve().parent.parent / "golden" / "older"
# With their kinds.
FILES = {
    "program.pdiparams": "paddle", "legacy.pdiparams": "paddle", "state2.pdparams": "paddle",
    "state3.pdparams": "paddle", "state4.pdparams": "paddle", "nested.pdparams": "paddle",
    "python2.pdparams": "paddle", "slices.pdparams": "paddle", "dense.params": "mxnet", "sparse.params": "mxnet",
    "ancient.params": "mxnet", "numpy.params": "mxnet", "unnamed.params": "mxnet", "layers.caffemodel": "caffe",
    "v1.caffemodel": "caffe", "half.caffemodel": "caffe", "tf1.ckpt.index": "tensorflow", "tf2.index": "tensorflow",
}  # fmt: skip
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def expected(file: str) -> Tensors:
    """Type, shape and bytes of each tensor, as the format's own library reads them."""
    with np.load(OLDER / f"{file}.npz", allow_pickle=False) as stored:
        arrays = [stored[str(number)] for number in range(len(stored["names"]))]
        return {
            str(name): (str(type), values.shape, values.tobytes())
            for name, type, values in zip(stored["names"], stored["types"], arrays, strict=True)
        }


def extracted(path: Path) -> Tensors:
    """The same of a SafeTensors file."""
    content = path.read_bytes()
    tensors = read_header(path).tensors.values()
    return {t.name: (t.dtype, t.shape, content[t.offset : t.offset + t.nbytes]) for t in tensors}


def text(value: str) -> bytes:
    """A text in a pickle of protocol 4."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def pickled_array(values: NDArray[Any], *, as_text: bool = False, order: str = "<") -> bytes:
    """The opcodes that make an array; `as_text` as protocol 2 has its bytes."""
    data = values.tobytes()
    content = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01("
    content += b"".join(number(size) for size in values.shape) + b"tcnumpy\ndtype\n" + text(values.dtype.str[1:])
    content += b"\x89\x88\x87R(K\x03" + text(order) + b"NNN" + number(-1) * 2 + b"K\x00tb\x89"
    if not as_text:
        return content + b"\x8e" + struct.pack("<Q", len(data)) + data + b"tb"
    return content + b"c_codecs\nencode\n" + text(data.decode("latin-1")) + text("latin1") + b"\x86Rtb"


def pickled(entries: Mapping[str, bytes]) -> bytes:
    """A dictionary of values that are opcodes already."""
    return b"\x80\x04}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


def mxnet_file(arrays: list[bytes], names: list[str]) -> bytes:
    """A `.params` file."""
    content = struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(arrays) + struct.pack("<Q", len(names))
    return content + b"".join(struct.pack("<Q", len(name.encode())) + name.encode() for name in names)


def mxnet_array(values: NDArray[np.float32]) -> bytes:
    """A dense array of version 2."""
    shape = struct.pack(f"<i{values.ndim}q", values.ndim, *values.shape)
    return struct.pack("<Ii", 0xF993FAC9, 0) + shape + struct.pack("<iii", 1, 0, 0) + values.tobytes()


def varint(value: int) -> bytes:
    """An unsigned number of protobuf's."""
    value &= (1 << 64) - 1
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def proto(field: int, value: int | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(field << 3) + varint(value)
    return varint(field << 3 | 2) + varint(len(value)) + value


def caffe_layer(name: str, *blobs: bytes) -> bytes:
    """A layer of a network."""
    return proto(100, proto(1, name.encode()) + b"".join(proto(7, blob) for blob in blobs))


def caffe_blob(values: NDArray[np.float32]) -> bytes:
    """A blob with its shape."""
    shape = proto(7, proto(1, b"".join(varint(size) for size in values.shape)))
    return shape + proto(5, values.tobytes())


def table(blocks: Sequence[Mapping[bytes, bytes]]) -> bytes:
    """A table of LevelDB's kind, with its entries block by block."""
    content, handles = b"", {}
    for entries in blocks:
        handles[max(entries)] = _handle(content, packed := _block(entries))
        content += packed
    statistics = _handle(content, packed := _block({}))
    content += packed
    footer = statistics + _handle(content, packed := _block(handles))
    return content + packed + footer.ljust(40, b"\0") + tables.MAGIC


def _handle(content: bytes, packed: bytes) -> bytes:
    return varint(len(content)) + varint(len(packed) - 5)


def _block(entries: Mapping[bytes, bytes]) -> bytes:
    content, before = b"", b""
    for key, value in entries.items():
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before))
        )
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    content += struct.pack("<II", 0, 1) + b"\0"
    checksum = tables.crc32c(content)
    return content + struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def paddle_tensor(values: NDArray[np.float32]) -> bytes:
    """A tensor of a `.pdiparams` file."""
    described = proto(1, 5) + b"".join(proto(2, size) for size in values.shape)
    return struct.pack("<IQIi", 0, 0, 0, len(described)) + described + values.tobytes()
