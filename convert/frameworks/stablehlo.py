"""StableHLO: the decoder for XLA, IREE and others that compile it, once for a run of tokens and once for one token.

Of each, `prefill` and `decode`: portable bytecode (.mlirbc, which newer readers understand), the same as text (.mlir),
and JAX's serialised form of it (.jax). The weights are arguments, in a SafeTensors file. Arguments in order: the
weights, sorted by name; ids int32 [1, n]; position int32 []; keys and values. Results: logits float32 [1, n, n_vocab],
keys, values.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.export
import numpy as np

from llmkit.convert.frameworks.base import Built, Workshop, fixed_sizes
from llmkit.convert.frameworks.jax_arrays import JaxArrays
from llmkit.convert.network.decoder import Network

FORMS: Final = {"bytecode": ".mlirbc", "text": ".mlir", "jax": ".jax"}


def build(shop: Workshop) -> Built:
    """Trace the decoder for both sizes and write what it became."""
    shop.say("tracing")
    settings: dict[str, Any] = {"weights": shop.weights_name}
    for use, n in fixed_sizes(shop.network).items():
        exported = export(shop.network, n)
        names = {form: f"{use}{suffix}" for form, suffix in FORMS.items()}
        (shop.folder / names["bytecode"]).write_bytes(exported.mlir_module_serialized)
        (shop.folder / names["text"]).write_text(exported.mlir_module(), encoding="utf-8")
        (shop.folder / names["jax"]).write_bytes(exported.serialize())
        settings[use] = names["jax"]
        settings[f"{use}_forms"] = names
    return Built({**settings, **fixed_settings(shop.network)})


def export(network: Network, n: int) -> jax.export.Exported:
    """The decoder for n tokens at a time."""
    shape = jax.ShapeDtypeStruct

    def forward(weights: Any, ids: Any, position: Any, keys: Any, values: Any) -> Any:
        return network.forward(JaxArrays(), weights, ids, position, keys, values)

    weights = {name: shape(found, np.float32) for name, found in network.shapes.items()}
    cache = shape(network.cache_shape, np.float32)
    inputs = (weights, shape((1, n), np.int32), shape((), np.int32), cache, cache)
    function = jax.jit(forward, donate_argnums=(3, 4))
    # There is nothing in it that only CPUs have.
    checks = [jax.export.DisabledSafetyCheck.platform()]
    found: jax.export.Exported = jax.export.export(function, platforms=["cpu"], disabled_checks=checks)(*inputs)
    return found


def fixed_settings(network: Network) -> dict[str, Any]:
    """What `llmkit.json` says of models with arguments in order."""
    sizes = fixed_sizes(network)
    return {
        "tokens_at_once": sizes["prefill"],
        "arguments": [*(f"weight {name}" for name in sorted(network.shapes)), "ids", "position", "keys", "values"],
        "results": ["logits", "keys", "values"],
    }
