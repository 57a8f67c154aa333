"""What `llmkit.convert` and `llmkit.quantize` share: carrying out a plan, and what came of it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.arguments import parse_bytes, thread_count
from llmkit.errors import OutputError
from llmkit.progress import Silent
from llmkit.protocols import Progress

if TYPE_CHECKING:
    from llmkit.convert.plan import ConversionPlan
    from llmkit.convert.verify import Verification
    from llmkit.quantize.imatrix import ImportanceMatrix
    from llmkit.quantize.recipes import TypeOptions

DEFAULT_MEMORY = "1GiB"


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """What a conversion did: the `plan`, where its output lies, how long it took, and what verifying it found.

    `files` are all files with their sizes in bytes, in order; a model that was not split has one. After a dry run
    nothing lies there, `seconds` is the time that planning took, and of a deployment format the files are those that
    the model would be built from. `notes` tell what users should know.
    """

    files: tuple[tuple[Path, int], ...]
    plan: ConversionPlan
    seconds: float
    dry_run: bool
    folder: Path | None = None
    verification: Verification | None = None
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files alone."""
        return tuple(path for path, _ in self.files)

    @property
    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(size for _, size in self.files)

    @property
    def path(self) -> Path:
        """The file, the first part of a split model, by which llama.cpp loads it, or the folder of a checkpoint."""
        return self.paths[0] if self.folder is None else self.folder

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors, without headers; of a deployment format's model, which may round its weights itself, of its
        files.
        """
        if self.plan.assembly is None or self.dry_run:
            return self.plan.bits_per_weight
        from llmkit.formats.exported import belongs_to_model

        nbytes = sum(size for path, size in self.files if belongs_to_model(path))
        return 8 * nbytes / max(1, self.plan.n_params)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plan = self.plan
        return {
            "path": str(self.path),
            "files": [{"path": str(path), "bytes": size} for path, size in self.files],
            "written": not self.dry_run,
            "target": plan.target,
            "architecture": plan.architecture,
            "bytes": self.total_bytes,
            "parameters": plan.n_params,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "bits_per_weight_without_fallbacks": round(plan.bits_per_weight_wanted, 4),
            "seconds": round(self.seconds, 3),
            "types": {
                type.name: {"tensors": tensors, "parameters": weights, "bytes": size}
                for type, (tensors, weights, size) in plan.types.items()
            },
            "fallbacks": [
                {
                    "wanted": f.wanted.name,
                    "type": f.type.name,
                    "reason": f.reason,
                    "tensors": f.n_tensors,
                    "parameters": f.n_elements,
                }
                for f in plan.fallbacks
            ],
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "source": t.source_type.name,
                    "type": t.type.name,
                    "bytes": t.nbytes,
                    "importance": t.importance is not None,
                }
                for t in plan.tensors
            ],
            "verification": None if self.verification is None else _verification_dict(self.verification),
            "notes": list(self.notes),
        }


def _verification_dict(found: Verification) -> dict[str, Any]:
    return {
        "relative_error": _number(found.relative),
        "seconds": round(found.seconds, 3),
        "tensors": {t.name: _number(t.relative) for t in found.tensors},
    }


def _number(value: float) -> float | None:
    """Six digits; None for what JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Execution:
    """How a plan is carried out; see `llmkit.convert` for what the fields mean. `memory` is in bytes."""

    dry_run: bool
    overwrite: bool
    threads: int
    memory: int
    allow_nonfinite: bool
    verify: bool | None
    progress: Progress


def carry_out(
    plan: ConversionPlan, output: Path, inputs: Iterable[Path], how: Execution, started: float
) -> ConversionResult:
    """Execute `plan`, or for a dry run only check that it could be; none of the files `inputs` is replaced.

    started: when the work began, by time.monotonic.
    """
    from llmkit.convert.chunks import check_budget
    from llmkit.convert.execute import execute
    from llmkit.convert.filelayout import file_paths
    from llmkit.convert.verify import is_cheap
    from llmkit.formats.output import check_output

    paths = file_paths(output, plan.files)
    files = tuple(zip(paths, (file.total_bytes for file in plan.files), strict=True))
    check_budget(plan, how.memory)
    if plan.assembly is not None:
        return _build(plan, output, inputs, files, how, started)
    protect(inputs, paths)
    verification = None
    with _folders((output, *(path.parent for path in paths)) if plan.files[0].name else (), how.dry_run) as is_there:
        for path in paths if is_there else ():
            check_output(path, overwrite=how.overwrite or how.dry_run)
        if not how.dry_run:
            verification = execute(
                plan,
                output,
                threads=how.threads,
                memory=how.memory,
                progress=how.progress,
                overwrite=how.overwrite,
                allow_nonfinite=how.allow_nonfinite,
                verified=is_cheap(plan) if how.verify is None else how.verify,
            )
    folder = output if plan.files[0].name else None
    return ConversionResult(
        files, plan, time.monotonic() - started, how.dry_run, folder, verification, tuple(plan.notes)
    )


