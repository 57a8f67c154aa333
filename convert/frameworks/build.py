"""Carrying out the plan of a deployment format: weights first, the model from these, `llmkit.json` last.

All happens in a folder that appears under its name when it is complete.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.execute import execute
from llmkit.convert.frameworks.base import Built, Framework, Workshop
from llmkit.convert.frameworks.target import WEIGHTS
from llmkit.convert.plan import ConversionPlan
from llmkit.errors import DependencyError, EngineError, LlmkitError
from llmkit.formats.checkpointfiles import MANIFEST
from llmkit.formats.exported import write_manifest
from llmkit.formats.output import publish_folder
from llmkit.formats.safetensors import read_header
from llmkit.protocols import Progress

_DTYPES: Final = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}
_NAMES: Final = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def require_packages(framework: Framework) -> None:
    """Raise DependencyError if one of the packages that write the format is not installed."""
    for package in framework.packages:
        if not any(installed_version(name) for name in package.split("|")):
            raise DependencyError(package.partition("|")[0], framework.extra, f"writing {framework.title}")


def installed_version(package: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def assemble(
    plan: ConversionPlan,
    output: Path,
    *,
    threads: int,
    memory: int,
    progress: Progress,
    overwrite: bool,
    allow_nonfinite: bool,
) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """Make the folder `output`; returns its files with their sizes, and notes on what was built.

    Raises DependencyError, EngineError if the format's library fails, and what `execute` raises; `output` is as it was
    then.
    """
    assembly = plan.assembly
    assert assembly is not None
    framework = assembly.target.framework
    require_packages(framework)
    with publish_folder(output, MANIFEST, overwrite=overwrite) as folder:
        execute(
            replace(plan, assembly=None),
            folder,
            threads=threads,
            memory=memory,
            progress=progress,
            allow_nonfinite=allow_nonfinite,
            title="preparing weights",
        )
        weights = map_weights(folder / WEIGHTS)
        built = _build(plan, weights, folder, threads, progress)
        sums = {name: _checksum(values) for name, values in weights.items()}
        del weights
        if not framework.keeps_weights:
            (folder / WEIGHTS).unlink()
        write_manifest(folder, {**assembly.settings, **_origin(framework), **built.settings, "tensors": sums})
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [(output / path.relative_to(folder), path.stat().st_size) for path in found]
    return files, built.notes


def map_weights(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a SafeTensors file of F32, F16 and U8, as arrays whose pages are read when they are needed."""
    header = read_header(path)
    found: dict[str, NDArray[Any]] = {}
    for name, info in header.tensors.items():
        dtype = _DTYPES[info.dtype]
        found[name] = np.memmap(path, dtype, "c", info.offset, info.shape)  # "c": what is written stays here
    return found


def _build(
    plan: ConversionPlan, weights: Mapping[str, NDArray[Any]], folder: Path, threads: int, progress: Progress
) -> Built:
    assembly = plan.assembly
    assert assembly is not None
    framework = assembly.target.framework
    with _steps(progress, f"building {framework.title}") as say:
        shop = Workshop(
            network=assembly.network,
            architecture=plan.architecture,
            tensors={tensor.name: tensor for tensor in plan.tensors},
            weights=weights,
            weights_name=WEIGHTS,
            target=assembly.target,
            folder=folder,
            n_threads=threads,
            say=say,
        )
        try:
            module = import_module(f"llmkit.convert.frameworks.{framework.module}")
            built: Built = module.build(shop)
        except ImportError as error:
            raise DependencyError(
                error.name or framework.name, framework.extra, f"writing {framework.title}"
            ) from error
        except (LlmkitError, MemoryError):
            raise
        except Exception as error:  # of another project's exporter it may be any
            raise EngineError(f"{plan.source}: writing {framework.title} failed: {error}") from error
    return built


@contextmanager
def _steps(progress: Progress, title: str) -> Iterator[Any]:
    """Report steps, each when it begins."""
    progress.start(title, 2, "steps")
    begun: list[str] = []

    def say(label: str) -> None:
        progress.advance(1 if begun else 0, label)
        begun.append(label)

    try:
        yield say
    except BaseException:
        progress.abort()
        raise
    progress.finish()


def _origin(framework: Framework) -> dict[str, Any]:
    """Who wrote the folder."""
    from llmkit import __version__

    names = [name for package in framework.packages for name in package.split("|")]
    versions = {name: found for name in names if (found := installed_version(name))}
    return {"versions": {"llmkit": __version__, "python": platform.python_version(), **versions}}


def _checksum(values: NDArray[Any]) -> dict[str, Any]:
    """What a tensor is, and the SHA-256 of its bytes in the order of its elements, little-endian."""
    return {
        "dtype": _NAMES[values.dtype],
        "shape": list(values.shape),
        "sha256": hashlib.sha256(values.data.cast("B") if values.size else b"").hexdigest(),
    }
