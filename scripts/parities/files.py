"""A file of llmkit's against that of llama.cpp's own converter: tensors byte for byte, metadata key for key."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from llmkit.formats.gguf import open_gguf

# What llmkit states and the peer leaves to llama.cpp, which then computes the same value, or to its default.
STATED: Final = (
    ".attention.head_count_kv",  # as many as heads, which llama.cpp assumes
    ".attention.key_length",
    ".attention.q_lora_rank",  # 0: llama.cpp requires the key of latent attention, also where there is no such rank
    ".attention.value_length",
    ".attention.head_count_kv",  # where each head has its own
    ".rope.dimension_count",
    ".rope.freq_base",
    ".vocab_size",
    "gemma3.attention.sliding_window_pattern",  # only where it is not the usual one, which the peer then gets wrong
    "phi3.rope.scaling.type",  # llama.cpp knows LongRoPE by its factors
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.add_bos_token",
)

# What the peer states and llmkit leaves to llama.cpp, which then computes the same value.
LEFT_OUT: Final = {
    "tokenizer.ggml.add_sep_token": False,  # its default
    "tokenizer.ggml.eot_token_id": 107,  # Gemma's <end_of_turn>, which it knows by its text
}

# What the two say differently, by the architecture or the kind of tokenizer, and why that is as it should be.
_BPE_ONLY: Final = "llama.cpp reads it for byte-level BPE only"
_ALWAYS: Final = "the peer says so whatever the tokenizer does; that of the row adds none"
_OLDER_CONFIG: Final = "the peer finds it in transformers 4's config.json only"
EXPLAINED: Final = {
    ("bert", "tokenizer.ggml.pre"): _BPE_ONLY,
    ("t5", "tokenizer.ggml.pre"): _BPE_ONLY,
    ("t5", "tokenizer.ggml.remove_extra_whitespaces"): (
        "the peer takes clean_up_tokenization_spaces for it, which concerns decoding; tokens tell which is right"
    ),
    ("modern-bert", "tokenizer.ggml.add_eos_token"): _ALWAYS,
    ("modern-bert", "tokenizer.ggml.add_sep_token"): _ALWAYS,
    ("modern-bert", "modern-bert.attention.layer_norm_epsilon"): _OLDER_CONFIG,
    ("modern-bert", "modern-bert.attention.sliding_window_pattern"): _OLDER_CONFIG,
    ("modern-bert", "modern-bert.attention.layer_norm_rms_epsilon"): "llama.cpp reads the other one, of LayerNorm",
}


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
            if any((kind, key) in EXPLAINED for kind in kinds):
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
