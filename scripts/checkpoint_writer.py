"""Writes SafeTensors checkpoints, one tensor in memory at a time, for the scripts that make test models.

Deliberately independent of llmkit: what llmkit reads in the tests was not written by llmkit. The layout is the
published one (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header, the data.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# name on the command line -> (SafeTensors dtype, torch name as in config.json, bytes per weight)
DTYPES: Final[dict[str, tuple[str, str, int]]] = {
    "f32": ("F32", "float32", 4),
    "f16": ("F16", "float16", 2),
    "bf16": ("BF16", "bfloat16", 2),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: `values()` computes its float32 weights, `shape` has the slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], NDArray[np.float32]]


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 values to bfloat16, nearest even; the result holds the 16 bits of each."""
    bits = values.view(np.uint32)
    carry = (bits >> np.uint32(16)) & np.uint32(1)
    carry += np.uint32(0x7FFF)
    carry += bits
    carry >>= np.uint32(16)
    return carry.astype(np.uint16)


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """The little-endian storage of `values` for a key of DTYPES."""
    if dtype == "bf16":
        return bfloat16_bits(values)
    return values.astype("<f2" if dtype == "f16" else "<f4", copy=False)


def write_tensors(folder: Path, tensors: Sequence[Tensor], dtype: str, shards: int, threads: int = 2) -> None:
    """Write `tensors` to `model.safetensors`, or to `shards` numbered files with their index.

    The files hold consecutive runs of about equal size, in the order given; within a file tensors are sorted by
    name, as the safetensors library does. Values are computed by `threads` threads, a few tensors ahead.
    """
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"{len(tensors)} tensors cannot be spread over {shards} files")
    width = DTYPES[dtype][2]
    groups = _split([prod(tensor.shape) for tensor in tensors], shards)
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    if shards == 1:
        names = ["model.safetensors"]
    weight_map: dict[str, str] = {}
    for name, group in zip(names, groups, strict=True):
        members = sorted((tensors[i] for i in group), key=lambda tensor: tensor.name)
        _write_file(folder / name, members, dtype, threads)
        weight_map |= {tensor.name: name for tensor in members}
    if shards > 1:
        total = sum(prod(tensor.shape) for tensor in tensors) * width
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, content: object) -> None:
    """Write JSON as Hugging Face's libraries do: indented by two, UTF-8 unescaped, a newline at the end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its final name only if the block ends without an error."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"{folder} exists already; remove it or choose another output folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _split(sizes: list[int], parts: int) -> list[range]:
    """Cut the list into `parts` non-empty consecutive ranges of about the same total."""
    ends = np.cumsum(sizes)
    cuts = [0]
    for part in range(1, parts):
        wanted = int(np.searchsorted(ends, ends[-1] * part / parts)) + 1
        cuts.append(min(max(wanted, cuts[-1] + 1), len(sizes) - parts + part))
    cuts.append(len(sizes))
    return [range(first, last) for first, last in pairwise(cuts)]


def _write_file(path: Path, tensors: Sequence[Tensor], dtype: str, threads: int) -> None:
    name, _, width = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        size = prod(tensor.shape) * width
        header[tensor.name] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor, data in zip(tensors, _computed(tensors, dtype, threads), strict=True):
            if data.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: computed shape {data.shape}, announced {tensor.shape}")
            file.write(np.ascontiguousarray(data).data)


def _computed(tensors: Sequence[Tensor], dtype: str, threads: int) -> Iterator[NDArray[Any]]:
    def compute(tensor: Tensor) -> NDArray[Any]:
        return encode(tensor.values(), dtype)

    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[NDArray[Any]]] = []
        for tensor in tensors:
            waiting.append(pool.submit(compute, tensor))
            if len(waiting) > threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
