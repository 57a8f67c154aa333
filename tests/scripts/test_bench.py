"""The benchmark's instruments measure what they say, and its tables come out."""

from __future__ import annotations

import json
import os
import re
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


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return import_module("benchmarks.kernels")


def test_kernels_are_measured_beside_their_peers(kernels: Any) -> None:
    written, read_only = results = kernels.measure(["q4_0", "Q8_K"], quick=True)
    assert None not in (written.encode.ggml, written.encode.gguf, written.encode_with_imatrix.ggml, written.decode.gguf)
    assert read_only.encode is read_only.encode_with_imatrix is read_only.decode.gguf is None
    assert min(written.encode.llmkit, read_only.decode.llmkit, read_only.decode_from_memory.ggml) > 1
    encoding, decoding = kernels.as_tables(results, quick=True).split("\nDecoding")
    assert (encoding.count("\n| Q"), decoding.count("\n| Q")) == (1, 2)
    assert json.loads(kernels.as_json(results, "a machine"))["types"][0]["encode"]["ggml"] == written.encode.ggml


def test_kernels_of_an_unknown_type_are_refused(kernels: Any) -> None:
    with pytest.raises(SystemExit, match=r"Q9_Z.*known: F32"):
        kernels.measure(["Q9_Z"], quick=True)


def test_kernel_tables_go_into_the_readme(kernels: Any, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for text in ("| old | \\1 |", "| new |"):
        readme.write_text(f"before\n{kernels.BEGIN} -->\nolder\n{kernels.END}\nafter\n")
        kernels.write_readme(text, readme)
        assert readme.read_text() == f"before\n{kernels.BEGIN} -->\n{text}\n\n{kernels.END}\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(SystemExit, match="expected the lines"):
        kernels.write_readme("text", readme)


def test_the_readme_shows_the_speed_of_every_type(kernels: Any) -> None:
    """It tells when a type came after the last run of scripts/bench kernels --write-readme."""
    from llmkit.quantize.schemes import SCHEMES, scheme

    shown = (ROOT / "README.md").read_text().partition(kernels.BEGIN)[2].partition(kernels.END)[0]
    encoding, decoding = (re.findall(r"(?m)^\| ([A-Z]\w+)", part) for part in shown.split("\nDecoding"))
    assert set(encoding) == {type.name for type in SCHEMES if scheme(type).encoder}
    assert set(decoding) == {type.name for type in SCHEMES}


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
