"""Planning a GGUF file: names, metadata and types for llama.cpp.

Keys are those that llama.cpp's loader reads for the architecture (src/llama-arch.cpp, gguf-py/gguf/constants.py).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from llmkit.convert.archs import ConfigReader, HParams, Rope, excerpt, find_family
from llmkit.convert.checkpoint import Checkpoint
from llmkit.convert.encoding import importance_metadata, require_schemes, weigh
from llmkit.convert.filelayout import lay_out
from llmkit.convert.matching import MatchedTensor, match_tensors
from llmkit.convert.modelcard import general_metadata
from llmkit.convert.plan import ConversionPlan, PlannedTensor
from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, f32, string, u32
from llmkit.quantize.imatrix import ImportanceMatrix
from llmkit.quantize.recipes import Choice, ModelShape, Recipe, TypeOptions, choose_types, unused_options
from llmkit.types import TensorType, tensor_bytes

QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION


def plan_gguf(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    options: TypeOptions | None = None,
    importance: ImportanceMatrix | None = None,
    split_size: int | None = None,
    model_id: str | None = None,
    tokenizer_pre: str | None = None,
) -> ConversionPlan:
    """Plan the conversion of `checkpoint` to a GGUF file by `recipe`; reads no weight.

    importance: weighs the errors of the columns of the tensors that it has data for.
    split_size: bytes of tensor data that a file may hold, if the model is to be split; see `lay_out`.
    """
    options = options or TypeOptions()
    config = ConfigReader(checkpoint.folder / "config.json", checkpoint.config)
    _refuse_quantized(config)
    family = find_family(config)
    hparams = family.read_hparams(config)
    matched, notes = match_tensors(family, hparams, checkpoint)
    named = [(_gguf_name(m), m.source.shape) for m in matched]
    model = ModelShape(hparams.n_layers, hparams.n_heads, hparams.n_kv_heads, architecture=family.gguf_architecture)
    choices = choose_types(recipe, model, named, options=options, has_imatrix=importance is not None)

    metadata: dict[str, Value] = {"general.architecture": string(family.gguf_architecture)}
    n_params = sum(m.source.n_elements for m in matched)
    metadata |= general_metadata(checkpoint.folder, checkpoint.config, n_params, model_id, notes=notes)
    metadata |= _architecture_metadata(family.gguf_architecture, hparams, notes)
    metadata["general.file_type"] = u32(recipe.file_type)
    metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    metadata |= tokenizer_metadata(
        checkpoint.folder, hparams.n_vocab, checkpoint.config, pre=tokenizer_pre, notes=notes
    )
    if "tokenizer.chat_template" not in metadata:
        notes.append("the checkpoint has no chat template: `llmkit chat` will need --template, `llmkit generate` works")

    tensors = [_planned(m, name, choices[name], hparams) for m, (name, _) in zip(matched, named, strict=True)]
    if hparams.rope.scaling == "llama3":
        tensors.insert(0, _rope_factors(hparams))
    notes += unused_options(choices, options)
    require_schemes(tensors)
    if importance is not None:
        tensors = weigh(tensors, choices, importance, notes)
        metadata |= importance_metadata(importance)
    return ConversionPlan(
        source=checkpoint.folder,
        target=f"gguf-{recipe.name}",
        architecture=family.gguf_architecture,
        label=recipe.label,
        files=lay_out(metadata, tensors, split_size=split_size),
        notes=(*notes, *family.notes(config, hparams)),
    )


def _refuse_quantized(config: ConfigReader) -> None:
    found = config.values.get("quantization_config")
    if found is None:
        return
    method = found.get("quant_method", "an unknown method") if isinstance(found, dict) else found
    raise UnsupportedError(
        f"{config.path}: the checkpoint is quantised already ({excerpt(method)}); convert the original one, whose "
        "weights are float32, float16 or bfloat16"
    )


def default_output(name: str, recipe: Recipe) -> Path:
    """`<model name>-Q4_K_M.gguf` in the current folder, as the community names its files."""
    return Path(f"{name}-{recipe.label}.gguf")


def _gguf_name(matched: MatchedTensor) -> str:
    """`blk.<i>.<role>.weight`: the roles of the families are GGUF's own names."""
    suffix = matched.rule.pattern.rpartition(".")[2]
    block = "" if matched.block is None else f"blk.{matched.block}."
    return f"{block}{matched.rule.role}.{suffix}"


def _planned(matched: MatchedTensor, name: str, choice: Choice, hparams: HParams) -> PlannedTensor:
    return PlannedTensor(
        name=name,
        shape=matched.source.shape,
        type=choice.type,
        source=matched.source,
        rows=matched.rule.rows(hparams) if matched.rule.rows else None,
        offset=0,
        nbytes=tensor_bytes(choice.type, matched.source.shape),
        wanted=choice.wanted,
        reason=choice.reason,
    )


