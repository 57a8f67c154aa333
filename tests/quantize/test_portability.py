"""The same bits on every processor: kernels compiled for plain x86-64 and for AVX2, against the golden vectors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

CHECK = """
import sys
import numpy as np
from numba.core.registry import cpu_target
from llmkit.quantize.schemes import SCHEMES, scheme
from tests.quantize import golden

def check_decoded(type, packed, expected):
    found = np.empty_like(expected)
    scheme(type).decode(packed, found)
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    assert same.all(), type.name

assert cpu_target.target_context.codegen().magic_tuple()[1:] == tuple(sys.argv[1:])
weights = golden.read(golden.WEIGHTS)
for type in SCHEMES:
    expected = golden.read(golden.golden_file(type))
    s = scheme(type)
    if not s.encoder:
        check_decoded(type, expected[golden.PACKED], expected[golden.DECODED])
        continue
    for case, rows in weights.items():
        packed = np.empty((len(rows), s.row_bytes(rows.shape[1])), np.uint8)
        if s.uses_importance:
            s.encode(rows, packed, golden.importance(rows.shape[1]))
            assert (packed == expected[golden.weighted(case)]).all(), (type.name, golden.weighted(case))
        s.encode(rows, packed)
        assert (packed == expected[case]).all(), (type.name, case)
        with np.errstate(all="ignore"):
            check_decoded(type, packed, s.decode_oracle(packed))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names processors of the x86 family")
@pytest.mark.parametrize(("cpu", "features"), [("x86-64", "+sse2,-avx"), ("haswell", "+avx2,+fma,+f16c,-avx512f")])
def test_golden_vectors_on_other_processors(cpu: str, features: str, tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CHECK, cpu, features]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
