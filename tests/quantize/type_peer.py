"""llama.cpp's own choice of tensor types, in two ways.

`compute_types` calls the functions that llama.cpp's tests use (src/llama-ext.h); they need no file and take every
architecture, but know no importance matrix. They are C++ functions without classes in their signatures, so ctypes can
call them by their mangled names. `types_of_quantized_file` has a file of zeros quantised, which is the whole truth, and
quick too as long as the tensors are small.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np

from llmkit.formats.gguf import f32, open_gguf, plan_layout, string, u32
from llmkit.quantize.recipes import ModelShape, TypeOptions
from llmkit.types import TensorType
from tests import peer

_POINTER = ctypes.c_void_p


class _ModelDescription(ctypes.Structure):
    """`llama_quant_model_desc`."""

    _fields_ = [
        ("architecture", ctypes.c_char_p),
        *((name, ctypes.c_uint32) for name in ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert")),
        *((name, ctypes.c_uint32) for name in ("n_embd_head_k", "n_embd_head_v")),
    ]


class _InitParams(ctypes.Structure):
    """`ggml_init_params`."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool)]


class _Api:
    """The functions with their signatures."""

    def __init__(self) -> None:
        folder = Path(llama_cpp.__file__).parent / "lib"
        ggml, llama = (ctypes.CDLL(str(folder / name)) for name in ("libggml-base.so", "libllama.so"))
        bind = _bind
        self.init = bind(ggml.ggml_init, _POINTER, _InitParams)
        self.free = bind(ggml.ggml_free, None, _POINTER)
        self.overhead = bind(ggml.ggml_tensor_overhead, ctypes.c_size_t)
        self.new_tensor = bind(
            ggml.ggml_new_tensor, _POINTER, _POINTER, ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)
        )
        self.set_name = bind(ggml.ggml_set_name, _POINTER, _POINTER, ctypes.c_char_p)
        self.model = bind(
            llama._Z31llama_quant_model_from_metadataPK22llama_quant_model_desc,
            _POINTER,
            ctypes.POINTER(_ModelDescription),
        )
        self.free_model = bind(llama.llama_model_free, None, _POINTER)
        self.quantizer = bind(
            llama._Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params, _POINTER, _POINTER, _POINTER
        )
        self.free_quantizer = bind(llama._Z16llama_quant_freeP19quantize_state_impl, None, _POINTER)
        self.allows = bind(
            llama._Z38llama_quant_tensor_allows_quantizationPK19quantize_state_implPK11ggml_tensor,
            ctypes.c_bool,
            _POINTER,
            _POINTER,
        )
        self.compute_types = bind(
            llama._Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem,
            None,
            _POINTER,
            ctypes.c_int,
            ctypes.POINTER(_POINTER),
            ctypes.POINTER(ctypes.c_int),
            ctypes.c_size_t,
        )


def _bind(function, result, *arguments):  # type: ignore[no-untyped-def]
    function.restype = result
    function.argtypes = arguments
    return function


@cache
def _api() -> _Api:
    peer.silence()
    return _Api()


KEPT = TensorType.F64  # what tensors have before; no recipe chooses it


def compute_types(
    file_types: Sequence[int],
    model: ModelShape,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    options: TypeOptions,
) -> list[dict[str, TensorType]]:
    """The types that llama.cpp chooses for `tensors` (in the order of a file) in each of the `file_types`.

    Tensors that are not to be quantised are `KEPT`.
    """
    api = _api()
    description = _ModelDescription(
        model.architecture.encode(), 256, 256, model.n_layers, model.n_heads, model.n_kv_heads, model.n_experts, 64, 64
    )
    params = llama_cpp.llama_model_quantize_default_params()
    keep_alive = peer.set_options(params, options)
    context = api.init(_InitParams(len(tensors) * api.overhead() + 4096, None, True))
    loaded = api.model(ctypes.byref(description))
    quantizer = api.quantizer(loaded, ctypes.addressof(params))
    try:
        handles = [_tensor(api, context, name, shape) for name, shape in tensors]
        pointers = (_POINTER * len(handles))(*handles)
        results = (ctypes.c_int * len(handles))()
        found = []
        for file_type in file_types:
            api.compute_types(quantizer, file_type, pointers, results, len(handles))
            found.append(
                {
                    name: TensorType(result) if api.allows(quantizer, handle) else KEPT
                    for (name, _), handle, result in zip(tensors, handles, results, strict=True)
                }
            )
        return found
    finally:
        api.free_quantizer(quantizer)
        api.free_model(loaded)
        api.free(context)
        del keep_alive


def _tensor(api: _Api, context: int, name: str, shape: tuple[int, ...]) -> int:
    ne = (ctypes.c_int64 * len(shape))(*reversed(shape))
    tensor: int = api.new_tensor(context, TensorType.F32, len(shape), ne)
    api.set_name(tensor, name.encode())
    return tensor


def write_zeros(path: Path, model: ModelShape, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """A float32 GGUF file of zeros with the metadata that llama-quantize needs of most architectures."""
    prefix = f"{model.architecture}."
    numbers = {
        "block_count": model.n_layers,
        "context_length": 64,
        "embedding_length": 256,
        "feed_forward_length": 256,
        "attention.head_count": model.n_heads,
        "attention.head_count_kv": model.n_kv_heads,
        "expert_count": model.n_experts,
        "expert_used_count": min(2, model.n_experts),
        "expert_feed_forward_length": 256,
    }
    metadata = {
        "general.architecture": string(model.architecture),
        **{prefix + key: u32(number) for key, number in numbers.items()},
        prefix + "attention.layer_norm_rms_epsilon": f32(1e-5),
        prefix + "attention.layer_norm_epsilon": f32(1e-5),
    }
    layout = plan_layout(metadata, [(name, TensorType.F32, shape) for name, shape in tensors])
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.total_bytes)


def types_of_quantized_file(
    source: Path,
    target: Path,
    file_type: int,
    options: TypeOptions,
    importance_of: Sequence[tuple[str, tuple[int, ...]]],
) -> dict[str, TensorType]:
    """The types in `target`, which llama.cpp quantises from `source`; `importance_of` names the imatrix's tensors.

    The importance is 1 everywhere; without tensors there is no imatrix.
    """
    ones = {
        name: np.ones((shape[-3] if len(shape) > 2 else 1) * shape[-1], np.float32) for name, shape in importance_of
    }
    peer.quantize(source, target, file_type, threads=1, options=options, importance=ones)
    with open_gguf(target) as file:
        return {name: TensorType[info.dtype] for name, info in file.tensors.items()}
