"""LiteRT (.tflite): one file with a signature for a run of tokens and one for a single one, which share the weights.

Signatures `prefill` and `decode`, with the names that LiteRT-LM's models have: tokens int32 [1, n], input_pos int32 [n],
of each block kv_cache_k_N and kv_cache_v_N float32 [1, heads, positions, width] in; logits float32 [1, n, n_vocab] and
the caches out. Of int8, the matrices have a scale for each row, and what they are multiplied with is rounded to 8 bits
while the model runs (dynamic range). Format: LiteRT's schema.fbs, file identifier TFL3.
"""

from __future__ import annotations

from typing import Final

import litert_torch
import torch
from ai_edge_quantizer import quantizer, recipe

from llmkit.convert.frameworks.base import Built, Workshop, fixed_sizes
from llmkit.convert.frameworks.litert_arrays import IDS, LOGITS, POSITIONS, LiteRtDecoder, cache_names
from llmkit.convert.frameworks.torch_arrays import quietly

MODEL: Final = "model.tflite"


def build(shop: Workshop) -> Built:
    """Trace the decoder for both sizes, convert what it became and round its weights."""
    shop.say("tracing")
    sizes = fixed_sizes(shop.network)
    with torch.no_grad(), quietly():
        decoder = LiteRtDecoder(shop.network, shop.weights).eval()
        converter = litert_torch.Converter()
        for use, n in sizes.items():
            converter.signature(use, decoder, sample_kwargs=decoder.named_examples(n))
        model = converter.convert(lightweight_conversion=True)
        shop.say("saving")
        model.export(str(shop.folder / MODEL))
    caches = [name for part in cache_names(shop.network) for name in part]
    settings = {
        "model": MODEL,
        "tokens_at_once": sizes["prefill"],
        "arguments": [IDS, POSITIONS, *caches],
        "results": [LOGITS, *caches],
    }
    return Built(settings)
