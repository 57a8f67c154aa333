"""IREE: the decoder compiled ahead of time for this machine's CPU, from the same StableHLO.

`prefill.vmfb` and `decode.vmfb` hold machine code for CPUs like this one. Arguments and results are those of
`stablehlo`.
"""

from __future__ import annotations

import platform
from typing import Any, Final

from iree import compiler

from llmkit.convert.frameworks.base import Built, Workshop, fixed_sizes
from llmkit.convert.frameworks.stablehlo import export, fixed_settings

# As exact as the compiler's input, vectorised for what this CPU has.
_ARGUMENTS: Final = ("--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O2")


def build(shop: Workshop) -> Built:
    """Trace the decoder for both sizes and compile what it became."""
    settings: dict[str, Any] = {"weights": shop.weights_name}
    for use, n in fixed_sizes(shop.network).items():
        shop.say(f"compiling {use}")
        settings[use] = f"{use}.vmfb"
        compiler.compile_str(
            export(shop.network, n).mlir_module_serialized,
            input_type="stablehlo",
            target_backends=["llvm-cpu"],
            extra_args=_ARGUMENTS,
            output_file=str(shop.folder / settings[use]),
        )
    notes = ("compiled for this machine's CPU: others may lack its instructions",)
    return Built({**settings, **fixed_settings(shop.network), "machine": platform.machine()}, notes)
