"""TorchScript: what came before PyTorch's exported programs, for programs in C++ that still load it.

Inputs and outputs are those of `torch_program`.
"""

from __future__ import annotations

import torch

from llmkit.convert.frameworks.base import Built, Workshop
from llmkit.convert.frameworks.torch_arrays import TorchDecoder
from llmkit.formats.silence import quietly

MODEL = "model.pt"


def build(shop: Workshop) -> Built:
    """Trace the decoder and save the script."""
    shop.say("tracing")
    with torch.no_grad(), quietly():
        decoder = TorchDecoder(shop.network, shop.weights)
        # Sizes are traced as they are computed, so the script takes any number of tokens. Tracing runs it, and a
        # second run to compare would find the cache changed.
        script = torch.jit.trace(decoder, decoder.examples(5), check_trace=False)
        shop.say("saving")
        torch.jit.save(script, str(shop.folder / MODEL))
    notes = ("TorchScript is deprecated in PyTorch: --to torch writes its successor",)
    return Built({"model": MODEL}, notes)
