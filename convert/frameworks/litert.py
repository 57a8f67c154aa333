"""LiteRT (.tflite): one file with a signature for a run of tokens and one for a single one, which share the weights.

Signatures `prefill` and `decode`, with the names that LiteRT-LM's models have: tokens int32 [1, n], input_pos int32
[n], of which the first counts, and of each block kv_cache_k_N and kv_cache_v_N float32 [1, heads, positions, width] in;
logits float32 [1, n, n_vocab] and the caches out. int8: dynamic range, which is a scale for each row of a matrix, and 8
bits for what it is multiplied with, while the model runs; experts, which are gathered, keep their precision. Format:
LiteRT's schema.fbs, by its own converter and quantiser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from llmkit.convert.frameworks.base import Built, Workshop, fixed_sizes
from llmkit.formats.silence import quietly, silence

MODEL: Final = "model.tflite"


def build(shop: Workshop) -> Built:
    """Trace the decoder for both sizes, convert what it became, and round its weights."""
    return Built(write_model(shop))


def write_model(shop: Workshop) -> dict[str, Any]:
    """Write the file; returns what `llmkit.json` says of it."""
    shop.say("tracing and converting")
    path = shop.folder / MODEL
    with silence():
        settings = _convert(shop, path)
    if shop.target.precision == "int8":
        shop.say("rounding weights")
        with silence():
            _round(path)
    path.chmod(0o644)  # they are written as programs are
    return settings


def _convert(shop: Workshop, path: Path) -> dict[str, Any]:
    import litert_torch
    import torch

    from llmkit.convert.frameworks.litert_arrays import IDS, LOGITS, POSITIONS, LiteRtDecoder, cache_names

    sizes = fixed_sizes(shop.network)
    with torch.no_grad(), quietly():
        decoder = LiteRtDecoder(shop.network, shop.weights).eval()
        converter = litert_torch.Converter()
        for use, n in sizes.items():
            converter.signature(use, decoder, sample_kwargs=decoder.named_examples(n))
        converter.convert(lightweight_conversion=True).export(str(path))
    caches = [name for part in cache_names(shop.network) for name in part]
    return {
        "model": path.name,
        "tokens_at_once": sizes["prefill"],
        "arguments": [IDS, POSITIONS, *caches],
        "results": [LOGITS, *caches],
    }


def _round(path: Path) -> None:
    """Matrices and the table of tokens, but those of `ExactPart`."""
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    from llmkit.convert.frameworks.litert_arrays import ExactPart

    exact = path.rename(path.with_name("exact.tflite"))
    quantizer = Quantizer(str(exact))
    for operation in (TFLOperationName.FULLY_CONNECTED, TFLOperationName.EMBEDDING_LOOKUP):
        quantizer.add_dynamic_config(f"^(?!.*{ExactPart.__name__})", operation, num_bits=8)
    quantizer.quantize(serialize_to_path=str(path), enable_progress_bar=False, enable_progress_report=False)
    exact.unlink()
