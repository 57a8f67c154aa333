"""Exported programs (.pt2) and TorchScript of strangers: refused if they could do more than compute on tensors.

torch's loaders resolve names in such files to functions, evaluate formulas of sizes and unpickle some members. So
before they see a file, all that is in it is held against what the models that llmkit writes have.
"""

from __future__ import annotations

import ast
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.strictjson import parse_json

_MAX_TEXT: Final = 256 << 20
_OPERATORS: Final = frozenset(
    {
        *("__and__", "add", "arange", "cat", "clamp", "div", "embedding", "gelu", "gt", "index", "index_copy_", "le"),
        *("linear", "matmul", "mul", "permute", "reshape", "rms_norm", "scaled_dot_product_attention", "select"),
        *("sigmoid", "silu", "size", "slice", "softmax", "split_with_sizes", "squeeze", "sub", "sum", "sym_size"),
        *("tanh", "topk", "where"),
    }
)
_TARGET: Final = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+")
# Sizes as SymPy writes them: sums, products and bounds of numbers and symbols.
_SIZE: Final = re.compile(
    r"(?:Add|Mul|Min|Max|Integer|Symbol|'s\d+'|(?:positive|integer|nonnegative)=True|-?\d+|[(), ])*"
)
_PROGRAM_MEMBERS: Final = re.compile(
    r"(?:archive_format|archive_version|byteorder|\.data/(?:version|serialization_id)|models/model\.json"
    r"|data/weights/weight_\d+|data/(?:weights|constants)/model_(?:weights|constants)_config\.json"
    r"|data/sample_inputs/model\.pt)"
)
_SCRIPT_CALLS: Final = frozenset(
    {*(f"torch.{name}" for name in _OPERATORS), "torch.device", "ops.prim.NumToTensor", "annotate", "int"}
)


def check_program(path: Path) -> None:
    """Raise FormatError for damage, UnsupportedError for a program that is more than operations on tensors."""
    with _archive(path) as archive:
        members = _members(archive, path)
        for name, info in members.items():
            if _PROGRAM_MEMBERS.fullmatch(name) is None:
                raise _refused(path, f"a member {name!r:.80}")
            if name.endswith("/sample_inputs/model.pt") and info.file_size:
                raise _refused(path, "pickled sample inputs")
            if name.endswith("_config.json"):
                for values in _objects(_json(archive, info, path)):
                    if values.get("use_pickle"):
                        raise _refused(path, "pickled weights")
        if "models/model.json" not in members:
            raise FormatError(path, "has no models/model.json: this is no exported program")
        for values in _objects(_json(archive, members["models/model.json"], path)):
            _check_object(values, path)


def _check_object(values: dict[str, Any], path: Path) -> None:
    target, size = values.get("target"), values.get("expr_str")
    if isinstance(target, str):
        found = _TARGET.fullmatch(target)
        if found is None or found[1] not in _OPERATORS:
            raise _refused(path, f"the operation {target!r:.80}")
    if isinstance(size, str) and _SIZE.fullmatch(size) is None:
        raise _refused(path, f"the size {size!r:.80}")
    for key in ("guards_code", "custom_obj_values", "treespec_namedtuple_fields"):
        if values.get(key):
            raise _refused(path, f"{key} {values[key]!r:.80}")


def check_script(path: Path) -> None:
    """Raise FormatError for damage, UnsupportedError for a script that is more than operations on tensors."""
    with _archive(path) as archive:
        code = [info for name, info in _members(archive, path).items() if name.startswith("code/")]
        texts = [_read(archive, info, path) for info in code if info.filename.endswith(".py")]
    if not texts:
        raise FormatError(path, "has no code: this is no TorchScript")
    for text in texts:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise FormatError(path, f"its code cannot be read: {error}") from error
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name != "forward":
                raise _refused(path, f"the function {node.name!r:.80}")
            if isinstance(node, ast.Call) and _dotted(node.func) not in _SCRIPT_CALLS:
                raise _refused(path, f"a call of {ast.unparse(node.func)!r:.80}")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise FormatError(path, f"is no zip archive, or a damaged one: {error}") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """By their names below the folder that all lie in."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if name in found:
            raise FormatError(path, f"has a member {name!r:.80} twice")
        found[name] = info
    return found


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.file_size > _MAX_TEXT:
        raise FormatError(
            path, f"the member {info.filename!r:.80} is larger than {_MAX_TEXT:,} bytes, or compressed oddly"
        )
    try:
        return archive.read(info)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise FormatError(path, f"the member {info.filename!r:.80} is damaged: {error}") from error


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Any:
    return parse_json(_read(archive, info, path), path, what=info.filename)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a value of JSON, itself included; no recursion, since depth is the file's choice."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _refused(path: Path, what: str) -> UnsupportedError:
    return UnsupportedError(f"{path}: has {what}, which models that llmkit writes do not have, and is not loaded")