def _build(
    plan: ConversionPlan,
    output: Path,
    inputs: Iterable[Path],
    files: tuple[tuple[Path, int], ...],
    how: Execution,
    started: float,
) -> ConversionResult:
    """Carry out the plan of a deployment format, whose output is a folder made anew."""
    from llmkit.convert.frameworks.build import assemble
    from llmkit.formats.checkpointfiles import MANIFEST
    from llmkit.formats.output import check_folder

    check_folder(output, MANIFEST, overwrite=how.overwrite or how.dry_run)
    inside = next((path for path in inputs if output.resolve() in path.resolve().parents), None)
    if inside is not None:
        raise OutputError(f"{output}: holds a file that is to be read, {inside}; name another folder with -o")
    notes: tuple[str, ...] = ()
    if not how.dry_run:
        found, notes = assemble(
            plan,
            output,
            threads=how.threads,
            memory=how.memory,
            progress=how.progress,
            overwrite=how.overwrite,
            allow_nonfinite=how.allow_nonfinite,
        )
        files = tuple(found)
    return ConversionResult(files, plan, time.monotonic() - started, how.dry_run, output, notes=(*plan.notes, *notes))


@contextmanager
def _folders(folders: Iterable[Path], dry_run: bool) -> Iterator[bool]:
    """Make the folders that are missing, one after the other, unless nothing is written; whether all are there.

    Those that were made go again if the work fails. Raises OutputError.
    """
    missing = [folder for folder in dict.fromkeys(folders) if not folder.is_dir()]
    if dry_run:
        yield not missing
        return
    with ExitStack() as made:
        for folder in missing:
            try:
                folder.mkdir()
            except OSError as error:
                raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
            made.callback(_remove, folder)
        yield True
        made.pop_all()


def _remove(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def execution(
    dry_run: bool,
    overwrite: bool,
    threads: int | None,
    memory: int | str,
    allow_nonfinite: bool,
    verify: bool | None,
    progress: Progress | None,
) -> Execution:
    """The arguments of the API, checked. Raises LlmkitError."""
    return Execution(
        dry_run,
        overwrite,
        thread_count(threads),
        parse_bytes(memory),
        allow_nonfinite,
        verify,
        progress or Silent(),
    )


def protect(inputs: Iterable[Path], outputs: Sequence[Path]) -> None:
    """Raise OutputError if an output is one of the inputs, by whatever name."""
    existing = [path for path in outputs if path.exists()]
    for file in inputs if existing else ():
        for path in existing:
            if file.exists() and file.samefile(path):
                raise OutputError(f"{path}: is one of the files that are to be read; name another with -o")


def type_options(
    pure: bool, tensor_types: Sequence[str], output_type: str | None, token_embedding_type: str | None, fallback: bool
) -> TypeOptions:
    """The options in the recipes' terms. Raises UnsupportedError for one that cannot be."""
    from llmkit.quantize.recipes import TypeOptions, parse_tensor_type, parse_type

    return TypeOptions(
        pure=pure,
        tensor_types=tuple(parse_tensor_type(text) for text in tensor_types),
        output_type=None if output_type is None else parse_type(output_type),
        token_embedding_type=None if token_embedding_type is None else parse_type(token_embedding_type),
        fallback=fallback,
    )


def importance_from(imatrix: str | os.PathLike[str] | None) -> ImportanceMatrix | None:
    """The importance matrix in a file, if one is given. Raises FormatError."""
    if imatrix is None:
        return None
    from llmkit.convert.importance import read_importance

    return read_importance(Path(imatrix))
