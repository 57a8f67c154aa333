"""Opening a Hugging Face checkpoint folder: its config and the headers of its SafeTensors or PyTorch files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.convert.weightfiles import list_names, member, no_checkpoint, read_index
from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import CONFIG, contents
from llmkit.formats.safetensors import read_header
from llmkit.formats.strictjson import read_json_object
from llmkit.types import TensorInfo


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as its headers describe it; no weight has been read.

    config: config.json as it stands. generation_config: generation_config.json, empty if there is none.
    tensors: by name, file by file, in the order of their bytes. files: the files of weights, in that order.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: tuple[Path, ...]
    generation_config: dict[str, Any]

    @property
    def n_params(self) -> int:
        """Number of weights, as stored: a tied output matrix that is not in the file does not count."""
        return sum(info.n_elements for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Read config.json, generation_config.json and all headers of weights in `folder`.

    Weights are looked for as transformers does: `model.safetensors`, else the shards that
    `model.safetensors.index.json` names; else one SafeTensors file of another name, or a complete set of
    numbered shards without an index; else PyTorch's `pytorch_model.bin`, its index, or the one file of its kind.
    Every entry of an index must be in the shard it names, and no tensor in two files.

    Raises ModelNotFoundError when there is no such folder, UnsupportedError for other kinds of checkpoint
    (pickles that ask for code, adapters, GGUF; the message says what to do), FormatError for all that is damaged,
    missing, or leads out of the folder, DependencyError for a PyTorch checkpoint without torch.
    """
    folder = Path(folder)
    found = contents(list_names(folder))
    if not found.has_config:
        raise no_checkpoint(folder, found)
    config = read_json_object(member(folder, CONFIG))
    generation_config: dict[str, Any] = {}
    if "generation_config.json" in found.names:
        generation_config = read_json_object(member(folder, "generation_config.json"))
    weight_map: dict[str, str] = {}
    shards = found.weights
    if found.index:
        weight_map = read_index(folder, found.index)
        shards = tuple(sorted(set(weight_map.values())))
    elif not shards:
        raise no_checkpoint(folder, found)
    files = tuple(member(folder, shard) for shard in shards)
    tensors = _read_headers(files)
    for name, shard in weight_map.items():
        _check_index_entry(name, folder / shard, tensors, found.index)
    if not tensors:
        raise FormatError(files[0], "holds no tensors")
    return Checkpoint(folder, config, tensors, files, generation_config)


def _read_headers(files: tuple[Path, ...]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path in files:
        for name, info in _read_header(path).items():
            if name in tensors:
                raise FormatError(path, f"is also in {tensors[name].path.name}", tensor=name)
            tensors[name] = info
    return tensors


def _read_header(path: Path) -> dict[str, TensorInfo]:
    if path.suffix == ".safetensors":
        return read_header(path).tensors
    from llmkit.formats.pytorch import read_tensors

    return read_tensors(path)


def _check_index_entry(name: str, path: Path, tensors: dict[str, TensorInfo], index: str | None) -> None:
    found = tensors.get(name)
    if found is None:
        raise FormatError(path, f"is missing, though {index} says it is here", tensor=name)
    if found.path != path:
        raise FormatError(path, f"is in {found.path.name}, though {index} says it is here", tensor=name)
