"""Encoding and decoding on one core: llmkit's kernels beside ggml's C and gguf-py's NumPy, in one process."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from benchmarks.report import table
from llmkit.quantize.schemes import SCHEMES, Scheme, scheme
from llmkit.types import BLOCK_LAYOUTS, TensorType
from tests import ggml

COLUMNS: Final = 4096
ROWS: Final = 64  # one megabyte of float32 weights: held by the caches
ROWS_IN_MEMORY: Final = 4096  # 64 MB: more than the caches hold
ROUNDS: Final = 7
SECONDS: Final = 0.01  # the least that one timing takes; shorter calls are repeated
README: Final = Path(__file__).resolve().parent.parent.parent / "README.md"
BEGIN: Final = "<!-- scripts/bench kernels --write-readme: from here"
END: Final = "<!-- to here -->"


@dataclass(frozen=True)
class Speeds:
    """Million weights per second; None for a peer that cannot do it."""

    llmkit: float
    ggml: float | None
    gguf: float | None


@dataclass(frozen=True)
class Result:
    """One type. Encoding: None for a type that is only read, with an importance matrix None for one that uses none."""

    type: str
    encode: Speeds | None
    encode_with_imatrix: Speeds | None
    decode: Speeds
    decode_from_memory: Speeds


def measure(names: Sequence[str], quick: bool) -> list[Result]:
    """Measure the schemes called `names`, all if there are none. Raises SystemExit for an unknown name."""
    known = {type.name: type for type in SCHEMES}
    if unknown := [name for name in names if name.upper() not in known]:
        raise SystemExit(f"unknown type {unknown[0]!r}; known: {', '.join(known)}")
    return [_measure_type(scheme(known[name.upper()]), quick) for name in names or known]


def as_tables(results: Sequence[Result], quick: bool) -> str:
    """Two Markdown tables, of encoding and of decoding."""
    rounds = _rounds(quick)
    written = [result for result in results if result.encode]
    encoding = [(r.type, *_cells(r.encode, gguf=True), *_cells(r.encode_with_imatrix)) for r in written]
    decoding = [(r.type, *_cells(r.decode, gguf=True), *_cells(r.decode_from_memory)) for r in results]
    title = f"million weights per second of one core; medians of {rounds} rounds in turn, rows of {COLUMNS} weights"
    head = ("", "llmkit", "ggml", "ratio", "gguf-py", "ratio")
    tables = [table(f"Decoding, {title}", (*head, "from memory", "ggml", "ratio"), decoding)]
    if encoding:
        tables.insert(0, table(f"Encoding, {title}", (*head, "with imatrix", "ggml", "ratio"), encoding))
    return "\n".join(tables)


def as_json(results: Sequence[Result], machine: str) -> str:
    """All figures for programs."""
    return json.dumps(
        {"machine": machine, "unit": "million weights/s", "types": [asdict(r) for r in results]}, indent=2
    )


def write_readme(text: str, path: Path = README) -> None:
    """Put `text` between the marks in the README. Raises SystemExit if they are not there."""
    old = path.read_text(encoding="utf-8")
    new, found = re.subn(
        f"(?s)(?<={re.escape(BEGIN)} -->\n).*?(?={re.escape(END)})", lambda _: f"{text.strip()}\n\n", old
    )
    if found != 1:
        raise SystemExit(f"{path}: expected the lines {BEGIN} --> and {END} once")
    path.write_text(new, encoding="utf-8")


def _rounds(quick: bool) -> int:
    return 3 if quick else ROUNDS


def _measure_type(s: Scheme, quick: bool) -> Result:
    weights = _weights(8 if quick else ROWS)
    packed = np.empty((len(weights), s.row_bytes(COLUMNS)), np.uint8)
    encoding = weighted = None
    if s.encoder:
        encoding = _speeds(_encoders(s, weights, packed, None), weights.size, quick)
        if s.uses_importance:
            importance = np.random.default_rng(1).standard_normal(COLUMNS).astype(np.float32) ** 2
            weighted = _speeds(_encoders(s, weights, packed, importance), weights.size, quick)
    else:
        packed[:] = _some_blocks(s).reshape(1, -1)
    decoding = _speeds(_decoders(s, packed, np.empty_like(weights)), weights.size, quick)
    n_rows = ROWS_IN_MEMORY // 8 if quick else ROWS_IN_MEMORY
    large = _decoders(s, np.resize(packed, (n_rows, packed.shape[1])), np.empty((n_rows, COLUMNS), np.float32))
    large.pop("gguf", None)
    from_memory = _speeds(large, n_rows * COLUMNS, quick)
    return Result(s.type.name, encoding, weighted, decoding, from_memory)


def _weights(n_rows: int) -> NDArray[np.float32]:
    """Normal and heavy-tailed rows, rounded to bfloat16 as most checkpoints are."""
    random = np.random.default_rng(0)
    values = 0.02 * random.standard_normal((n_rows, COLUMNS))
    values[1::2] = 0.02 * random.standard_t(3, values[1::2].shape)
    rows = values.astype(np.float32)
    rounded = np.empty((n_rows, 2 * COLUMNS), np.uint8)
    scheme(TensorType.BF16).encode(rows, rounded)
    scheme(TensorType.BF16).decode(rounded, rows)
    return rows


def _some_blocks(s: Scheme) -> NDArray[np.uint8]:
    """A row of arbitrary bytes for a type that nobody encodes in reasonable time, blocks with odd scales left out."""
    layout = BLOCK_LAYOUTS[s.type]
    n_blocks = COLUMNS // layout.block_size
    blocks = np.random.default_rng(2).integers(0, 256, (64 * n_blocks, layout.block_bytes), np.uint8)
    largest = np.abs(ggml.decode(s.type, blocks)).max(axis=1)
    usual: NDArray[np.uint8] = blocks[(largest > 1e-4) & (largest < 1e4)][:n_blocks]
    return usual


Action = Callable[[], object]


def _encoders(
    s: Scheme, weights: NDArray[np.float32], packed: NDArray[np.uint8], importance: NDArray[np.float32] | None
) -> dict[str, Action]:
    """Each contender's call; those of llmkit and ggml write where gguf-py makes a new array."""
    base, theirs = ggml.library(), np.empty_like(packed)

    def run_ggml() -> None:
        by_column = None if importance is None else importance.ctypes.data
        base.ggml_quantize_chunk(int(s.type), weights.ctypes.data, theirs.ctypes.data, 0, *weights.shape, by_column)

    actions: dict[str, Action] = {"llmkit": lambda: s.encode(weights, packed, importance), "ggml": run_ggml}
    # For float32 gguf-py returns its argument.
    if importance is None and s.type is not TensorType.F32:
        kind = gguf.GGMLQuantizationType(int(s.type))
        try:
            quantize(weights[:1], kind)
        except NotImplementedError:
            pass
        else:
            actions["gguf"] = lambda: quantize(weights, kind)
    return actions


