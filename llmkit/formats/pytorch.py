"""PyTorch checkpoints: where `torch.save` put the tensors of a state dict, so that they can be read without torch.

Since PyTorch 1.6 a checkpoint is a ZIP archive: a pickle says what the tensors are, and their bytes lie uncompressed in
members of their own. torch reads the pickle here, with `weights_only`, which builds tensors and runs no code, and on
the meta device, which reads no weight; it notes for each storage where its bytes begin. That is compared with the
archive's own directory.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Final

from llmkit.errors import DependencyError, FormatError, LlmkitError, UnsupportedError
from llmkit.formats.files import foreign_content, open_regular, read_exactly
from llmkit.types import TensorInfo

_ZIP: Final = b"PK\x03\x04"
_LEGACY: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of the magic number of torch/serialization.py
_MAX_PICKLE_BYTES: Final = 100_000_000
_LOCAL_HEADER: Final = 30  # bytes before the name of a member, where its data is (APPNOTE.TXT, 4.3.7)

# torch's dtype -> SafeTensors' name for it, bytes of an element
_DTYPES: Final = {
    "float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1), "float8_e8m0fnu": ("F8_E8M0", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "int64": ("I64", 8), "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1), "uint8": ("U8", 1),
    "uint16": ("U16", 2), "uint32": ("U32", 4), "uint64": ("U64", 8), "bool": ("BOOL", 1),
    "complex64": ("C64", 8), "complex128": ("C128", 16),  # the second is no name of SafeTensors
}  # fmt: skip
# Keys under which training scripts put the state dict beside other things.
_NESTED: Final = ("state_dict", "model_state_dict", "model", "module")


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint that `torch.save` wrote, in the order of their bytes; no weight is read.

    Raises DependencyError without torch, UnsupportedError for the format before PyTorch 1.6, for TorchScript, and for a
    pickle that asks for code (which it names), FormatError for a file that is damaged.
    """
    _check_start(path)
    members = _members(path)
    found = []
    for name, tensor in _state_dict(path, _load(path)).items():
        found.append(_info(path, name, tensor, members))
    return {info.name: info for info in sorted(found, key=lambda info: (info.offset, info.nbytes))}


def _check_start(path: Path) -> None:
    file, size = open_regular(path)
    with file:
        start = read_exactly(file, min(size, 64), path)
    if start.startswith(_ZIP):
        return
    if start.startswith(_LEGACY):
        old, new = repr(str(path)), repr(f"{path}.new")
        rewrite = f"import os, torch; torch.save(torch.load({old}, weights_only=True), {new}); os.replace({new}, {old})"
        raise UnsupportedError(
            f"{path}: was written in the format before PyTorch 1.6. Write it anew, which runs no code of the file:\n"
            f"  python -c {quote(rewrite)}"
        )
    raise FormatError(path, foreign_content(start) or "is no PyTorch checkpoint")


def _members(path: Path) -> dict[int, int]:
    """Offset and size of every uncompressed member of the archive's data. Raises FormatError, UnsupportedError."""
    members: dict[int, int] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for entry in archive.infolist():
                folder, _, name = entry.filename.partition("/")
                if name == "constants.pkl":
                    raise UnsupportedError(f"{path}: is a TorchScript program, not a checkpoint of weights")
                if name == "byteorder" and archive.read(entry) == b"big":
                    raise UnsupportedError(f"{path}: holds big-endian weights; save it anew on a little-endian machine")
                if name == "data.pkl" and entry.file_size > _MAX_PICKLE_BYTES:
                    raise FormatError(path, f"a pickle of {entry.file_size:,} bytes; {_MAX_PICKLE_BYTES:,} are allowed")
                if not name.startswith("data/"):
                    continue
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise UnsupportedError(f"{path}: {folder}/{name} is compressed, which torch.save does not do")
                file.seek(entry.header_offset)
                header = read_exactly(file, _LOCAL_HEADER, path)
                lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                members[entry.header_offset + _LOCAL_HEADER + lengths] = entry.file_size
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise FormatError(path, f"is no whole ZIP archive, as PyTorch checkpoints are: {error}") from error
    return members


def _load(path: Path) -> Any:
    """What the checkpoint's pickle says, with tensors on the meta device."""
    try:
        import torch
        from torch.serialization import get_unsafe_globals_in_checkpoint
    except ImportError:
        raise DependencyError("torch", "pytorch", f"{path}: a PyTorch checkpoint") from None
    try:
        wanted = sorted(get_unsafe_globals_in_checkpoint(str(path)))
        if not wanted:
            return torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # a damaged pickle may make anything of it
        asked = re.search(r"Unsupported (?:global|class|operand|function)\S*:? ?(?:GLOBAL )?([\w.]+)", str(error))
        if asked is None:
            said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise FormatError(path, f"cannot be read as a PyTorch checkpoint: {said}") from error
        wanted = [asked[1]]
    raise UnsupportedError(
        f"{path}: its pickle asks for {', '.join(wanted[:5])}, code that loading it would run; llmkit loads weights "
        "only. If you trust its source, save its state dict alone (safetensors.torch.save_file) and give that file"
    )


def _state_dict(path: Path, loaded: Any) -> Mapping[str, Any]:
    """The tensors by name, at the top or under one of the usual keys. Raises UnsupportedError."""
    import torch

    if isinstance(loaded, Mapping) and not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        nested = [loaded[key] for key in _NESTED if isinstance(loaded.get(key), Mapping)]
        loaded = nested[0] if len(nested) == 1 else loaded
    if not isinstance(loaded, Mapping):
        raise UnsupportedError(f"{path}: holds a {type(loaded).__name__}; a checkpoint of weights has tensors by name")
    found = {}
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            found[name] = value
        elif value is not None and not isinstance(value, bool | int | float | str):
            raise UnsupportedError(
                f"{path}: entry {str(name)[:80]!r} is a {type(value).__name__}; a checkpoint of weights has tensors by "
                "name"
            )
    return found


def _info(path: Path, name: str, tensor: Any, members: Mapping[int, int]) -> TensorInfo:
    """Where a tensor on the meta device lies in the file, checked against the archive's directory."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or tensor.is_quantized or str(tensor.layout) != "torch.strided":
        raise UnsupportedError(f"{path}: tensor {name!r} is {dtype}, {tensor.layout}, which llmkit does not read")
    stored, width = _DTYPES[dtype]
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None:
        raise LlmkitError(
            f"{path}: this torch does not tell where tensors lie; update it: pip install 'llmkit[pytorch]'"
        )
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    reach = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    begin = tensor.storage_offset()
    if tensor.numel() == 0:
        return TensorInfo(name, stored, shape, path, 0, 0)
    if start not in members or (begin + reach) * width > members[start]:
        raise FormatError(path, "does not lie within a part of the archive; the file is damaged", tensor=name)
    return TensorInfo(
        name,
        stored,
        shape,
        path,
        start + begin * width,
        tensor.numel() * width,
        None if tensor.is_contiguous() else strides,
    )
