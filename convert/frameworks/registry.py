"""The deployment formats by name."""

from __future__ import annotations

from typing import Final

from llmkit.convert.frameworks.base import FP32, Framework, FrameworkTarget, Precision
from llmkit.errors import UnsupportedError
from llmkit.quantize.blockwise import BlockwiseFormat
from llmkit.types import TensorType

_FP16: Final = Precision(TensorType.F16, TensorType.F16)
_INT8: Final = BlockwiseFormat(8, 64, symmetric=True, half_scales=True)
_INT4_BY_32: Final = BlockwiseFormat(4, 32, symmetric=True, half_scales=True)
_INT4: Final = BlockwiseFormat(4, 64, symmetric=False, half_scales=True)

FRAMEWORKS: Final[dict[str, Framework]] = {
    framework.name: framework
    for framework in (
        Framework("torch", "PyTorch export (.pt2)", "pytorch", ("torch",), "torch_program"),
        Framework("torchscript", "TorchScript", "pytorch", ("torch",), "torchscript"),
        Framework(
            "openvino",
            "OpenVINO IR",
            "openvino",
            ("openvino", "openvino-tokenizers", "transformers"),
            "openvino_model",
            {"fp16": _FP16, "fp32": FP32, "int8": Precision(_INT8, _INT8), "int4": Precision(_INT4, _INT8)},
        ),
        Framework(
            "coreml",
            "Core ML (.mlpackage)",
            "coreml",
            ("coremltools",),
            "coreml",
            {"fp16": _FP16, "int4": Precision(_INT4_BY_32, _INT8)},
        ),
        Framework("executorch", "ExecuTorch (.pte)", "executorch", ("executorch",), "executorch_program"),
        Framework("stablehlo", "StableHLO", "jax", ("jax", "flatbuffers"), "stablehlo", keeps_weights=True),
        Framework(
            "litert",
            "LiteRT",
            "litert",
            ("litert-torch", "ai-edge-quantizer"),
            "litert",
            {"fp32": FP32, "int8": FP32},  # whose quantiser rounds what was converted
        ),
        Framework(
            "litertlm",
            "LiteRT-LM",
            "litertlm",
            ("litert-torch", "ai-edge-quantizer", "litert-lm-builder"),
            "litertlm",
            {"fp32": FP32, "int8": FP32},
        ),
        Framework(
            "iree",
            "IREE",
            "iree",
            ("iree-base-compiler", "jax", "flatbuffers"),
            "iree",
            keeps_weights=True,
        ),
        Framework(
            "savedmodel",
            "TensorFlow SavedModel",
            "savedmodel",
            ("tensorflow|tensorflow-cpu", "jax", "flatbuffers"),
            "savedmodel",
        ),
        Framework(
            "onnx-standard", "ONNX of standard operators", "onnx", ("onnx-ir",), "onnx_standard", keeps_weights=True
        ),
        Framework("tensorrt", "TensorRT for RTX", "onnx", ("onnx-ir",), "tensorrt", keeps_weights=True),
    )
}


def find_framework_target(text: str) -> FrameworkTarget | None:
    """What `torch` or `torch-fp32` means; None for what begins with no format's name.

    Raises UnsupportedError for a precision that the format is not written in.
    """
    found = [name for name in FRAMEWORKS if text == name or text.startswith(f"{name}-")]
    if not found:
        return None
    framework = FRAMEWORKS[max(found, key=len)]
    precision = text.removeprefix(framework.name).removeprefix("-") or next(iter(framework.precisions))
    if precision not in framework.precisions:
        known = ", ".join(f"{framework.name}-{name}" for name in framework.precisions)
        raise UnsupportedError(f"unknown target {text!r}; known: {known}")
    return FrameworkTarget(framework, precision)
