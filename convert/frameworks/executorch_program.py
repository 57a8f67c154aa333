"""ExecuTorch's programs (.pte) for XNNPACK: one method, `forward`, whose state are keys and values.

Inputs: ids int64 [1, n], n up to what `llmkit.json` calls tokens_at_once, and position int64 [1], how many tokens the
state holds; what lies behind them is not looked at. Output: logits float32 [1, n, n_vocab].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackFloatingPointPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

from llmkit.convert.frameworks.base import Built, Workshop, tokens_at_once
from llmkit.convert.frameworks.executorch_arrays import BufferCache, ExecutorchArrays
from llmkit.convert.frameworks.torch_arrays import quietly
from llmkit.convert.network.decoder import Decoder, Network

MODEL = "model.pte"


def build(shop: Workshop) -> Built:
    """Trace the decoder, lower what XNNPACK takes, and save the program."""
    shop.say("tracing")
    with torch.no_grad(), quietly():
        decoder = StatefulDecoder(shop.network, shop.weights)
        n = torch.export.Dim("n", min=1, max=tokens_at_once(shop.network))
        examples = torch.arange(min(5, n.max))[None], torch.tensor([0])
        traced = torch.export.export(decoder, examples, dynamic_shapes=({1: n}, None), strict=False)
        shop.say("lowering")
        lowered = to_edge_transform_and_lower(
            traced,
            partitioner=[XnnpackFloatingPointPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        del traced
        program = lowered.to_executorch(ExecutorchBackendConfig(run_reinplace_pass=True))
        shop.say("saving")
        with (shop.folder / MODEL).open("wb") as file:
            program.write_to_file(file)
    return Built({"model": MODEL})


class StatefulDecoder(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
    """`forward(ids, position)`. Weights are buffers, `.` in their names `__`; keys and values are, too."""

    def __init__(self, network: Network, weights: Mapping[str, Any]) -> None:
        super().__init__()
        self._network = network
        self._arrays = ExecutorchArrays()
        h = network.hparams
        self._arrays.prepare({h.n_embd} | {shape[-1] for name, shape in network.shapes.items() if "norm" in name})
        for name, values in weights.items():
            self.register_buffer(name.replace(".", "__"), torch.from_numpy(values))
        for block in range(h.n_layers):
            for role in ("keys", "values"):
                self.register_buffer(f"{role}__{block}", torch.zeros(network.cache_shape[1:]))

    def forward(self, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        network = self._network
        weights = {name: getattr(self, name.replace(".", "__")) for name in network.shapes}
        buffers = [
            (getattr(self, f"keys__{block}"), getattr(self, f"values__{block}"))
            for block in range(network.hparams.n_layers)
        ]
        self._arrays.begin()
        cache = BufferCache(self._arrays, ids, position, buffers, network.n_context)
        return Decoder(self._arrays, network, weights).logits(ids, cache)
