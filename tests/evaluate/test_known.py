"""Estimates of quality: near what was measured, and in between for other sizes."""

from __future__ import annotations

import pytest

from llmkit.evaluate.known import known_quality

# Measured beside the KL divergences that the estimates rest on: SmolLM2 here, LLaMA 3 8B as llama.cpp publishes it.
SAME_TOP = {
    (134_515_008, "gguf-q8_0"): 0.958,
    (134_515_008, "gguf-q6_k"): 0.929,
    (134_515_008, "gguf-q4_k_m"): 0.843,
    (134_515_008, "gguf-q4_0"): 0.680,
    (134_515_008, "onnx-int4"): 0.628,
    (8_030_261_248, "gguf-q8_0"): 0.977,
    (8_030_261_248, "gguf-q6_k"): 0.960,
    (8_030_261_248, "gguf-q4_k_m"): 0.919,
    (8_030_261_248, "gguf-q2_k"): 0.711,
}


@pytest.mark.parametrize(("n_params", "target"), SAME_TOP)
def test_agreement_is_near_what_was_measured(n_params: int, target: str) -> None:
    found = known_quality(target, n_params)
    assert found is not None
    assert found.agreement == pytest.approx(SAME_TOP[n_params, target], abs=0.025)


def test_larger_models_lose_less() -> None:
    sizes = (10**6, 134_515_008, 10**9, 8_030_261_248, 10**12)
    found = [known_quality("gguf-q4_k_m", n_params) for n_params in sizes]
    kl = [quality.mean_kl for quality in found if quality is not None]
    assert kl[0] == pytest.approx(kl[1], rel=1e-3)  # nothing is known beyond the two
    assert kl[3] == pytest.approx(kl[4], rel=1e-3)
    assert kl[1] > kl[2] > kl[3]
    for quality in found:
        assert quality is not None
        assert 0 < quality.agreement < quality.agreement_with_importance < 1
        assert quality.gains


def test_what_is_exact_and_what_is_unknown() -> None:
    exact = known_quality("gguf-f32", 10**9)
    assert exact is not None
    assert (exact.mean_kl, exact.agreement, exact.gains) == (0, 1, False)
    assert known_quality("gguf-mxfp4_moe", 10**9) is None
    assert known_quality("gguf-q4_k_m", 0) is not None
