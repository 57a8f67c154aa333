"""How kernels are compiled and kept."""

from __future__ import annotations

import errno
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.caching import IndexDataCacheFile
from numpy.typing import NDArray

from llmkit.kernels import compilecache, jit


def _double(values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for i in range(values.size):
        out[i] = values[i] * np.float32(2)


def test_compiles_when_called_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_ = jit._compile

    def counting(function: Any, arguments: Any) -> Any:
        compiled.append(function)
        time.sleep(0.05)
        return compile_(function, arguments)

    monkeypatch.setattr(jit, "_compile", counting)
    double = jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double)
    assert not compiled
    outs = [np.zeros(3, np.float32) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda out: double(np.ones(3, np.float32), out), outs))
    assert compiled == [_double]
    assert all((out == 2).all() for out in outs)


def test_one_version_serves_read_only_and_unaligned_arrays() -> None:
    double = jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double)
    values = np.frombuffer(b"\0" + np.arange(5, dtype=np.float32).tobytes(), np.uint8)[1:].view(np.float32)
    assert not values.flags.writeable
    assert not values.flags.aligned
    out = np.zeros(21, np.uint8)[1:].view(np.float32)
    double(values, out)
    np.testing.assert_array_equal(out, np.arange(5) * 2)
    with pytest.raises(TypeError):
        double(values, values)  # a target must be writable
    with pytest.raises(TypeError):
        double(np.zeros(5), out)  # type: ignore[arg-type]


def _run(kernel: Any) -> None:
    out = np.zeros(2, np.float32)
    kernel(np.ones(2, np.float32), out)
    assert (out == 2).all()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for compiled kernels."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path))
    return tmp_path / "numba"


def test_keeps_compiled_kernels(cache: Path) -> None:
    _run(jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double))
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert {path.suffix for path in kept} == {".nbi", ".nbc"}
    _run(jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == kept


def test_kept_kernels_are_those_of_the_sources(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba itself would not see an edit in the file of a helper."""
    monkeypatch.setattr(compilecache, "_SOURCES", (tmp_path,))
    found = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "helper.py").write_text(text)
        compilecache._key.cache_clear()
        found.append(compilecache._folder())
    monkeypatch.undo()
    compilecache._key.cache_clear()
    assert found[0] == found[2] != found[1]
    assert all(cache == folder.parent for folder in found)


def test_leaves_the_settings_of_numba_to_the_program(cache: Path) -> None:
    before = numba.config.CACHE_DIR, numba.config.CACHE_LOCATOR_CLASSES
    with compilecache.numba_caches_here():
        assert str(cache) in numba.config.CACHE_DIR
    assert before == (numba.config.CACHE_DIR, numba.config.CACHE_LOCATOR_CLASSES)


def test_compiles_in_memory_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not beside the sources, where Numba would go next: that folder is not named after their contents."""
    (tmp_path / "file").touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "file"))
    _run(jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double))
    assert not list(Path(__file__).parent.rglob("*.nb[ic]"))


def test_compiles_in_memory_when_the_disk_is_full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    _run(jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double))


@pytest.mark.parametrize("damaged", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("contents", [b"", b"\x80\x04garbage"])
def test_compiles_anew_what_was_damaged(cache: Path, damaged: str, contents: bytes) -> None:
    """As after a crash of the machine, which may leave a file empty."""
    _run(jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double))
    (path,) = cache.rglob(damaged)
    path.write_bytes(contents)
    _run(jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double))


def test_releases_the_gil() -> None:
    """While one thread is inside a kernel, another one runs Python."""
    spin = jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_spin)
    out = np.zeros(1, np.float32)
    spin(np.ones(1, np.float32), out)
    values = np.ones(1 << 22, np.float32)
    interval = sys.getswitchinterval()
    ticks = []
    with ThreadPoolExecutor(1) as pool:
        sys.setswitchinterval(1e-4)
        try:
            running = pool.submit(spin, values, out)
            while not running.done():
                ticks.append(time.perf_counter())
            running.result()
        finally:
            sys.setswitchinterval(interval)
    assert len(ticks) > 10


def _spin(values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    total = np.float32(0)
    for _ in range(20):
        for i in range(values.size):
            total += values[i]
    out[0] = total
