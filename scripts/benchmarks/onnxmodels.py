"""Checkpoint to int4 for ONNX Runtime: llmkit against ONNX Runtime GenAI's model builder, in time, size and quality."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from divergence import divergences
from numpy.typing import NDArray

from benchmarks.conversion import Options
from benchmarks.measure import Usage, middle, run, warm_page_cache
from benchmarks.report import megabytes, table

BUILDER: Final = "onnxruntime_genai.models.builder"
WINDOW: Final = 256  # tokens
_DECODED: Final = 48  # tokens, for the speed


def conversion(checkpoint: Path, options: Options, with_builder: bool) -> str:
    """The time and memory of both, processes as a user starts them."""
    warm_page_cache(checkpoint)
    folders = {"builder -p int4 -e cpu": options.folder / "builder"} if with_builder else {}
    folders["llmkit convert --to onnx-int4"] = options.folder / "ours"
    runs: dict[str, list[Usage]] = {name: [] for name in folders}
    for _ in range(options.repeat):
        for name, folder in folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            runs[name].append(run(_command(name, checkpoint, folder, options), options.folder / "log.txt"))
    rows = []
    reference = None
    for name, folder in folders.items():
        usage = middle(runs[name])
        reference = reference or usage
        size = sum(path.stat().st_size for path in folder.glob("*.onnx*"))
        ratio = f"{usage.seconds / reference.seconds:.2f}" if "llmkit" in name else ""
        rows.append(
            (name, f"{usage.seconds:.1f} s", megabytes(usage.peak_anonymous), megabytes(usage.peak_resident),
             megabytes(size), ratio)
        )  # fmt: skip
        shutil.rmtree(folder)
    head = ("", "time", "peak anonymous", "peak with mapped files", "disk", "time ratio")
    return table(f"{checkpoint.name} to int4: medians of {options.repeat} runs in turn", head, rows)


def _command(name: str, checkpoint: Path, folder: Path, options: Options) -> list[str | Path]:
    if "builder" in name:
        cache = options.folder / "cache"
        return [sys.executable, "-m", BUILDER, "-m", "model", "-i", checkpoint, "-o", folder, "-p", "int4", "-e", "cpu",
                "-c", cache]  # fmt: skip
    llmkit = Path(sys.executable).with_name("llmkit")
    return [llmkit, "convert", checkpoint, "--to", "onnx-int4", "-o", folder, "--threads", str(options.threads)]


@dataclass(frozen=True)
class _Variant:
    """A folder to compare: how llmkit makes it, with an importance matrix that has products of so many columns, or
    none (0); the builder's has no target."""

    target: str | None = None
    products: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        if self.target is None:
            return "builder -p int4 -e cpu"
        names = {"symmetric": "zero-points"}
        words = [
            f"--{names.get(key, key.replace('_', '-'))}{'' if value is False else f' {value}'}"
            for key, value in self.options.items()
        ]
        matrix = [] if self.products is None else ["--imatrix"]
        beside = [f"(--products {self.products})"] if self.products else []
        return " ".join([self.target, *words, *matrix, *beside])


_WIDE: Final = 4096
_VARIANTS: Final = (
    _Variant(),
    _Variant("onnx-int4"),
    *(_Variant("onnx-int4", products) for products in (0, 128, _WIDE)),
    _Variant("onnx-int4", _WIDE, {"symmetric": False}),
    _Variant("onnx-int4", 0, {"recipe": "quality"}),
    _Variant("onnx-int4", 128, {"recipe": "quality"}),
    _Variant("onnx-int4", _WIDE, {"recipe": "quality"}),
    _Variant("onnx-int8"),
    _Variant("onnx-fp32"),
)
BLOCKS: Final = (
    _Variant(),
    *(
        _Variant("onnx-int4", products, {"block_size": size, **zero_points})
        for products in (None, _WIDE)
        for size in (16, 32, 64, 128)
        for zero_points in ({}, {"symmetric": False})
    ),
)


