"""Older formats: files of tensors that newer ones have replaced, read so that their tensors can be taken out.

One module a format. Each returns a `TensorFile`: names, types, shapes, and where the bytes are. Nothing in a file is
executed, and nothing is allocated by a number that the file does not bear out.
"""

from __future__ import annotations

from pathlib import Path

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import contents
from llmkit.formats.files import foreign_content, open_regular, read_exactly
from llmkit.formats.older.base import OlderKind, TensorFile, Values
from llmkit.formats.older.tensorflow import index_of

__all__ = ["OlderKind", "TensorFile", "Values", "find_older", "read_older"]

# What each is, by the name of its kind.
_BY_SUFFIX: dict[str, OlderKind] = {
    ".pdiparams": "paddle",
    ".pdparams": "paddle",
    ".pdopt": "paddle",
    ".params": "mxnet",
    ".caffemodel": "caffe",
}


def find_older(path: Path) -> tuple[Path, OlderKind] | None:
    """The file that `path` names, by its suffix, if it is of an older format; None if not, or if there is none.

    A TensorFlow checkpoint may be named as TensorFlow does it, by what its files' names begin with, or by any of them.
    """
    index = index_of(path)
    if index is not None:
        return index, "tensorflow"
    if not path.is_file():
        return None
    if path.name == "__params__":
        return path, "paddle"
    kind = _BY_SUFFIX.get(path.suffix.lower())
    name = path.name.lower().removesuffix(".tar")  # model.pth.tar is no archive of tar's, just called so
    if kind is None and contents([name]).pickles:
        kind = "pytorch"
    return None if kind is None else (path, kind)


def read_older(path: Path, kind: OlderKind) -> TensorFile:
    """What the file holds; see `find_older`.

    Raises FormatError for damage, UnsupportedError for what llmkit does not read, and for PyTorch's files
    DependencyError where torch is missing.
    """
    file, size = open_regular(path)
    with file:
        start = read_exactly(file, min(size, 64), path)
    foreign = foreign_content(start)
    if foreign is not None and not (kind == "pytorch" and start.startswith(b"PK")):
        raise FormatError(path, foreign)
    match kind:
        case "pytorch":
            from llmkit.formats.pytorch import read_tensors

            return TensorFile("pytorch", path, (path,), tuple(read_tensors(path).values()))
        case "mxnet":
            from llmkit.formats.older.mxnet import read_mxnet

            return read_mxnet(path)
        case "caffe":
            from llmkit.formats.older.caffe import read_caffe

            return read_caffe(path)
        case "tensorflow":
            from llmkit.formats.older.tensorflow import read_tensorflow

            return read_tensorflow(path)
    return _read_paddle(path)


def _read_paddle(path: Path) -> TensorFile:
    from llmkit.formats.older.paddle import is_pdiparams, read_pdiparams
    from llmkit.formats.older.pdparams import read_pdparams

    return read_pdiparams(path) if is_pdiparams(path) else read_pdparams(path)
