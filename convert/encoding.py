"""What encoding a model's tensors takes: schemes for their types, and the importance of their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from llmkit.convert.plan import PlannedTensor
from llmkit.errors import UnsupportedError
from llmkit.formats.gguf import Value, string, u32
from llmkit.quantize.imatrix import ImportanceMatrix
from llmkit.quantize.recipes import PLAIN_TYPES, Choice
from llmkit.quantize.schemes import SCHEMES
from llmkit.types import TensorType

# Types whose encoding is the same with and without importance, as in ggml.
_WITHOUT_IMPORTANCE: Final = PLAIN_TYPES | {TensorType.Q8_0, TensorType.MXFP4}


def require_schemes(tensors: Sequence[PlannedTensor]) -> None:
    """Raise UnsupportedError, naming a tensor, if one changes its type from or to one without a scheme."""
    for tensor in tensors:
        types = () if tensor.is_copied else (*{part.type for part in tensor.parts}, tensor.type)
        for type in types:
            if isinstance(type, TensorType) and type not in SCHEMES:
                known = ", ".join(known.name for known in SCHEMES)
                raise UnsupportedError(
                    f"tensor {tensor.name!r} is to go from {types[0].name} to {tensor.type.name}, and "
                    f"{type.name} is not implemented; known: {known}"
                )


def weigh(
    tensors: Sequence[PlannedTensor], choices: Mapping[str, Choice], importance: ImportanceMatrix, notes: list[str]
) -> list[PlannedTensor]:
    """The tensors, those that are encoded with the importance of their columns; adds to `notes` what it leaves out.

    Raises FormatError for an importance matrix that does not fit the model, UnsupportedError if it has nothing for a
    tensor whose type needs it.
    """
    encoded = {t.name: t.shape for t in tensors if not t.is_copied and t.type not in PLAIN_TYPES}
    notes += importance.coverage(list(encoded.items())).notes()
    weighed = []
    for tensor in tensors:
        found = importance.of(tensor.name, tensor.shape) if tensor.name in encoded else None
        if found is None and tensor.name in encoded and choices[tensor.name].needs_importance:
            raise UnsupportedError(
                f"{importance.path}: has no data for tensor {tensor.name!r}, which {tensor.type.name} needs in this "
                "mixture; compute the importance matrix from more text, or take q2_k"
            )
        weighed.append(tensor if tensor.type in _WITHOUT_IMPORTANCE else replace(tensor, importance=found))
    return weighed


def importance_metadata(importance: ImportanceMatrix) -> dict[str, Value]:
    """The keys by which a file says what it was quantised with (llama.cpp, tools/quantize/quantize.cpp)."""
    metadata = {"quantize.imatrix.file": string(str(importance.path))}
    if importance.datasets:
        metadata["quantize.imatrix.dataset"] = string(importance.datasets[0])
    metadata["quantize.imatrix.entries_count"] = u32(len(importance.entries))
    if importance.n_chunks > 0:
        metadata["quantize.imatrix.chunks_count"] = u32(importance.n_chunks)
    return metadata
