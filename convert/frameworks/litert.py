"""LiteRT."""
from __future__ import annotations
import litert_torch
import torch
from llmkit.convert.frameworks.base import Built, Workshop, fixed_sizes
from llmkit.convert.frameworks.litert_arrays import LiteRtDecoder
from llmkit.convert.frameworks.torch_arrays import quietly

MODEL = "model.tflite"

def build(shop: Workshop) -> Built:
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
    return Built({"model": MODEL, "tokens_at_once": sizes["prefill"]})
