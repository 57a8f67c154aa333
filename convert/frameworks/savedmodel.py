"""TensorFlow's SavedModel, with the weights as variables and a signature for a run of tokens and one for a single one.

Made by jax2tf, and loaded without JAX. Signatures `prefill` and `decode`: ids int32 [1, n], position int32 [], keys and
values in; logits float32 [1, n, n_vocab], keys and values out.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np

from llmkit.convert.frameworks.base import Built, Workshop, fixed_sizes
from llmkit.convert.frameworks.jax_arrays import JaxArrays

MODEL: Final = "model"


def build(shop: Workshop) -> Built:
    """Trace the decoder for both sizes and save the model."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    from jax.experimental import jax2tf

    shop.say("tracing")
    network, sizes = shop.network, fixed_sizes(shop.network)

    def forward(weights: Any, ids: Any, position: Any, keys: Any, values: Any) -> Any:
        logits, new_keys, new_values = network.forward(JaxArrays(), weights, ids, position, keys, values)
        return {"logits": logits, "keys": new_keys, "values": new_values}

    module = tf.Module()
    module.weights = {name: tf.Variable(np.asarray(values), trainable=False) for name, values in shop.weights.items()}
    converted = jax2tf.convert(forward, native_serialization_platforms=["cpu"])

    def signature(n: int) -> Any:
        def call(ids: Any, position: Any, keys: Any, values: Any) -> Any:
            return converted(dict(module.weights), ids, position, keys, values)

        spec, cache = tf.TensorSpec, tf.TensorSpec(network.cache_shape, tf.float32)
        function = tf.function(call, autograph=False, jit_compile=True)
        return function.get_concrete_function(
            ids=spec((1, n), tf.int32), position=spec((), tf.int32), keys=cache, values=cache
        )

    signatures = {use: signature(n) for use, n in sizes.items()}
    shop.say("saving")
    tf.saved_model.save(module, str(shop.folder / MODEL), signatures)
    return Built({"model": MODEL, "tokens_at_once": sizes["prefill"]})
