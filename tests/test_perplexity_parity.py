"""`--protocol llama.cpp` gives what llama-perplexity prints for the same file and text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmkit
from llmkit.evaluate.scores import Estimate

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((ROOT / "tests" / "golden" / "llama-perplexity.json").read_text())
TYPES = ("bf16", "q8_0", "q4_k_m")


@pytest.fixture(scope="module")
def evaluation(smollm2_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> llmkit.Evaluation:
    folder = tmp_path_factory.mktemp("types")
    files = [llmkit.convert(smollm2_checkpoint, f"gguf-{type}", output=folder / f"{type}.gguf").path for type in TYPES]
    return llmkit.evaluate(files, reference=files[0], text=ROOT / GOLDEN["text"], protocol="llama.cpp")


def test_perplexities(evaluation: llmkit.Evaluation) -> None:
    """To four digits; on the processor of the golden figures they are equal to the last digit printed."""
    assert [model.name for model in evaluation.models] == [f"{type}.gguf" for type in TYPES]
    assert evaluation.n_windows == 4
    for type, model in zip(TYPES, evaluation.models, strict=True):
        value, error = GOLDEN["perplexity"][type]
        assert model.perplexity.value == pytest.approx(value, rel=3e-4), type
        assert model.perplexity.error == pytest.approx(error, rel=1e-3), type
        assert model.n_tokens == 4 * 255


@pytest.mark.parametrize("type", TYPES[1:])
def test_divergences(evaluation: llmkit.Evaluation, type: str) -> None:
    """To 2 %: the tool's base file rounds logarithms of probabilities to 16 bits."""
    golden, found = GOLDEN["divergence"][type], evaluation.models[TYPES.index(type)].divergence
    assert found is not None
    for name, percent in (("mean_kl", 1), ("mean_delta_p", 100), ("rms_delta_p", 100), ("same_top", 100)):
        if name in golden:
            estimate: Estimate = getattr(found, name)
            value, error = (x / percent for x in golden[name])
            assert estimate.value == pytest.approx(value, rel=0.02, abs=0.02 * error), name
            assert estimate.error == pytest.approx(error, rel=0.02), name
    for name, percent in (("kl_percentiles", 1), ("delta_p_percentiles", 100)):
        for key, value in golden[name].items():
            percentile = getattr(found, name)[float(key)]
            assert percentile == pytest.approx(value / percent, rel=0.02, abs=2e-5), (name, key)
