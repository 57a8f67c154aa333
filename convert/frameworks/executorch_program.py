"""ExecuTorch's programs (.pte) for XNNPACK: the methods `prefill` and `decode`, whose state are keys and values.

Inputs: ids int64 [1, n], of the size that a method is for, and position int64 [], how many tokens the state holds; what
lies behind them is not looked at. Output: logits float32 [1, n, n_vocab]. Both methods share weights and state; a token
embedding that is the output matrix, too, is there twice, for XNNPACK keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from llmkit.convert.frameworks.base import Built, Workshop, fixed_sizes
from llmkit.convert.frameworks.executorch_arrays import BufferCache, ExecutorchArrays
from llmkit.convert.frameworks.torch_arrays import WeightedModule
from llmkit.convert.network.decoder import Decoder, Network
from llmkit.formats.silence import quietly

MODEL: Final = "model.pte"


def build(shop: Workshop) -> Built:
    """Trace the decoder for both sizes, lower what XNNPACK takes, and save the program."""
    with torch.no_grad(), quietly():
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes import MemoryPlanningPass

        shop.say("tracing")
        sizes = fixed_sizes(shop.network)
        decoder = StatefulDecoder(shop.network, shop.weights)
        traced = {
            use: torch.export.export(decoder, (torch.arange(n)[None], torch.tensor(0)), strict=False)
            for use, n in sizes.items()
        }
        shop.say("lowering")
        lowered = to_edge_transform_and_lower(
            traced,
            partitioner=[_partitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        del traced
        program = lowered.to_executorch(
            ExecutorchBackendConfig(
                run_reinplace_pass=True,
                emit_mutable_buffer_names=True,
                memory_planning_pass=MemoryPlanningPass(share_mutable_buffers=True),
            )
        )
        shop.say("saving")
        with (shop.folder / MODEL).open("wb") as file:
            program.write_to_file(file)
    return Built({"model": MODEL, "tokens_at_once": sizes["prefill"]})


def _partitioner() -> Any:
    """Of all that XNNPACK computes in float32.

    XNNPACK's preparation has seventeen passes, most of which trace a part of the graph anew, and would take over half
    of the time. The key makes it do with one of them, the one that joins linear operations; what the others rewrite
    (convolutions, copies, orders of axes, attention with one mask for all heads) is not in this graph.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackFloatingPointPartitioner
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
    from executorch.exir.backend.compile_spec_schema import CompileSpec
    from executorch.exir.backend.partitioner import DelegationSpec

    found = XnnpackFloatingPointPartitioner()
    found.delegation_spec = DelegationSpec(XnnpackBackend.__name__, [CompileSpec("dqlinear_partitioner", b"")])
    return found


class StatefulDecoder(WeightedModule):
    """`forward(ids, position)`. Keys and values are buffers, too."""

    def __init__(self, network: Network, weights: Mapping[str, Any]) -> None:
        super().__init__(network, weights)
        h = network.hparams
        self._widths = {h.n_embd} | {shape[-1] for name, shape in network.shapes.items() if "norm" in name}
        for width in self._widths:
            self.register_buffer(f"row__{width}", torch.full((1, width), 1 / width))
        for block in range(h.n_layers):
            self.register_buffer(f"keys__{block}", torch.zeros(h.n_kv_heads, h.head_dim, network.n_context))
            self.register_buffer(f"values__{block}", torch.zeros(h.n_kv_heads, network.n_context, h.head_dim))

    def forward(self, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        blocks = range(self._network.hparams.n_layers)
        cache = BufferCache(
            ids, position, [(getattr(self, f"keys__{i}"), getattr(self, f"values__{i}")) for i in blocks]
        )
        arrays = ExecutorchArrays({width: getattr(self, f"row__{width}") for width in self._widths})
        logits = Decoder(arrays, self._network, self.weights()).logits(ids, cache)
        cache.write()
        return logits
