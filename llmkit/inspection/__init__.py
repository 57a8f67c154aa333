"""What a model file or folder holds: architecture, sizes, types, tokenizer, template; no weight is read.

Pure functions from a path to a frozen `Inspection`; `llmkit.commands.inspect` prints it.
"""

from __future__ import annotations

from pathlib import Path

from llmkit.errors import FormatError, ModelNotFoundError, UnsupportedError
from llmkit.formats.checkpointadvice import why_no_checkpoint
from llmkit.formats.checkpointfiles import CONFIG, MANIFEST
from llmkit.hubcache import folder_contents
from llmkit.inspection.records import ChatTemplate, GGUFDetails, Hyperparameters, Inspection, Tokenizer, TypeUsage

__all__ = [
    "ChatTemplate",
    "GGUFDetails",
    "Hyperparameters",
    "Inspection",
    "Tokenizer",
    "TypeUsage",
    "inspect_path",
]


def inspect_path(path: Path | str) -> Inspection:
    """Inspect a GGUF or SafeTensors file, a folder of these, a Hugging Face checkpoint, or a folder of ONNX or another
    deployment format.

    Of older formats too: files of PyTorch, PaddlePaddle, MXNet and Caffe, and TensorFlow checkpoints, by any of their
    files or what all their names begin with. A folder that holds exactly one GGUF model stands for it.

    Raises ModelNotFoundError when there is nothing at `path`, or several models, UnsupportedError for other kinds of
    files, FormatError for damaged ones.
    """
    path = Path(path)
    if path.is_dir():
        return _inspect_folder(path)
    if path.exists():
        return _inspect_file(path)
    from llmkit.formats.older import find_older
    from llmkit.inspection.older import inspect_older

    older = find_older(path)
    if older is None:
        raise ModelNotFoundError(f"{path}: no such file or folder")
    return inspect_older(*older)


def _inspect_file(path: Path) -> Inspection:
    from llmkit.formats.files import foreign_content, open_regular, read_exactly
    from llmkit.formats.older import find_older
    from llmkit.inspection.checkpoint import inspect_safetensors
    from llmkit.inspection.gguf import inspect_gguf
    from llmkit.inspection.older import inspect_older

    file, size = open_regular(path)
    with file:
        head = read_exactly(file, min(size, 64), path)
    suffix = path.suffix.lower()
    if head.startswith(b"GGUF") or suffix == ".gguf":
        return inspect_gguf(path)
    if suffix == ".safetensors" or head[8:10] == b'{"':
        return inspect_safetensors(path)
    if (path.parent / MANIFEST).is_file():
        raise UnsupportedError(f"{path} is a part of a model; give the folder: {path.parent}")
    foreign = foreign_content(head)
    older = find_older(path)
    if older is not None and (foreign is None or head.startswith(b"PK")):
        return inspect_older(*older)
    if path.name == CONFIG or path.name.endswith(".index.json"):
        raise UnsupportedError(f"{path} is a part of a checkpoint without weights; give the folder: {path.parent}")
    raise UnsupportedError(f"{path}: {foreign or 'neither a GGUF nor a SafeTensors file'}")


def _inspect_folder(folder: Path) -> Inspection:
    from llmkit.inspection.checkpoint import inspect_checkpoint, inspect_safetensors_folder
    from llmkit.inspection.exported import inspect_exported
    from llmkit.inspection.gguf import inspect_gguf
    from llmkit.inspection.onnx import inspect_onnx

    found = folder_contents(folder)
    if found.is_genai:
        return inspect_onnx(folder)
    if found.is_exported:
        return inspect_exported(folder)
    safetensors = sorted(n for n in found.names if "/" not in n and n.endswith(".safetensors"))
    if not safetensors and len(found.ggufs) == 1:
        return inspect_gguf(folder / found.ggufs[0])
    if not safetensors and found.ggufs:
        listed = "".join(f"\n  {folder / name}" for name in found.ggufs)
        raise ModelNotFoundError(f"{folder} holds several GGUF files; give one of them:{listed}")
    if safetensors and not found.has_config:
        return inspect_safetensors_folder(folder, safetensors)
    try:
        return inspect_checkpoint(folder)
    except FormatError:
        if found.has_config or safetensors:
            raise
        raise ModelNotFoundError(f"{folder} {why_no_checkpoint(found, folder).reason}") from None
