"""Which deployment format to take: a tree of questions that ends in one command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the questions lead: `command` is to be typed, MODEL replaced; `reason` says why, `otherwise` what else."""

    command: str
    reason: str
    otherwise: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and where each answer leads, by a word that stands for the answer, with what it means."""

    text: str
    answers: Mapping[str, tuple[str, Question | Decision]]


_PC: Final = Question(
    "What does the computer have?",
    {
        "cpu": (
            "a CPU, of whatever make",
            Decision(
                "llmkit recommend MODEL",
                "measures this machine's memory and names the smallest GGUF or ONNX form that is good enough",
                "llmkit convert MODEL --to gguf-q4 is what most people take",
            ),
        ),
        "intel": (
            "an Intel GPU or NPU",
            Decision("llmkit convert MODEL --to openvino-int4", "only OpenVINO reaches Intel's GPUs and NPUs alike"),
        ),
        "nvidia": (
            "an NVIDIA GPU",
            Decision(
                "llmkit convert MODEL --to gguf-q4_k_m",
                "llama.cpp built with CUDA runs it, and what does not fit the GPU stays on the CPU",
                "llmkit convert MODEL --to onnx-int4 --ep cuda for ONNX Runtime, --to tensorrt for TensorRT",
            ),
        ),
        "apple": (
            "Apple silicon",
            Decision(
                "llmkit convert MODEL --to gguf-q4_k_m",
                "llama.cpp's Metal build runs it on the GPU",
                "MLX (mlx_lm.convert) is made for this hardware",
            ),
        ),
    },
)
_SERVER: Final = Question(
    "Which hardware does the server have?",
    {
        "nvidia": (
            "NVIDIA or AMD GPUs",
            Decision(
                "vllm serve MODEL",
                "vLLM and TensorRT-LLM share GPUs between many users, and start from the checkpoint itself",
            ),
        ),
        "cpu": (
            "CPUs",
            Decision(
                "llmkit convert MODEL --to openvino-int8",
                "OpenVINO's kernels take several texts at once; its model server serves the folder",
                "llama-server of llama.cpp serves llmkit convert MODEL --to gguf-q8",
            ),
        ),
        "tpu": (
            "TPUs or other accelerators with a compiler",
            Decision("llmkit convert MODEL --to stablehlo", "portable bytecode that their compilers take"),
        ),
    },
)
_PROGRAM: Final = Question(
    "What is the program written with?",
    {
        "pytorch": ("PyTorch", Decision("llmkit convert MODEL --to torch", "one exported graph with its own cache")),
        "cpp": (
            "C++ that loads TorchScript",
            Decision(
                "llmkit convert MODEL --to torchscript",
                "it loads in libtorch; new programs take --to torch",
            ),
        ),
        "tensorflow": ("TensorFlow", Decision("llmkit convert MODEL --to savedmodel", "loads without JAX or llmkit")),
        "jax": ("JAX or XLA", Decision("llmkit convert MODEL --to stablehlo", "weights stay apart, as arguments")),
        "onnx": (
            "ONNX Runtime, or another reader of ONNX",
            Decision(
                "llmkit convert MODEL --to onnx-int4",
                "ONNX Runtime GenAI runs the folder",
                "--to onnx-standard for readers that know standard operators only",
            ),
        ),
        "none": (
            "no framework: as little as possible",
            Decision(
                "llmkit convert MODEL --to iree",
                "compiled ahead of time, with a small runtime",
                "llmkit convert MODEL --to gguf-q4 for llama.cpp's library in C",
            ),
        ),
    },
)
_PHONE: Final = Question(
    "Which phone, and what is to compute?",
    {
        "cpu": (
            "either make, on its CPU",
            Decision(
                "llmkit convert MODEL --to gguf-q4_0", "llama.cpp runs it there, and this type uses its dot products"
            ),
        ),
        "android": (
            "Android",
            Decision(
                "llmkit convert MODEL --to litertlm-int8",
                "one file with tokenizer and template for LiteRT-LM",
                "--to executorch for programs with ExecuTorch",
            ),
        ),
        "iphone": (
            "an iPhone or iPad",
            Decision(
                "llmkit convert MODEL --to coreml-int4",
                "only Core ML reaches the Neural Engine; llmkit's packages were not run on Apple's systems",
                "--to executorch for programs with ExecuTorch",
            ),
        ),
    },
)
TREE: Final = Question(
    "What is to be done with the model?",
    {
        "run": ("run it on a PC or laptop", _PC),
        "serve": ("serve many users", _SERVER),
        "program": ("build it into a program", _PROGRAM),
        "phone": ("run it on a phone", _PHONE),
        "share": (
            "share weights only",
            Decision(
                "llmkit convert MODEL.gguf --to safetensors",
                "SafeTensors is what all tools start from; a checkpoint of it is shared as it is",
            ),
        ),
    },
)
