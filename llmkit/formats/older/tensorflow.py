"""TensorFlow's checkpoints: `X.index` says what tensors there are, `X.data-00000-of-00002` and so on hold them.

The index is a table of LevelDB's kind with messages of tensor_bundle.proto; TensorFlow itself reads both here, by
`tf.train.load_checkpoint`, which runs no graph. It gives a tensor as a whole, so that much memory is taken at a time.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import DependencyError, FormatError, UnsupportedError
from llmkit.formats.older.base import TensorFile, Values, by_name, n_bytes_of
from llmkit.types import TensorInfo

_MAGIC: Final = 0xDB4775248B80FB57.to_bytes(8, "little")  # ends every table (leveldb, doc/table_format.md)
_DATA: Final = re.compile(r"(?P<prefix>.+)\.data-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})")
# TensorFlow's names of types -> SafeTensors'.
_DTYPES: Final = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "complex128": "C128",
}  # fmt: skip


def index_of(path: Path) -> Path | None:
    """The index of the checkpoint that `path` is a file of, or the beginning of whose files' names; None if of none."""
    data = _DATA.fullmatch(path.name)
    if data is not None and path.is_file():
        index = path.with_name(f"{data['prefix']}.index")
        return index if index.is_file() else None
    index = path if path.suffix == ".index" else path.with_name(f"{path.name}.index")
    if (index != path and path.exists()) or not index.is_file():
        return None
    return index if _data_files(index) or _ends_as_a_table(index) else None


def read_tensorflow(index: Path) -> TensorFile:
    """The tensors of a checkpoint by name, as `tf.train.list_variables` has them; texts are left out with a note.

    Offsets are not known. Raises DependencyError without TensorFlow, FormatError for damage or missing files.
    """
    files = _all_data_files(index)
    reader = _open(index)
    try:
        dtypes = {name: type.name for name, type in reader.get_variable_to_dtype_map().items()}
        shapes = {name: tuple(map(int, shape)) for name, shape in reader.get_variable_to_shape_map().items()}
    except Exception as error:  # TensorFlow's own, of many kinds
        raise _damaged(index, error) from error
    tensors, values, others = [], {}, []
    for name in sorted(dtypes):
        dtype = _DTYPES.get(dtypes[name])
        if dtype is None or name not in shapes:
            others.append(f"{name} ({dtypes[name]})")
            continue
        n_bytes = n_bytes_of(index, name, dtype, shapes[name])
        tensors.append(TensorInfo(name, dtype, shapes[name], index, 0, n_bytes))
        values[name] = _Variable(index, name, n_bytes)
    notes = [f"entries that are no tensors of numbers are left out: {', '.join(others)}"] if others else []
    found: dict[str, Values] = dict(values)
    return TensorFile("tensorflow", index, (index, *files), by_name(index, tensors), found, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Variable:
    """The values of one tensor."""

    index: Path
    name: str
    n_bytes: int

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """See `Values`. The whole tensor is read."""
        reader = _open(self.index)
        try:
            found = np.ascontiguousarray(reader.get_tensor(self.name)).reshape(-1).view(np.uint8)
        except Exception as error:
            raise _damaged(self.index, error, self.name) from error
        if found.nbytes != self.n_bytes:
            raise FormatError(self.index, f"has {found.nbytes:,} bytes, not {self.n_bytes:,}", tensor=self.name)
        return found[first : first + count]


def _open(index: Path) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read at import: else it tells of the CPU on standard error
    try:
        import tensorflow as tf
    except ImportError:
        raise DependencyError("tensorflow", "tensorflow", f"{index}: a TensorFlow checkpoint") from None
    try:
        return tf.train.load_checkpoint(str(index.with_suffix("")))
    except Exception as error:  # TensorFlow's own, of many kinds
        raise _damaged(index, error) from error


def _damaged(index: Path, error: Exception, tensor: str | None = None) -> FormatError:
    said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return FormatError(index, f"cannot be read as a TensorFlow checkpoint: {said}", tensor=tensor)


def _data_files(index: Path) -> dict[str, int]:
    """The names of the files of values beside an index, each with the number of files that it is one of."""
    prefix, found = index.name.removesuffix(".index"), {}
    for path in index.parent.iterdir():
        data = _DATA.fullmatch(path.name)
        if data is not None and data["prefix"] == prefix:
            found[path.name] = int(data["count"])
    return found


def _all_data_files(index: Path) -> list[Path]:
    """The files of values in order. Raises FormatError if one is missing, UnsupportedError for those of several."""
    found = _data_files(index)
    counts = set(found.values())
    if len(counts) > 1:
        raise UnsupportedError(f"{index}: files of several checkpoints of that name lie beside it: leave those of one")
    prefix, count = index.name.removesuffix(".index"), next(iter(counts), 1)
    wanted = [f"{prefix}.data-{number:05d}-of-{count:05d}" for number in range(count)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise FormatError(index, f"its values are missing: {', '.join(missing[:3])}; put them into the same folder")
    return [index.with_name(name) for name in wanted]


def _ends_as_a_table(index: Path) -> bool:
    try:
        with index.open("rb") as file:
            file.seek(max(0, index.stat().st_size - len(_MAGIC)))
            return file.read() == _MAGIC
    except OSError:
        return False
