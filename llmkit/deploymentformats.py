"""The deployment formats of the field: what each is for, where it runs, and what llmkit does with it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from llmkit.convert.frameworks.packages import is_installed
from llmkit.convert.frameworks.registry import find_framework_target

_Q4_K: Final = 4.85 / 16  # as gguf-q4_k_m has on average, of 16 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentFormat:
    """One format.

    target: what `--to` takes, in the form that people mostly use; None where llmkit does not write it. size: of that
    form, as a share of the weights in 16 bits; None where it is whatever was saved. purpose, hardware: in a few words.
    reads: whether llmkit takes tensors out of it. writes, runs: the distributions that this needs, of which `a|b` is
    either; None where llmkit does not. write_extra, run_extra: of `pip install 'llmkit[...]'`. note: what else to know,
    such as the tool that writes it. legacy: whether something else is to be used now. places: of `llmkit recommend
    --device`, where it may serve better than GGUF and ONNX, by an `advantage`.
    """

    name: str
    purpose: str
    hardware: str
    target: str | None = None
    size: float | None = None
    reads: bool = False
    writes: tuple[str, ...] | None = None
    runs: tuple[str, ...] | None = None
    write_extra: str = ""
    run_extra: str = ""
    note: str = ""
    legacy: bool = False
    places: tuple[str, ...] = ()
    advantage: str = ""

    @property
    def is_written_here(self) -> bool:
        """Whether all that writing it needs is installed."""
        return self.writes is not None and all(map(_is_installed, self.writes))

    @property
    def runs_here(self) -> bool:
        """Whether all that running it needs is installed."""
        return self.runs is not None and all(map(_is_installed, self.runs))

    @property
    def missing_extras(self) -> tuple[str, ...]:
        """Extras that would let it be written or run here."""
        lacking = []
        if self.writes is not None and not self.is_written_here:
            lacking.append(self.write_extra)
        if self.runs is not None and not self.runs_here:
            lacking.append(self.run_extra)
        return tuple(dict.fromkeys(lacking))


def _framework(target: str, **about: Any) -> DeploymentFormat:
    """A format of `llmkit.convert.frameworks`, which says what writing it needs."""
    found = find_framework_target(target)
    assert found is not None, target
    needs = found.framework
    return DeploymentFormat(target=target, writes=needs.packages, write_extra=needs.extra, **about)


FORMATS: Final[tuple[DeploymentFormat, ...]] = (
    DeploymentFormat(
        name="SafeTensors",
        purpose="sharing weights; what everything else is made from",
        hardware="any, through a framework",
        target="safetensors",
        size=1.0,
        reads=True,
        writes=(),
        runs=("torch", "transformers"),
        run_extra="torch",
        note="written from GGUF",
    ),
    DeploymentFormat(
        name="GGUF",
        purpose="one file with everything; local chat on a PC",
        hardware="any CPU; GPUs through llama.cpp's builds",
        target="gguf-q4_k_m",
        size=_Q4_K,
        reads=True,
        writes=(),
        runs=("llama-cpp-python",),
        run_extra="llama",
    ),
    DeploymentFormat(
        name="ONNX, GenAI",
        purpose="programs with ONNX Runtime GenAI",
        hardware="CPU, NVIDIA, DirectML, WebGPU",
        target="onnx-int4",
        size=5.0 / 16,
        writes=("onnx-ir",),
        runs=("onnxruntime-genai|onnxruntime-genai-cuda",),
        write_extra="onnx",
        run_extra="ort",
    ),
    _framework(
        name="ONNX, standard",
        purpose="other readers of ONNX: TensorRT, OpenVINO, ONNX Runtime",
        hardware="whatever reads it",
        target="onnx-standard",
        size=2.0,
        runs=("onnxruntime",),
        run_extra="ort",
    ),
    _framework(
        name="OpenVINO",
        purpose="programs on Intel's hardware",
        hardware="x86 and ARM CPUs; Intel GPU and NPU",
        target="openvino-int4",
        places=("intel",),
        advantage="its kernels are Intel's own, and it alone reaches Intel's GPUs and NPUs",
        size=5.2 / 16,
        runs=("openvino",),
        run_extra="openvino",
    ),
    _framework(
        name="PyTorch .pt2",
        purpose="one graph for PyTorch's own runtimes and compilers",
        hardware="what PyTorch runs on",
        target="torch",
        size=2.0,
        runs=("torch",),
        run_extra="pytorch",
    ),
    _framework(
        name="TorchScript",
        purpose="programs in C++ that still load it",
        hardware="what libtorch runs on",
        target="torchscript",
        size=2.0,
        runs=("torch",),
        run_extra="pytorch",
        note="deprecated: take PyTorch .pt2",
        legacy=True,
    ),
    _framework(
        name="StableHLO",
        purpose="compilers: XLA, IREE and others",
        hardware="CPU, GPU, TPU, by compiler",
        target="stablehlo",
        size=2.0,
        runs=("jax", "flatbuffers"),
        run_extra="jax",
    ),
    _framework(
        name="IREE",
        purpose="small programs without a framework",
        hardware="the CPU it was compiled for; other targets by IREE's flags",
        target="iree",
        size=2.0,
        runs=("iree-base-runtime",),
        run_extra="iree",
    ),
    _framework(
        name="SavedModel",
        purpose="TensorFlow Serving and programs in TensorFlow",
        hardware="what TensorFlow runs on",
        target="savedmodel",
        size=2.0,
        runs=("tensorflow|tensorflow-cpu",),
        run_extra="savedmodel",
    ),
    _framework(
        name="TensorRT",
        purpose="NVIDIA's GPUs at their fastest",
        hardware="NVIDIA RTX",
        target="tensorrt",
        size=2.0,
        note="engine with llmkit[tensorrt]; not checked on a GPU",
        places=("cuda",),
        advantage="compiled for the GPU",
    ),
    _framework(
        name="LiteRT",
        purpose="programs on Android and small devices",
        hardware="phones: CPU, GPU, NPU",
        target="litert-int8",
        size=0.5,
        runs=("ai-edge-litert",),
        run_extra="litert",
        note="checked on the CPU of a PC only",
        places=("phone",),
        advantage="reaches GPU and NPU of Android phones; GGUF runs on the CPU through llama.cpp",
    ),
    _framework(
        name="LiteRT-LM",
        purpose="chat in programs on Android: one file with everything",
        hardware="phones: CPU, GPU, NPU",
        target="litertlm-int8",
        size=0.5,
        note="LiteRT-LM runs it; checked on the CPU of a PC only",
        places=("phone",),
        advantage="LiteRT with tokenizer and chat template",
    ),
    _framework(
        name="ExecuTorch",
        purpose="PyTorch's programs on phones",
        hardware="the CPU, by XNNPACK; phones' GPU and NPU by others of ExecuTorch's backends",
        target="executorch",
        size=2.0,
        runs=("executorch",),
        run_extra="executorch",
        note="written for XNNPACK; not checked on a phone",
        places=("phone",),
        advantage="its backends reach GPU and NPU of phones of both makes; llmkit writes it for the CPU",
    ),
    _framework(
        name="Core ML",
        purpose="programs on Apple's devices",
        hardware="Apple's CPU, GPU, Neural Engine",
        target="coreml-int4",
        size=5.3 / 16,
        note="not checked on Apple's systems",
        places=("apple", "phone"),
        advantage="alone reaches the Neural Engine",
    ),
    DeploymentFormat(
        name="MLX",
        purpose="Apple's computers, on the GPU",
        hardware="Apple silicon",
        size=4.5 / 16,
        note="mlx_lm.convert writes it from SafeTensors",
        places=("apple",),
        advantage="made for this hardware; GGUF runs on its GPU, too, through llama.cpp's Metal build",
    ),
    DeploymentFormat(
        name="vLLM, TensorRT-LLM",
        purpose="serving many users at once",
        hardware="NVIDIA and AMD servers",
        size=1.0,
        note="start from SafeTensors",
        places=("cuda",),
        advantage="share a GPU between many users; llama.cpp built with CUDA runs GGUF files",
    ),
    DeploymentFormat(
        name="PyTorch .bin, .pt",
        purpose="weights as a pickle",
        hardware="-",
        reads=True,
        note="take SafeTensors; reading needs llmkit[pytorch]",
        legacy=True,
    ),
    DeploymentFormat(
        name="PaddlePaddle", purpose="weights", hardware="-", reads=True, note="take SafeTensors", legacy=True
    ),
    DeploymentFormat(name="MXNet", purpose="weights", hardware="-", reads=True, note="take SafeTensors", legacy=True),
    DeploymentFormat(name="Caffe", purpose="weights", hardware="-", reads=True, note="take SafeTensors", legacy=True),
    DeploymentFormat(
        name="TensorFlow .index", purpose="weights", hardware="-", reads=True, note="take SafeTensors", legacy=True
    ),
)


def formats_by_target() -> Mapping[str, DeploymentFormat]:
    """Those that llmkit writes, by the container that their targets begin with, such as `openvino`."""
    return {container_of(found.target): found for found in FORMATS if found.target is not None}


def container_of(target: str) -> str:
    """Of `gguf-q4_k_m` gguf, of `openvino-int4` openvino, of `onnx-standard` that."""
    found = find_framework_target(target)
    return target.partition("-")[0] if found is None else found.framework.name


@cache
def _is_installed(package: str) -> bool:
    return is_installed(package)
