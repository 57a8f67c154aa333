"""PyTorch's exported programs (.pt2): one graph for prompts and single tokens, which writes into the cache it is given.

Format: torch.export.save. The program's inputs are ids int64 [1, n] with n free, position int64 [], and keys and
values; its outputs are logits float32 [1, n, n_vocab], keys and values.
"""

from __future__ import annotations

import torch

from llmkit.convert.frameworks.base import Built, Workshop
from llmkit.convert.frameworks.torch_arrays import TorchDecoder
from llmkit.formats.silence import quietly

MODEL = "model.pt2"


def build(shop: Workshop) -> Built:
    """Trace the decoder and save the program."""
    shop.say("tracing")
    # With a bounded size the program would be held to be wrong for other strides.
    dynamic = ({1: torch.export.Dim.DYNAMIC}, None, None, None)
    with torch.no_grad(), quietly():
        decoder = TorchDecoder(shop.network, shop.weights)
        program = torch.export.export(decoder, decoder.examples(5), dynamic_shapes=dynamic)
        program.example_inputs = None  # or the caches would be in the file
        program._guards_code = []  # checks of sizes as Python code, which loading would run
        shop.say("saving")
        torch.export.save(program, shop.folder / MODEL)
    return Built({"model": MODEL})
