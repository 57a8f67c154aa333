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
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llmkit.convert.execute import execute
from llmkit.convert.frameworks.base import Built, Framework, Workshop
from llmkit.convert.frameworks.packages import installed_version, is_installed
from llmkit.convert.frameworks.target import WEIGHTS, stored_arrays
from llmkit.convert.plan import ConversionPlan, PlannedTensor
from llmkit.errors import DependencyError, EngineError, LlmkitError
from llmkit.formats.checkpointfiles import MANIFEST
from llmkit.formats.exported import write_manifest
from llmkit.formats.output import publish_folder
from llmkit.formats.safetensors import map_tensors
from llmkit.protocols import Progress


def require_packages(framework: Framework) -> None:
    """Raise DependencyError if one of the packages that write the format is not installed."""
    for package in framework.packages:
        if not is_installed(package):
            raise DependencyError(package.partition("|")[0], framework.extra, f"writing {framework.title}")


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
        built = _build(plan, weights, folder, progress)
        sums = {tensor.name: _checksum(tensor, weights) for tensor in plan.tensors}
        del weights
        if not framework.keeps_weights:
            (folder / WEIGHTS).unlink()
        write_manifest(folder, {**assembly.settings, **_origin(framework), **built.settings, "tensors": sums})
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [(output / path.relative_to(folder), path.stat().st_size) for path in found]
    return files, built.notes


def map_weights(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a SafeTensors file of F32, F16 and U8, as arrays whose pages are read when they are needed."""
    return map_tensors(path, ("F32", "F16", "U8"), writable=True)


def _build(plan: ConversionPlan, weights: Mapping[str, NDArray[Any]], folder: Path, progress: Progress) -> Built:
    assembly = plan.assembly
    assert assembly is not None
    framework = assembly.target.framework
    with _steps(progress, f"building {framework.title}") as say:
        shop = Workshop(
            network=assembly.network,
            tensors={tensor.name: tensor for tensor in plan.tensors},
            weights=weights,
            weights_name=WEIGHTS,
            settings=assembly.settings,
            target=assembly.target,
            folder=folder,
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
    """Report steps, each when it begins; how long they take is not known."""
    progress.start(title, 1, "model")
    try:
        yield lambda label: progress.advance(0, label)
    except BaseException:
        progress.abort()
        raise
    progress.advance(1)
    progress.finish()


def _origin(framework: Framework) -> dict[str, Any]:
    """Who wrote the folder."""
    from llmkit import __version__

    names = [name for package in framework.packages for name in package.split("|")]
    versions = {name: found for name in names if (found := installed_version(name))}
    return {"versions": {"llmkit": __version__, "python": platform.python_version(), **versions}}


def _checksum(tensor: PlannedTensor, weights: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What a tensor is, and the SHA-256 of its bytes as they went in: its elements in order, little-endian.

    Of a blockwise type these are the codes, then the scales, then the zero points.
    """
    found = [weights[name] for name, *_ in stored_arrays(tensor)]
    sums = hashlib.sha256()
    for values in found:
        sums.update(values.data.cast("B") if values.size else b"")
    return {
        "dtype": tensor.type.name,
        "shape": list(tensor.shape),
        "bytes": sum(values.nbytes for values in found),
        "sha256": sums.hexdigest(),
    }
