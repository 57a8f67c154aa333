"""What an inspection finds, whatever the container."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmkit.types import TensorInfo

Kind = Literal[
    "gguf",
    "safetensors",
    "safetensors-folder",
    "checkpoint",
    "onnx",
    "exported",
    "pytorch",
    "paddle",
    "mxnet",
    "caffe",
    "tensorflow",
]


@dataclass(frozen=True, slots=True)
class TypeUsage:
    """The tensors of one type together."""

    type: str
    n_tensors: int
    n_params: int
    n_bytes: int

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.n_bytes / self.n_params if self.n_params else None


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The shape of the network; None where the file does not say, a tuple where layers differ."""

    n_context: int | None = None
    n_layers: int | None = None
    n_embd: int | None = None
    n_ff: int | tuple[int, ...] | None = None
    n_heads: int | tuple[int, ...] | None = None
    n_kv_heads: int | tuple[int, ...] | None = None
    n_vocab: int | None = None
    n_experts: int | None = None
    n_experts_used: int | None = None
    rope_base: float | None = None
    rope_scaling: str | None = None


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer.

    `model` is its kind in the words of where it stands: llama.cpp's (`gpt2`, `llama`) in a GGUF file, those of the
    tokenizers library (`BPE`, `Unigram`) in tokenizer.json, `SentencePiece` for a tokenizer.model. `file` is that
    file's name, None in a GGUF file. `pre` is llama.cpp's name of its pre-tokenizer (GGUF files only).
    """

    model: str | None = None
    file: str | None = None
    pre: str | None = None
    n_tokens: int | None = None
    bos: int | str | None = None
    eos: int | str | None = None


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template: Jinja source, not run and not trusted. The main one is called "default"."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class GGUFDetails:
    """What only GGUF files have. `file_type` is llama.cpp's name of the mix of types, such as Q4_K_M."""

    version: int
    alignment: int
    file_type: str | None
    n_parts: int = 1
    missing_parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a model file or folder holds, read from headers and configuration alone.

    files: the model files that were read, with their sizes in bytes on disk. tensors: all of them, in file order.
    architecture: `general.architecture` of a GGUF file, `model_type` of a checkpoint, equal for most models;
    model_class: the first of a checkpoint's `architectures`, such as LlamaForCausalLM.
    metadata: GGUF metadata or the SafeTensors headers' `__metadata__`; an array stands as its type and length.
    notes: what was odd or could not be read, without being an error.
    """

    kind: Kind
    path: Path
    files: tuple[tuple[Path, int], ...]
    tensors: tuple[TensorInfo, ...]
    architecture: str | None = None
    model_class: str | None = None
    name: str | None = None
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    tokenizer: Tokenizer | None = None
    templates: tuple[ChatTemplate, ...] = ()
    gguf: GGUFDetails | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def n_params(self) -> int:
        return sum(t.n_elements for t in self.tensors)

    @property
    def n_bytes(self) -> int:
        """Size on disk of all files."""
        return sum(size for _, size in self.files)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits that the tensors take per weight, headers and metadata apart; None without tensors."""
        return 8 * sum(t.nbytes for t in self.tensors) / self.n_params if self.n_params else None

    @property
    def types(self) -> tuple[TypeUsage, ...]:
        """The table of types, those with most bytes first."""
        return type_table(self.tensors)

    def to_dict(self, *, with_tensors: bool = False) -> dict[str, Any]:
        """Plain values for JSON. The keys are stable: later versions may add some and will not change these.

        kind: gguf, safetensors, safetensors-folder, checkpoint, onnx, or exported, for another deployment format, which
        metadata names; or of older formats pytorch, paddle, mxnet, caffe or tensorflow. path: as given. bytes: size on
        disk.
        files: [{path, bytes}]. architecture: string or null, as the file has it: general.architecture or model_type.
        model_class: string or null, of checkpoints only. name: string or null. parameters, tensors: counts.
        bits_per_weight: number or null. types: [{type, tensors, parameters, bytes, bits_per_weight}].
        hyperparameters: {context_length, layers, embedding_length, feed_forward_length, heads, kv_heads,
        vocabulary, experts, experts_used, rope_base, rope_scaling}, each null where unknown, a list where layers
        differ. tokenizer: null or {model, file, pre, tokens, bos, eos}: model as the file has it (gpt2, BPE), file the
        name of a checkpoint's tokenizer file, bos and eos ids in GGUF files, texts in checkpoints.
        chat_templates: [{name, text}]. gguf: null or {version, alignment, file_type, parts, missing_parts}.
        metadata: {key: value}, an array as {"array": type, "length": n}. notes: [string].
        With `with_tensors`, tensor_list: [{name, type, shape, bytes, file, offset}], offsets from the file's start,
        null where they are not known. Of a tensor that an older format stores in another form, sparse or as text, bytes
        are those of its values and offset is where that begins.
        """
        h = self.hyperparameters
        result: dict[str, Any] = {
            "kind": self.kind,
            "path": str(self.path),
            "bytes": self.n_bytes,
            "files": [{"path": str(path), "bytes": size} for path, size in self.files],
            "architecture": self.architecture,
            "model_class": self.model_class,
            "name": self.name,
            "parameters": self.n_params,
            "tensors": len(self.tensors),
            "bits_per_weight": _rounded(self.bits_per_weight),
            "types": [
                {
                    "type": t.type,
                    "tensors": t.n_tensors,
                    "parameters": t.n_params,
                    "bytes": t.n_bytes,
                    "bits_per_weight": _rounded(t.bits_per_weight),
                }
                for t in self.types
            ],
            "hyperparameters": {
                "context_length": h.n_context,
                "layers": h.n_layers,
                "embedding_length": h.n_embd,
                "feed_forward_length": _plain(h.n_ff),
                "heads": _plain(h.n_heads),
                "kv_heads": _plain(h.n_kv_heads),
                "vocabulary": h.n_vocab,
                "experts": h.n_experts,
                "experts_used": h.n_experts_used,
                "rope_base": h.rope_base,
                "rope_scaling": h.rope_scaling,
            },
            "tokenizer": None
            if self.tokenizer is None
            else {
                "model": self.tokenizer.model,
                "file": self.tokenizer.file,
                "pre": self.tokenizer.pre,
                "tokens": self.tokenizer.n_tokens,
                "bos": self.tokenizer.bos,
                "eos": self.tokenizer.eos,
            },
            "chat_templates": [{"name": t.name, "text": t.text} for t in self.templates],
            "gguf": None
            if self.gguf is None
            else {
                "version": self.gguf.version,
                "alignment": self.gguf.alignment,
                "file_type": self.gguf.file_type,
                "parts": self.gguf.n_parts,
                "missing_parts": list(self.gguf.missing_parts),
            },
            "metadata": self.metadata,
            "notes": list(self.notes),
        }
        if with_tensors:
            result["tensor_list"] = [
                {
                    "name": t.name,
                    "type": t.dtype,
                    "shape": list(t.shape),
                    "bytes": t.nbytes,
                    "file": t.path.name,
                    "offset": t.offset if t.offset >= 0 else None,
                }
                for t in self.tensors
            ]
        return result


def type_table(tensors: Iterable[TensorInfo]) -> tuple[TypeUsage, ...]:
    """Tensors, parameters and bytes by type, those with most bytes first."""
    table: dict[str, tuple[int, int, int]] = {}
    for t in tensors:
        n, params, size = table.get(t.dtype, (0, 0, 0))
        table[t.dtype] = (n + 1, params + t.n_elements, size + t.nbytes)
    usages = (TypeUsage(type, *counts) for type, counts in table.items())
    return tuple(sorted(usages, key=lambda u: (-u.n_bytes, u.type)))


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def _plain(number: int | tuple[int, ...] | None) -> int | list[int] | None:
    return list(number) if isinstance(number, tuple) else number
