"""Inspecting GGUF files, split ones included."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from llmkit.formats.checkpointfiles import part_of_set
from llmkit.formats.gguf import GGUFFile, ValueType, open_gguf
from llmkit.inspection.records import ChatTemplate, GGUFDetails, Hyperparameters, Inspection, Tokenizer
from llmkit.types import TensorInfo

# llama.h of the pinned llama.cpp, `enum llama_ftype`.
FILE_TYPES: Final[dict[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

_TEMPLATE: Final = "tokenizer.chat_template"
_TOKENS: Final = "tokenizer.ggml.tokens"
_MAX_PARTS: Final = 1000


def inspect_gguf(path: Path) -> Inspection:
    """What a GGUF file holds. Of a split model all parts that are beside it are read, whichever one is given.

    Raises what `open_gguf` raises for `path` itself and for its other parts.
    """
    first, others, missing = _parts(path)
    notes = [f"part {name} is not here: its tensors do not count" for name in missing]
    tensors: list[TensorInfo] = []
    with open_gguf(first) as file:
        tensors += file.tensors.values()
        for other in others:
            with open_gguf(other) as part:
                tensors += part.tensors.values()
        expected = file.split.n_tensors if file.split else None
        if expected is not None and not missing and expected != len(tensors):
            notes.append(f"split.tensors.count says {expected:,} tensors, {len(tensors):,} are in the parts")
        if file.split and not others and not missing:
            notes.append(f"{file.note}; the others are not named as llama.cpp names them")
        if file.get("general.type") == "imatrix":
            notes.append("an importance matrix, not a model: it helps to quantise one (--imatrix)")
        return _inspection(path, file, [first, *others], tensors, missing, notes)


def _inspection(
    path: Path, file: GGUFFile, files: list[Path], tensors: list[TensorInfo], missing: list[str], notes: list[str]
) -> Inspection:
    architecture = _text(file, "general.architecture")
    return Inspection(
        kind="gguf",
        path=path,
        files=tuple((f, f.stat().st_size) for f in files),
        tensors=tuple(tensors),
        architecture=architecture,
        name=_text(file, "general.name"),
        hyperparameters=_hyperparameters(file, architecture or "", tensors),
        tokenizer=_tokenizer(file),
        templates=_templates(file),
        gguf=GGUFDetails(
            version=file.version,
            alignment=file.alignment,
            file_type=_file_type(file),
            n_parts=len(files) + len(missing),
            missing_parts=tuple(missing),
        ),
        metadata={key: _summary(file, key) for key in file.metadata if not key.startswith(_TEMPLATE)},
        notes=tuple(notes),
    )


def _parts(path: Path) -> tuple[Path, list[Path], list[str]]:
    """The part to take the metadata from (the first if it is here), the other parts, and the names of those missing."""
    part = part_of_set(path.name)
    if part is None or not 1 < part.count <= _MAX_PARTS:
        return path, [], []
    names = [part.sibling(n) for n in range(1, part.count + 1)]
    here = [path.with_name(name) for name in names if path.with_name(name).is_file() or name == path.name]
    missing = [name for name in names if path.with_name(name) not in here]
    return here[0], here[1:], missing


def _hyperparameters(file: GGUFFile, architecture: str, tensors: list[TensorInfo]) -> Hyperparameters:
    def integer(name: str) -> int | None:
        value = file.get(f"{architecture}.{name}")
        return value if _is_int(value) else None

    def per_layer(name: str) -> int | tuple[int, ...] | None:
        value = file.get(f"{architecture}.{name}")
        if isinstance(value, list) and value and all(_is_int(v) for v in value):
            return value[0] if len(set(value)) == 1 else tuple(value)
        return value if _is_int(value) else None

    n_vocab = integer("vocab_size")
    if n_vocab is None and _TOKENS in file.metadata:
        n_vocab = _length(file, _TOKENS)
    if n_vocab is None:
        n_vocab = next((t.shape[0] for t in tensors if t.name == "token_embd.weight" and len(t.shape) == 2), None)
    base = file.get(f"{architecture}.rope.freq_base")
    return Hyperparameters(
        n_context=integer("context_length"),
        n_layers=integer("block_count"),
        n_embd=integer("embedding_length"),
        n_ff=per_layer("feed_forward_length"),
        n_heads=per_layer("attention.head_count"),
        n_kv_heads=per_layer("attention.head_count_kv"),
        n_vocab=n_vocab,
        n_experts=integer("expert_count"),
        n_experts_used=integer("expert_used_count"),
        rope_base=float(base) if isinstance(base, int | float) and math.isfinite(base) else None,
        rope_scaling=_text(file, f"{architecture}.rope.scaling.type"),
    )


def _tokenizer(file: GGUFFile) -> Tokenizer | None:
    model = _text(file, "tokenizer.ggml.model")
    if model is None and _TOKENS not in file.metadata:
        return None
    bos, eos = file.get("tokenizer.ggml.bos_token_id"), file.get("tokenizer.ggml.eos_token_id")
    return Tokenizer(
        model=model,
        pre=_text(file, "tokenizer.ggml.pre"),
        n_tokens=_length(file, _TOKENS) if _TOKENS in file.metadata else None,
        bos=bos if _is_int(bos) else None,
        eos=eos if _is_int(eos) else None,
    )


def _templates(file: GGUFFile) -> tuple[ChatTemplate, ...]:
    found = []
    for key in file.metadata:
        name = "default" if key == _TEMPLATE else key.removeprefix(f"{_TEMPLATE}.")
        text = _text(file, key) if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.") else None
        if text is not None:
            found.append(ChatTemplate(name, text))
    return tuple(sorted(found, key=lambda t: (t.name != "default", t.name)))


def _file_type(file: GGUFFile) -> str | None:
    number = file.get("general.file_type")
    if not _is_int(number):
        return None
    # llama.cpp adds 1024 where it guessed the file type from the tensors.
    return FILE_TYPES.get(number & ~1024, f"unknown ({number})")


def _text(file: GGUFFile, key: str) -> str | None:
    """A string, with `\\ufffd` for what is not UTF-8."""
    value = file.get(key)
    return _clean(value) if isinstance(value, str) else None


def _clean(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _length(file: GGUFFile, key: str) -> int | None:
    entry = file.metadata.entry(key)  # without decoding a vocabulary
    return entry.count if entry.is_array else None


def _summary(file: GGUFFile, key: str) -> Any:
    entry = file.metadata.entry(key)
    if entry.is_array:
        return {"array": entry.element_type.name, "length": entry.count}
    value = file.get(key)
    if entry.element_type == ValueType.STRING:
        return _clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
