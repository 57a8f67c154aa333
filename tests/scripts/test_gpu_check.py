"""scripts/gpu_check on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_part_of_the_cpu(smollm2_checkpoint: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpucheck.py"), str(smollm2_checkpoint), "--target", "onnx-int4"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "| gguf-q4_k_m | llama.cpp, CPU |" in ran.stdout
    assert "| onnx-int4   |            CPU |" in ran.stdout
    assert ("CUDA |" in ran.stdout) != ("Nothing ran on a GPU: device cuda" in ran.stdout)
