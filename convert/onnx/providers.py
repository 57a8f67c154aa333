"""ONNX Runtime's execution providers, and what models for them have otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from llmkit.errors import UnsupportedError
from llmkit.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """`float_type` is that of activations where weights are quantised, `accuracy_level` MatMulNBits' for it.

    `standard`: whether the graph has operators of the ONNX standard where ONNX Runtime has older ones of its own, which
    more providers know. `multiplies_transposed`: whether it is known to have FusedMatMul. `options` are
    genai_config.json's for the provider; None names none, which is the CPU.
    """

    name: str
    float_type: TensorType
    accuracy_level: int
    standard: bool = False
    multiplies_transposed: bool = False
    options: Mapping[str, str] | None = field(default=None)


PROVIDERS: Final = {
    provider.name: provider
    for provider in (
        Provider(name="cpu", float_type=TensorType.F32, accuracy_level=4, standard=True, multiplies_transposed=True),
        Provider(
            name="cuda",
            float_type=TensorType.F16,
            accuracy_level=0,
            multiplies_transposed=True,
            options={"enable_cuda_graph": "0"},
        ),
        Provider(name="dml", float_type=TensorType.F16, accuracy_level=0, options={"enable_graph_capture": "0"}),
        Provider(name="webgpu", float_type=TensorType.F16, accuracy_level=4, options={}),
    )
}


def find_provider(name: str) -> Provider:
    """The provider called `name`. Raises UnsupportedError."""
    found = PROVIDERS.get(name)
    if found is None:
        raise UnsupportedError(f"execution provider {name!r}; known: {', '.join(PROVIDERS)}")
    return found
