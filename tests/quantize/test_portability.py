"""The same bits on every processor: kernels compiled for plain x86-64 and for AVX2, against the golden vectors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quantize import golden

CHECK = """
import sys
import numpy as np
from numba.core.registry import cpu_target
from llmkit.quantize.schemes import SCHEMES, scheme
folder, cpu, features = sys.argv[1:]
assert cpu_target.target_context.codegen().magic_tuple()[1:] == (cpu, features)
weights = np.load(f"{folder}/weights.npz")
for type in SCHEMES:
    expected = np.load(f"{folder}/{type.name.lower()}.npz")
    s = scheme(type)
    for case in weights.files:
        rows = weights[case]
        packed = np.empty((len(rows), s.row_bytes(rows.shape[1])), np.uint8)
        s.encode(rows, packed)
        assert (packed == expected[case]).all(), (type.name, case)
        decoded = np.empty_like(rows)
        s.decode(packed, decoded)
        with np.errstate(all="ignore"):
            oracle = s.decode_oracle(packed)
        same = (decoded.view(np.uint32) == oracle.view(np.uint32)) | (np.isnan(decoded) & np.isnan(oracle))
        assert same.all(), (type.name, case)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names processors of the x86 family")
@pytest.mark.parametrize(("cpu", "features"), [("x86-64", "+sse2,-avx"), ("haswell", "+avx2,+fma,+f16c,-avx512f")])
def test_golden_vectors_on_other_processors(cpu: str, features: str, tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CHECK, str(golden.FOLDER), cpu, features]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