def _decoders(s: Scheme, packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> dict[str, Action]:
    actions: dict[str, Action] = {"llmkit": lambda: s.decode(packed, weights)}
    if run := ggml.decoder(s.type):
        decode, theirs = run, np.empty_like(weights)
        actions["ggml"] = lambda: decode(packed.ctypes.data, theirs.ctypes.data, theirs.size)
    if s.type is not TensorType.F32 and int(s.type) in set(gguf.GGMLQuantizationType):
        kind = gguf.GGMLQuantizationType(int(s.type))
        try:
            dequantize(packed[:1], kind)
        except NotImplementedError:
            pass
        else:
            actions["gguf"] = lambda: dequantize(packed, kind)
    return actions


def _speeds(actions: Mapping[str, Action], n_weights: int, quick: bool) -> Speeds:
    """Time the actions in turn, so that whatever else the machine does hits all of them."""
    repeats = {}
    for name, action in actions.items():
        action()  # compiles, fills caches, touches pages
        repeats[name] = max(1, round(SECONDS / max(_seconds(action, 1), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(_rounds(quick)):
        for name, action in actions.items():
            times[name].append(_seconds(action, repeats[name]) / repeats[name])
    speed = {name: n_weights / median(seconds) / 1e6 for name, seconds in times.items()}
    return Speeds(speed["llmkit"], speed.get("ggml"), speed.get("gguf"))


def _seconds(action: Action, times: int) -> float:
    """Processor time of this thread, which does not count the time that other programs have the core."""
    started = time.thread_time()
    for _ in range(times):
        action()
    return time.thread_time() - started


def _cells(speeds: Speeds | None, gguf: bool = False) -> list[str]:
    """Our speed, then that of each peer with the ratio of ours to it."""
    if speeds is None:
        return ["", "", ""]
    cells = [_number(speeds.llmkit)]
    for peer in (speeds.ggml, speeds.gguf) if gguf else (speeds.ggml,):
        cells += [_number(peer), _ratio(speeds.llmkit / peer)] if peer else ["", ""]
    return cells


def _number(speed: float | None) -> str:
    if speed is None:
        return ""
    return f"{speed:,.0f}" if speed >= 20 else f"{speed:.1f}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 3 else f"{ratio:.2f}"
