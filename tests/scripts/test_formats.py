"""`scripts/formats`: its table, and what counts as wrong. Environments are not made here."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmkit

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("formats")
    reference = import_module("deployments.reference")
    model = reference.write_tiny(folder / "tiny", "llama")
    return model, reference.write_reference(model, folder / "reference.npz")


def test_measuring_in_this_environment(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    environments, measuring = import_module("deployments.environments"), import_module("deployments.measuring")
    here = environments.Environment(Path(sys.executable), (), 0)
    outcome = measuring.measure(here, prepared[0], "onnx-standard", prepared[1], tmp_path / "m", 128)
    assert outcome.problem == ""
    assert outcome.checked["same_tokens"] == outcome.checked["tokens"] == 64
    assert 0 < outcome.checked["difference"] < 1e-4
    assert 0 < outcome.checked["mean_kl"] < 1e-9
    assert outcome.row()[:2] == ("tiny", "onnx-standard")
    assert outcome.peak > 1e7
    assert outcome.is_good({"fp32": 2e-3})
    assert not outcome.is_good({"fp32": 1e-12})
    assert not list(tmp_path.iterdir())
    wrong = measuring.measure(here, prepared[0], "onnx-standard", prepared[1], tmp_path / "m", 1 << 20)
    assert "trained for" in wrong.problem


def test_tokens_that_differ(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    stored: dict[str, Any] = dict(np.load(prepared[1]))
    stored["ids"][30] += 1
    np.savez(tmp_path / "changed.npz", **stored)
    folder = llmkit.convert(prepared[0], "onnx-standard", output=tmp_path / "m", context=128).path
    found = import_module("deployments.check").main(folder, tmp_path / "changed.npz")
    assert (found["same_tokens"], found["tokens"]) == (10, 64)
    outcome = import_module("deployments.measuring").Outcome("tiny", "onnx-standard", "fp32", checked=found)
    assert not outcome.is_good({"fp32": 2e-3})
    assert found["mean_kl"] > 1e-9  # of the text with another token in it
    assert "first 10" in import_module("deployments.__main__").table([outcome])
