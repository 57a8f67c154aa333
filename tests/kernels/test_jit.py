"""How kernels are compiled."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.kernels import jit


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


def test_works_without_a_place_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(**options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(jit, "njit", refusing)
    out = np.zeros(2, np.float32)
    jit.kernel(jit.FLOATS_IN, jit.FLOATS_OUT)(_double)(np.ones(2, np.float32), out)
    assert (out == 2).all()


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
