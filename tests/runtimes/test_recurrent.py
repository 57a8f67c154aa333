"""Checkpoints with recurrent states in transformers: passes, prompts and continuations give what one pass gives."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmkit
from llmkit.errors import EngineError
from llmkit.protocols import SamplingOptions

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

FAMILIES: dict[str, Any] = import_module("parities.families").FAMILIES
IDS = list(range(3, 43))


def make(family: str, folder: Path) -> Path:
    import_module("parities.tiny").make(family, FAMILIES[family], folder)
    return folder


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "mamba2", "granitemoehybrid"])
def test_states_go_on(family: str, tmp_path: Path) -> None:
    with llmkit.load(make(family, tmp_path / "model"), n_context=64, n_threads=1) as session:
        expected = session.logits(IDS)
        for at_a_time in (1, 7):
            np.testing.assert_allclose(session.logits(IDS, at_a_time=at_a_time), expected, atol=2e-5)
        for prefix in (IDS[:20], [*IDS[:15], 7], IDS[:20]):
            rows = [found.copy() for found in session.each_continuation(prefix, [[5, 6, 7], [9]])]
            for ids, found in zip(([5, 6, 7], [9]), rows, strict=True):
                whole = session.logits([*prefix, *ids])[len(prefix) - 1 : -1]
                np.testing.assert_allclose(found, whole, atol=2e-5)
        greedy = SamplingOptions(temperature=0, max_tokens=5)
        first = "".join(session.generate(IDS[:20], greedy))
        "".join(session.generate([*IDS[:10], 7, 8], greedy))  # shares a beginning
        assert "".join(session.generate(IDS[:20], greedy)) == first


def test_learned_positions_end(tmp_path: Path) -> None:
    """Beyond them transformers fails within, and llama.cpp ends the process."""
    folder = make("gpt2", tmp_path / "model")
    gguf = llmkit.convert(folder, "gguf-f32", output=tmp_path / "m.gguf").path
    for path in (folder, gguf):
        with pytest.raises(EngineError, match="has embeddings for 512 positions"):
            llmkit.load(path, n_context=513)
        with llmkit.load(path, n_context=512, n_threads=1) as session:
            assert session.logits(IDS).shape[0] == len(IDS)


def test_an_interrupted_pass_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with llmkit.load(make("llama", tmp_path / "model"), n_context=64, n_threads=1) as session:
        expected = session.logits(IDS)
        context: Any = session._context  # type: ignore[attr-defined]
        layer = context._model.model.layers[1]
        forward = layer.forward

        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        list(session.generate(IDS[:10], SamplingOptions(temperature=0, max_tokens=1)))
        monkeypatch.setattr(layer, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(session.generate(IDS[:20], SamplingOptions(temperature=0, max_tokens=1)))
        monkeypatch.setattr(layer, "forward", forward)
        rows = next(session.each_continuation(IDS[:20], [IDS[20:]]))
        np.testing.assert_allclose(rows, expected[19:-1], atol=2e-5)
