"""GELU as ggml computes it on a CPU, in place of transformers' own.

ggml looks the tanh approximation up in a table of 65,536 16-bit floats (ggml-cpu/vec.h), so that each value is off by
up to 0.0005 of itself; an exact GELU is approximated in the same way, which adds up to 0.0005. That hides whatever else
is wrong by a thousandth. With the same GELU on both sides most logits agree to a millionth again, though not all: where
the two differ in the last bit before the table, they may come out of it a 16-bit float apart.
"""

from __future__ import annotations

import math
from typing import Any


def use_ggml_gelu(model: Any) -> bool:
    """Give transformers' model ggml's GELU wherever it has one; returns whether it has."""
    found = [module for module in model.modules() if "GELU" in type(module).__name__]
    for module in found:
        module.forward = _gelu
    return bool(found)


def _gelu(x: Any) -> Any:
    import torch

    h = x.half().float()
    y = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * h * (1 + 0.044715 * h * h)))
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, y.half().float()))
