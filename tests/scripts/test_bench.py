"""The benchmark's instruments measure what they say, and its tables come out."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1_000_000


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return import_module("benchmarks.measure")


def test_anonymous_memory_is_told_from_mapped_files(measure: Any, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(150 * MEGABYTE))
    hold = "import time; time.sleep(0.2)"
    nothing = measure.run([sys.executable, "-c", hold], tmp_path / "log")
    private = measure.run([sys.executable, "-c", f"x = b'1' * {150 * MEGABYTE}; {hold}"], tmp_path / "log")
    mapping = (
        f"import mmap; f = open({str(large)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); m.find(b'1')"
    )
    mapped = measure.run([sys.executable, "-c", f"{mapping}; {hold}"], tmp_path / "log")
    assert 149 * MEGABYTE < private.peak_anonymous - nothing.peak_anonymous < 165 * MEGABYTE
    assert abs(mapped.peak_anonymous - nothing.peak_anonymous) < 10 * MEGABYTE
    assert 149 * MEGABYTE < mapped.peak_resident - nothing.peak_resident < 165 * MEGABYTE


def test_children_count_and_the_measuring_process_does_not(measure: Any, tmp_path: Path) -> None:
    ballast = b"1" * (200 * MEGABYTE)
    child = f"import time; x = b'1' * {80 * MEGABYTE}; time.sleep(0.3)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    usage = measure.run([sys.executable, "-c", code], tmp_path / "log")
    assert 80 * MEGABYTE < usage.peak_anonymous < 140 * MEGABYTE
    assert usage.peak_resident < len(ballast)


def test_a_failing_command_shows_its_message(measure: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such weights"):
        measure.run([sys.executable, "-c", "import sys; sys.exit('no such weights')"], tmp_path / "log")


def test_opening_is_measured_on_a_file_of_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    text = import_module("benchmarks.opening").open_vocabulary(1000, 1, tmp_path)
    assert "1,000 tokens" in text
    assert text.count(" s |") == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quick_conversion_prints_both_tables() -> None:
    command = [str(ROOT / "scripts" / "bench"), "convert", "--quick", "--no-peer"]
    result = subprocess.run(
        command, env={**os.environ, "LLMKIT_VENV": sys.prefix}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "SmolLM2-135M-Instruct to bf16" in result.stdout
    assert "llmkit convert --to gguf-q4_k_m" in result.stdout


def test_help_is_quick() -> None:
    """0.4 s is promised; the best of five runs leaves out what else the machine does."""
    import time

    llmkit = Path(sys.executable).with_name("llmkit")
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([llmkit, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.4
