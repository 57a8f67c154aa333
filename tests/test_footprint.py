"""The memory of a context, as planned: what llama.cpp says that it allocates."""

from __future__ import annotations

import logging
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.convert.footprint import footprint
from llmkit.formats.gguf import ValueType, array, string, u32

SCRIPTS = str(Path(__file__).resolve().parent.parent / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

FAMILIES: dict[str, Any] = import_module("parities.families").FAMILIES
N_CONTEXT = 4096


@pytest.mark.parametrize(
    "family",
    ["llama", "gemma3", "cohere2", "deepseek_v2", "falcon", "gpt2", "mamba", "mamba2", "granitemoehybrid", "gpt_oss"],
)
def test_as_llama_cpp_allocates_it(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "model"
    import_module("parities.tiny").make(family, FAMILIES[family], folder)
    plan = llmkit.convert(folder, "gguf-f32", output=tmp_path / "m.gguf").plan
    assert plan.footprint is not None
    n_context = 512 if family == "gpt2" else N_CONTEXT  # it has embeddings for so many positions
    with caplog.at_level(logging.DEBUG, "llmkit.llamacpp"):
        llmkit.load(tmp_path / "m.gguf", n_context=n_context, n_threads=1).close()
    sizes = re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", caplog.text)
    assert sizes
    assert plan.footprint.cache_bytes(n_context) / 2**20 == pytest.approx(
        sum(map(float, sizes)), abs=0.006 * len(sizes)
    )
    # A file says the same as what it is made from.
    again = llmkit.quantize(tmp_path / "m.gguf", "q8_0", output=tmp_path / "q.gguf", dry_run=True).plan
    assert again.footprint == plan.footprint


def test_what_metadata_leave_out_or_cannot_mean() -> None:
    found = footprint({})
    assert found.cache_bytes(1000) == 0
    assert (found.trained_context, found.expert_share) == (0, 1.0)
    found = footprint(
        {
            "general.architecture": string("llama"),
            "llama.block_count": u32(3),
            "llama.embedding_length": u32(64),
            "llama.attention.head_count": u32(4),
            "llama.attention.head_count_kv": array(ValueType.UINT32, (2, 0, 1)),
            "llama.attention.key_length": string("wide"),
            "llama.expert_count": u32(8),
            "llama.expert_used_count": u32(2),
            "llama.ssm.inner_size": array(ValueType.UINT32, ()),
        }
    )
    assert found.keys_and_values == (2 + 0 + 1) * (16 + 16)
    assert found.expert_share == 0.25
    assert found.cache_bytes(10, 4) == 10 * 96 * 4