def quality(
    checkpoint: Path,
    options: Options,
    n_windows: int,
    with_builder: bool,
    variants: Sequence[_Variant] = _VARIANTS,
) -> str:
    """KL divergence from transformers in float32 on windows of technical English, and decoding in turns."""
    import llmkit

    windows, other_text = _texts(checkpoint, n_windows)
    text = options.folder / "calibration.txt"
    text.write_text(other_text)
    matrices = {
        products: llmkit.compute_importance(
            checkpoint,
            text,
            output=options.folder / f"imatrix-{products}.gguf",
            process_output=True,
            products=products or None,
            chunks=4 * n_windows,
            overwrite=True,
        ).path
        for products in {v.products for v in variants if v.products is not None}
    }
    folders = {v.name: _made(v, checkpoint, matrices, options) for v in variants if v.target or with_builder}
    with llmkit.load(checkpoint, n_threads=options.threads) as session:
        expected = [session.logits(ids) for ids in windows]
    rows = []
    with ExitStack() as stack:
        sessions: dict[str, Any] = {
            name: stack.enter_context(
                llmkit.load(folder, n_context=2 * WINDOW, n_threads=options.threads, device="cpu")
            )
            for name, folder in folders.items()
        }
        speeds = _speeds(sessions, windows[0][:32], 5 * options.repeat)
        first = next(iter(speeds.values()))
        for name, session in sessions.items():
            parts = [_compared(wanted, session.logits(ids)) for wanted, ids in zip(expected, windows, strict=True)]
            kl, top = (np.concatenate(values) for values in zip(*parts, strict=True))
            size = sum(path.stat().st_size for path in folders[name].glob("*.onnx*"))
            ratio = median(mine / theirs for mine, theirs in zip(speeds[name], first, strict=True))
            rows.append(
                (name, megabytes(size), f"{kl.mean():.4f}", f"{np.quantile(kl, 0.99):.3f}", f"{top.mean():.1%}",
                 f"{median(speeds[name]):.0f} tokens/s", f"{ratio:.2f}")
            )  # fmt: skip
    for folder in folders.values():
        shutil.rmtree(folder)
    head = ("", "disk", "mean KL", "KL 99 %", "top-1 agreement", "decode", "ratio to the first")
    return table(f"{checkpoint.name}: {n_windows} windows of {WINDOW} tokens, {options.threads} threads", head, rows)


def _made(variant: _Variant, checkpoint: Path, matrices: Mapping[int, Path], options: Options) -> Path:
    import llmkit

    folder = options.folder / variant.name.replace(" ", "")
    shutil.rmtree(folder, ignore_errors=True)
    if variant.target is None:
        run(_command(variant.name, checkpoint, folder, options), options.folder / "log.txt")
        return folder
    return llmkit.convert(
        checkpoint,
        variant.target,
        output=folder,
        imatrix=None if variant.products is None else matrices[variant.products],
        **variant.options,
    ).path


def _texts(checkpoint: Path, n_windows: int) -> tuple[list[list[int]], str]:
    """Windows of tokens from the standard library's prose, and some of the rest of it as text."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = tokenizer.encode(" ".join(topics[key] for key in sorted(topics)), add_special_tokens=False).ids
    windows = [ids[start : start + WINDOW] for start in range(0, n_windows * WINDOW, WINDOW)]
    return windows, str(tokenizer.decode(ids[n_windows * WINDOW :]))


def _speeds(sessions: dict[str, Any], prompt: list[int], rounds: int) -> dict[str, list[float]]:
    """Decoded tokens a second, every session in every round."""
    from llmkit import SamplingOptions

    options = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=_DECODED)
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            for _ in session.generate(prompt, options):
                pass
            found[name].append((session.stats.n_generated - 1) / session.stats.generate_seconds)
    return found


def _compared(expected: NDArray[np.float32], found: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """KL divergence in nats at each position, and whether the most likely token is the same."""
    return divergences(expected, found), expected.argmax(-1) == found.argmax(-1)
