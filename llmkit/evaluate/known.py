"""What is known of the quality of formats: measured for two models, and estimated for others in between.

The small model is SmolLM2-135M-Instruct with dithered weights: 9 windows of 512 tokens of Python's help texts, against
the same model in bf16 (`llmkit eval --reference`; importance from other parts of that text). The large one is LLaMA 3
8B on WikiText-2, as llama.cpp publishes it (tools/perplexity/README.md). Larger models lose less by the same format.
The small one's rows of 576 are no whole blocks of K-quants, so that most of its tensors have the types of 32 weights
that take their place: a small model with rows that divide by 256 loses more by them than is said here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_SMALL: Final = 134.5e6
_LARGE: Final = 8.03e9


# Mean KL divergence, nats: of the small model, the same with an importance matrix, of the large one, likewise. Where
# llama.cpp publishes nothing for the large model, an importance matrix gains nothing, but for IQ4 and int4 as much as
# for Q4_K_S; and the large one's divergence with ONNX types is to the small one's as with Q8_0 and Q4_0.
# The importance matrix of the ONNX types has products of 128 columns.
_KL: Final = {
    "gguf-f32": (0.0, 0.0, 0.0, 0.0),
    "gguf-bf16": (0.0001, 0.0001, 0.00001, 0.00001),
    "gguf-f16": (0.0001, 0.0001, 0.00001, 0.00001),
    "gguf-q8_0": (0.0052, 0.0052, 0.0014, 0.0014),
    "gguf-q6_k": (0.0134, 0.0085, 0.0055, 0.0055),
    "gguf-q5_k_m": (0.0605, 0.0199, 0.0108, 0.0108),
    "gguf-q5_k_s": (0.0749, 0.0217, 0.0166, 0.0166),
    "gguf-q5_1": (0.0702, 0.0197, 0.0180, 0.0180),
    "gguf-q5_0": (0.0880, 0.0560, 0.0222, 0.0222),
    "gguf-q4_k_m": (0.0687, 0.0479, 0.0313, 0.0282),
    "gguf-q4_k_s": (0.1390, 0.0640, 0.0431, 0.0320),
    "gguf-iq4_nl": (0.2508, 0.1149, 0.0484, 0.0357),
    "gguf-iq4_xs": (0.2460, 0.1187, 0.0482, 0.0363),
    "gguf-q4_1": (0.2703, 0.0688, 0.0717, 0.0717),
    "gguf-q4_0": (0.4243, 0.2281, 0.0719, 0.0719),
    "gguf-q3_k_l": (0.1989, 0.0870, 0.0872, 0.0731),
    "gguf-q3_k_m": (0.2745, 0.1176, 0.1019, 0.0844),
    "gguf-q3_k_s": (0.5332, 0.3346, 0.2282, 0.1998),
    "gguf-q2_k": (0.5332, 0.3346, 0.4451, 0.3322),
    "onnx-fp32": (0.0, 0.0, 0.0, 0.0),
    "onnx-fp16": (0.0001, 0.0001, 0.00001, 0.00001),
    "onnx-int8": (0.0055, 0.0055, 0.0014, 0.0014),
    "onnx-int4": (0.4916, 0.1090, 0.0833, 0.0617),
    "onnx-int4 --recipe quality": (0.1410, 0.0453, 0.0239, 0.0177),
}


@dataclass(frozen=True, slots=True)
class Quality:
    """Estimates of a format's divergence from the original, nats, and the share of tokens with the same most likely
    one; and the same with an importance matrix."""

    mean_kl: float
    agreement: float
    mean_kl_with_importance: float
    agreement_with_importance: float

    @property
    def gains(self) -> bool:
        """Whether an importance matrix makes a difference worth its time."""
        return self.mean_kl_with_importance < 0.95 * self.mean_kl


def known_quality(target: str, n_params: int) -> Quality | None:
    """The estimate for a target of `llmkit convert` and a model of so many weights; None where nothing is known."""
    if target not in _KL:
        return None
    small, small_with, large, large_with = _KL[target]
    place = min(1.0, max(0.0, math.log(max(1, n_params) / _SMALL) / math.log(_LARGE / _SMALL)))
    plain, weighted = _between(small, large, place), _between(small_with, large_with, place)
    return Quality(plain, _agreement(plain, place), weighted, _agreement(weighted, place))


def _between(small: float, large: float, place: float) -> float:
    """On a logarithmic scale; nothing stays nothing."""
    return 0.0 if min(small, large) <= 0 else math.exp((1 - place) * math.log(small) + place * math.log(large))


# The share of tokens with another most likely one is about a * kl ** b, fitted to what was measured of each model.
_FIT: Final = ((0.492, 0.465), (0.41, 0.434))


def _agreement(kl: float, place: float) -> float:
    (a, b), (c, d) = _FIT
    return max(0.0, 1 - (a + place * (c - a)) * math.pow(kl, b + place * (d - b)))