def _architecture_metadata(arch: str, h: HParams, notes: list[str]) -> dict[str, Value]:
    metadata = {
        f"{arch}.block_count": u32(h.n_layers),
        f"{arch}.context_length": u32(h.n_context),
        f"{arch}.embedding_length": u32(h.n_embd),
        f"{arch}.feed_forward_length": u32(h.n_ff),
        f"{arch}.attention.head_count": u32(h.n_heads),
        f"{arch}.attention.head_count_kv": u32(h.n_kv_heads),
        f"{arch}.attention.key_length": u32(h.head_dim),
        f"{arch}.attention.value_length": u32(h.head_dim),
        f"{arch}.attention.layer_norm_rms_epsilon": f32(h.rms_eps),
        f"{arch}.rope.freq_base": f32(h.rope.theta),
        f"{arch}.rope.dimension_count": u32(h.head_dim),
        f"{arch}.vocab_size": u32(h.n_vocab),
    }
    return metadata | _rope_metadata(f"{arch}.rope.scaling.", h, notes)


def _rope_metadata(prefix: str, h: HParams, notes: list[str]) -> dict[str, Value]:
    """Linear and YaRN scaling are keys; llama3's factors are a tensor; what the graph lacks is noted or refused."""
    rope = h.rope
    if rope.scaling in ("default", "llama3"):
        return {}
    if rope.scaling == "linear":
        return {f"{prefix}type": string("linear"), f"{prefix}factor": f32(rope.number("factor"))}
    if rope.scaling == "yarn":
        _require_yarn_defaults(rope)
        original = int(rope.number("original_max_position_embeddings", h.n_context))
        return {
            f"{prefix}type": string("yarn"),
            f"{prefix}factor": f32(rope.number("factor")),
            f"{prefix}original_context_length": u32(original),
        }
    if rope.scaling == "dynamic":
        notes.append(
            "rope scaling 'dynamic' is left out, which llama.cpp does not compute: "
            "the model is exact up to the context it was first trained for"
        )
        return {}
    raise UnsupportedError(
        f"{rope.path}: rope_type {excerpt(rope.scaling)} is not known for this architecture; "
        "known: default, linear, dynamic, llama3, yarn"
    )


def _require_yarn_defaults(rope: Rope) -> None:
    """llama.cpp's `llama` graph computes YaRN with these values, whatever the file says."""
    factor = rope.number("factor")
    usual = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 0.1 * math.log(factor) + 1.0,
        "extrapolation_factor": 1.0,
    }
    for key, value in usual.items():
        if not math.isclose(rope.number(key, value), value, rel_tol=1e-4):
            raise UnsupportedError(
                f"{rope.path}: rope scaling 'yarn' with {key} {excerpt(rope.parameters[key])}; llama.cpp computes "
                f"this architecture with {value:g} only"
            )
    for key in ("mscale", "mscale_all_dim"):
        if rope.parameters.get(key):
            raise UnsupportedError(
                f"{rope.path}: rope scaling 'yarn' with {key}, which llama.cpp does not compute here"
            )
    if rope.parameters.get("truncate") is False:
        raise UnsupportedError(f"{rope.path}: rope scaling 'yarn' with truncate false; llama.cpp truncates")


def _rope_factors(h: HParams) -> PlannedTensor:
    """Llama 3.1's frequency factors, float32 [head_dim / 2] (transformers, `_compute_llama3_parameters`).

    Long wavelengths are slowed down by `factor`, short ones are kept, those between are blended.
    """
    rope = h.rope
    factor = rope.number("factor")
    low = rope.number("low_freq_factor")
    high = rope.number("high_freq_factor")
    original = rope.number("original_max_position_embeddings", h.n_context)
    if not low < high:
        raise FormatError(rope.path, f"low_freq_factor {low:g} must be less than high_freq_factor {high:g}")
    # float32 throughout: llama.cpp's converter computes these in float32, and its files are the reference.
    exponents = np.arange(0, h.head_dim, 2, dtype=np.float32) / np.float32(h.head_dim)
    wavelengths = np.float32(2 * math.pi) / (np.float32(1) / np.float32(rope.theta) ** exponents)
    factors = []
    for wavelength in wavelengths:
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
            factors.append(float(1 / ((1 - smooth) / np.float32(factor) + smooth)))
    shape = (h.head_dim // 2,)
    type = TensorType.F32
    return PlannedTensor(
        "rope_freqs.weight", shape, type, tuple(factors), None, 0, tensor_bytes(type, shape), wanted=type
    )
