"""A file of llmkit's against that of llama.cpp's own converter: tensors byte for byte, metadata key for key."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmkit.formats.gguf import open_gguf
from parities.explained import BY_KIND, LEFT_OUT, STATED


@dataclass(frozen=True)
class FilesResult:
    """Differences in words; none if the files say the same."""

    tensors: tuple[str, ...]
    metadata: tuple[str, ...]


def convert_with_peer(converter: Path, jobs: list[tuple[Path, Path]], outtype: str = "f32") -> dict[Path, str]:
    """Convert each (checkpoint, output) with the peer, all in one process; returns its words where it failed."""
    worker = Path(__file__).with_name("peer_worker.py")
    arguments = [part for job in jobs for part in map(str, job)]
    done = subprocess.run(
        [sys.executable, str(worker), str(converter), outtype, *arguments], capture_output=True, text=True, check=False
    )
    failed = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    if done.returncode:
        raise SystemExit(f"{converter} failed: {done.stderr[-2000:]}")
    return {Path(path): reason for path, reason in failed.items()}


def compare_files(ours: Path, theirs: Path) -> FilesResult:
    """What the two files say differently."""
    tensors, metadata = [], []
    with open_gguf(ours) as a, open_gguf(theirs) as b:
        for name in sorted({*a.tensors, *b.tensors}):
            if name not in a.tensors or name not in b.tensors:
                tensors.append(f"{name}: only {'ours' if name in a.tensors else 'theirs'}")
                continue
            x, y = a.tensors[name], b.tensors[name]
            if (x.dtype, x.shape) != (y.dtype, y.shape):
                tensors.append(f"{name}: {x.dtype} {list(x.shape)}, theirs {y.dtype} {list(y.shape)}")
            elif not np.array_equal(a.raw(name), b.raw(name)):
                tensors.append(f"{name}: bytes differ")
        kinds = [str(a.metadata[key].data) for key in ("general.architecture", "tokenizer.ggml.model")]
        for key in sorted({*a.metadata, *b.metadata}):
            if any((kind, key) in BY_KIND for kind in kinds):
                continue
            if key not in b.metadata:
                if not key.endswith(STATED):
                    metadata.append(f"{key}: only ours, {a.metadata[key].data!r:.60}")
            elif key not in a.metadata:
                if b.metadata[key].data != LEFT_OUT.get(key):
                    metadata.append(f"{key}: only theirs, {b.metadata[key].data!r:.60}")
            else:
                v, w = a.metadata[key], b.metadata[key]
                same = (v.type, v.element_type) == (w.type, w.element_type)
                if not same or not np.array_equal(np.asarray(v.data), np.asarray(w.data)):
                    metadata.append(f"{key}: {v.data!r:.60}, theirs {w.data!r:.60}")
    return FilesResult(tuple(tensors), tuple(metadata))
