"""Planning the way back: a GGUF model to a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from llmkit.convert.archs import FAMILIES, ConfigReader, Family, HParams, LacksPartError
from llmkit.convert.archs.pooling import write_pooling
from llmkit.convert.encoding import require_schemes
from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.plan import ConversionPlan, PlannedFile, PlannedTensor, Stored
from llmkit.convert.restore import mxfp4
from llmkit.convert.restore.hparams import read_hparams
from llmkit.convert.restore.tensors import Restored, restore_tensors
from llmkit.convert.restore.tokenizer import special_ids, tokenizer_documents
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.safetensors_layout import plan_safetensors
from llmkit.types import TensorType, tensor_bytes

# What transformers calls the types.
_DTYPES: Final = {TensorType.F32: "float32", TensorType.F16: "float16", TensorType.BF16: "bfloat16"}
DEFAULT_SHARD: Final = 5_000_000_000


def plan_checkpoint(
    source: GGUFSource, type: TensorType | None = None, *, shard_size: int = DEFAULT_SHARD
) -> ConversionPlan:
    """Plan the checkpoint that `source` came from, or might have come from.

    Reads no weights but rotary factors, and of embedding and output matrix as much as they have in common.

    type: of all tensors, F32, F16 or BF16; by default what the file's matrices have, and F16 for quantised ones. By
        default, too, MXFP4 stays what it is where the family's checkpoints have it, which are GPT-OSS's.
    shard_size: bytes of tensor data from which on the next SafeTensors file begins.

    Raises UnsupportedError for an architecture or tokenizer that llmkit cannot restore, FormatError for damage.
    """
    family, hparams, restored = identify(source, keep_blocks=type is None)
    type = _usual_type(source, restored) if type is None else type
    files = _weight_files(restored, type, shard_size)
    config = _config(family, hparams, source, type)
    if any(tensor.type is not None for tensor in restored):
        config["quantization_config"] = mxfp4.SETTINGS
    documents = {
        "config.json": config,
        **tokenizer_documents(source, hparams.n_context),
        **write_pooling(hparams.pooling, hparams.n_embd),
    }
    if hparams.causal is not False:
        documents["generation_config.json"] = special_ids(source)
    if len(files) > 1:
        documents["model.safetensors.index.json"] = _index(files)
    plan = ConversionPlan(
        source=source.path,
        target="safetensors",
        architecture=family.model_type,
        label=type.name,
        files=(*files, *(document(name, value) for name, value in documents.items())),
        notes=(),
    )
    require_schemes(plan.tensors)
    return plan


def identify(source: GGUFSource, *, keep_blocks: bool) -> tuple[Family, HParams, list[Restored]]:
    """The family that a GGUF file is of, its hyper-parameters, and the checkpoint's tensors (see `restore_tensors`).

    Raises UnsupportedError for an architecture that llmkit does not know, FormatError for damage.
    """
    value = source.metadata.get("general.architecture")
    architecture = value.data if value is not None else None
    families = [family for family in FAMILIES if family.gguf_architecture == architecture]
    if not isinstance(architecture, str) or not families:
        known = ", ".join(sorted({family.gguf_architecture for family in FAMILIES}))
        raise UnsupportedError(f"{source.path}: architecture {architecture!r} is not known to llmkit; known: {known}")
    hparams = read_hparams(source, architecture)
    return _find(families, hparams, source, keep_blocks=keep_blocks)


def _find(
    families: Sequence[Family], hparams: HParams, source: GGUFSource, *, keep_blocks: bool
) -> tuple[Family, HParams, list[Restored]]:
    """The first of the families whose tensors these are, and the hyper-parameters as it reads them."""
    metadata = ConfigReader(source.path, {key: value.data for key, value in source.metadata.items()})
    tokenizer = metadata.values.get("tokenizer.ggml.model")
    tensors = {tensor.name: tensor for tensor in source.tensors}
    for family in families:
        if family.tokenizers and tokenizer not in family.tokenizers:
            continue
        # Numbers of a damaged file may contradict each other in ways that only the rules notice.
        try:
            if not family.wrote(hparams):
                continue
            found = family.from_file(metadata, hparams)
            restored = restore_tensors(family, found, tensors, source.path, keep_blocks=keep_blocks)
        except (LacksPartError, ValueError, ZeroDivisionError):
            continue
        if restored is not None:
            return family, found, restored
    names = ", ".join(family.model_type for family in families)
    raise FormatError(source.path, f"its tensors are not those that its metadata describes ({names})")


def _usual_type(source: GGUFSource, restored: Sequence[Restored]) -> TensorType:
    """The float type of most weights, or F16, which holds what quantised weights decode to nearly exactly."""
    parts = (part for tensor in restored if tensor.type is not None for part in tensor.parts)
    kept = {file.name for part in parts if isinstance(part, Stored) for file in part.files}
    weights: dict[TensorType, int] = {}
    for tensor in source.tensors:
        if len(tensor.shape) > 1 and tensor.name not in kept:
            type = TensorType[tensor.dtype]
            weights[type] = weights.get(type, 0) + tensor.n_elements
    most = max(weights, key=lambda type: weights[type], default=TensorType.F32)
    return most if most in _DTYPES else TensorType.F16


def _weight_files(restored: Sequence[Restored], type: TensorType, shard_size: int) -> list[PlannedFile]:
    groups: list[list[Restored]] = [[]]
    filled = 0
    for tensor in restored:
        n_bytes = tensor_bytes(tensor.stored_as(type), tensor.shape)
        if groups[-1] and filled + n_bytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += n_bytes
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = ["model.safetensors"]
    return [_weight_file(name, group, type) for name, group in zip(names, groups, strict=True)]


def _weight_file(name: str, tensors: Sequence[Restored], type: TensorType) -> PlannedFile:
    layout = plan_safetensors([(t.name, t.stored_as(type), t.shape) for t in tensors])
    planned = tuple(
        PlannedTensor(
            name=tensor.name,
            shape=tensor.shape,
            type=tensor.stored_as(type),
            parts=tensor.parts,
            offset=offset,
            nbytes=tensor_bytes(tensor.stored_as(type), tensor.shape),
            wanted=tensor.stored_as(type),
            map=tensor.map,
        )
        for tensor, offset in zip(tensors, layout.offsets, strict=True)
    )
    return PlannedFile(layout.header, planned, layout.total_bytes, name)


def _index(files: Sequence[PlannedFile]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(tensor.nbytes for file in files for tensor in file.tensors)},
        "weight_map": {tensor.name: file.name for file in files for tensor in file.tensors},
    }


def _config(family: Family, hparams: HParams, source: GGUFSource, type: TensorType) -> dict[str, Any]:
    if family.write_config is None:
        raise UnsupportedError(f"{source.path}: llmkit cannot write config.json for {family.architectures[0]} yet")
    return {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        **family.write_config(hparams),
        # The classes have ids of their own for what is not stated, of which small vocabularies have no row.
        **{f"{kind}_token_id": None for kind in ("bos", "eos", "pad")},
        **special_ids(source),
        "torch_dtype": _DTYPES[type],
    }


def document(name: str, value: Any) -> PlannedFile:
    """A file of JSON."""
    data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    return PlannedFile(data, (), len(data), name)
