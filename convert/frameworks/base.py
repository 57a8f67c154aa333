"""What a deployment format is, and what the model of one is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.network.decoder import Network
from llmkit.convert.plan import PlannedTensor
from llmkit.quantize.schemes import WeightType
from llmkit.types import TensorType

# How many tokens of a prompt pass together, at most; and how much memory experts may take that are gathered for them.
PREFILL: Final = 128
_FIXED_PREFILL: Final = 64  # where shorter runs are filled up
_GATHERED_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Precision:
    """The types that weights have when a model is built from them.

    matrices: of the matrices of blocks. tables: of token embedding and output matrix. Vectors, rotary tables and the
    matrices that choose experts are F32; what rows cannot be, by their length, is F16.
    """

    matrices: WeightType
    tables: WeightType


FP32: Final = Precision(TensorType.F32, TensorType.F32)


@dataclass(frozen=True, slots=True)
class Framework:
    """A deployment format: the target `name`, or `name-precision` with one of `precisions`, the first by default.

    title: what people call it. extra: what `pip install 'llmkit[...]'` needs for writing it. packages: the
    distributions whose versions count; `a|b` is either. keeps_weights: whether the weights stay, in a SafeTensors
    file beside the model. module: within this package; has `build`.
    """

    name: str
    title: str
    extra: str
    packages: tuple[str, ...]
    module: str
    precisions: Mapping[str, Precision] = field(default_factory=lambda: {"fp32": FP32})
    keeps_weights: bool = False


@dataclass(frozen=True, slots=True)
class FrameworkTarget:
    """A format in one of its precisions."""

    framework: Framework
    precision: str

    @property
    def name(self) -> str:
        """As users write it."""
        return f"{self.framework.name}-{self.precision}"

    @property
    def label(self) -> str:
        """As in names of folders: TORCH-FP32."""
        return self.name.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What a format's `build` is given: the network, its weights by name, mapped from a file, and where to write.

    tensors: the weights as they were planned. weights: their values by name; of a
    blockwise type `<name>.codes`, `<name>.scales` and, where it has any, `<name>.zero_points`, in the shapes of
    `BlockwiseFormat`. weights_name: of the file of weights in the folder. settings: of `llmkit.json` so far. folder:
    where the files of the tokenizer are already. say: to be called with what is done next.
    """

    network: Network
    tensors: Mapping[str, PlannedTensor]
    weights: Mapping[str, NDArray[Any]]
    weights_name: str
    settings: Mapping[str, Any]
    target: FrameworkTarget
    folder: Path
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """What `build` adds to `llmkit.json`, and what users should know."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def tokens_at_once(network: Network) -> int:
    """How many tokens may pass the model together."""
    largest = max((np.prod(s[1:]) for n, s in network.shapes.items() if n.endswith("_exps.weight")), default=0)
    if not largest or network.hparams.experts is None:
        return min(PREFILL, network.n_context)
    each = int(largest) * 4 * network.hparams.experts.n_used
    return max(1, min(PREFILL, network.n_context, _GATHERED_BYTES // each))


def fixed_sizes(network: Network) -> dict[str, int]:
    """How many tokens pass together, by use, of formats that have a function for each size."""
    return {"prefill": min(_FIXED_PREFILL, tokens_at_once(network)), "decode": 1}
