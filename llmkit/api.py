"""The functions behind `llmkit.convert` and `llmkit.load`."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import LlmkitError, OutputError, UnsupportedError
from llmkit.progress import Silent
from llmkit.protocols import Progress, Session

if TYPE_CHECKING:
    from llmkit.convert.plan import ConversionPlan
    from llmkit.models import ResolvedModel
    from llmkit.quantize.recipes import Recipe

DEFAULT_MEMORY = "1GiB"


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """What a conversion did: the `plan`, where its output lies, and how long it took.

    After a dry run nothing lies at `path`, and `seconds` is the time that planning took.
    """

    path: Path
    plan: ConversionPlan
    seconds: float
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plan = self.plan
        return {
            "path": str(self.path),
            "written": not self.dry_run,
            "target": plan.target,
            "architecture": plan.architecture,
            "bytes": plan.total_bytes,
            "parameters": plan.n_params,
            "bits_per_weight": round(plan.bits_per_weight, 4),
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
            "notes": list(plan.notes),
        }


def convert(
    model: str | os.PathLike[str] | ResolvedModel,
    to: str,
    *,
    output: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int | str = DEFAULT_MEMORY,
    allow_nonfinite: bool = False,
    tokenizer_pre: str | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Convert a checkpoint to a GGUF file, quantised on the way.

    model: a folder, `org/name[@revision]` or a word, as on the command line, or what `llmkit.models.resolve` returned.
    to: `gguf-<type>`, such as gguf-q4_k_m; `llmkit.quantize.recipes.RECIPES` lists the types.
    output: the file to write, or a folder for it; by default `<model name>-<TYPE>.gguf` in the current folder.
    threads: number of worker threads; by default one per CPU of this process.
    memory: bound on the buffers of all threads, in bytes or as "512MiB", "2GB".
    allow_nonfinite: convert NaN and infinite weights too instead of raising NonFiniteError.
    tokenizer_pre: llama.cpp's name of the pre-tokenizer, where it cannot be told from tokenizer.json.

    Raises a subclass of LlmkitError; nothing lies at the output's final name then.
    """
    from llmkit.convert.checkpoint import open_checkpoint
    from llmkit.convert.execute import check_budget, execute
    from llmkit.convert.gguf_target import default_output, plan_gguf
    from llmkit.formats.output import check_output
    from llmkit.models import ResolvedModel, resolve

    started = time.monotonic()
    recipe = parse_target(to)
    n_threads = _default_threads() if threads is None else threads
    if n_threads < 1:
        raise LlmkitError(f"threads is {n_threads}; at least 1 is needed")
    budget = parse_bytes(memory)
    progress = progress or Silent()
    resolved = (
        model if isinstance(model, ResolvedModel) else resolve(os.fspath(model), want="checkpoint", progress=progress)
    )
    path = default_output(resolved.name, recipe)
    if output is not None:
        path = _output_path(os.fspath(output), path)
    check_output(path, overwrite=overwrite or dry_run)
    checkpoint = open_checkpoint(resolved.path)
    if path.exists() and any(_is_input(file) and file.samefile(path) for file in resolved.path.iterdir()):
        raise OutputError(f"{path}: belongs to the checkpoint that is to be converted; name another file with -o")
    plan = plan_gguf(checkpoint, recipe, model_id=resolved.repo, tokenizer_pre=tokenizer_pre)
    check_budget(plan, budget)
    if not dry_run:
        execute(
            plan,
            path,
            threads=n_threads,
            memory=budget,
            progress=progress,
            overwrite=overwrite,
            allow_nonfinite=allow_nonfinite,
        )
    return ConversionResult(path, plan, time.monotonic() - started, dry_run)


def _is_input(file: Path) -> bool:
    """Whether a file of a checkpoint folder is more than an earlier result."""
    return file.suffix != ".gguf" and file.exists()


def _output_path(output: str, default: Path) -> Path:
    if output == "-":
        raise OutputError("a GGUF file cannot go to standard output: its header is written last")
    if Path(output).is_dir():
        return Path(output) / default
    if output.endswith(os.sep):
        raise OutputError(f"{output}: no such folder")
    return Path(output)


def load(
    model: str | os.PathLike[str], *, n_context: int | None = None, n_threads: int | None = None, **options: Any
) -> Session:
    """Load a model for running; use the session as a context manager.

    model: a .gguf file, or anything that leads to one, as on the command line.
    n_context: tokens that prompt and answer may have together.
    n_threads: CPU threads; by default one per physical core that this process may use.
    options: those of the engine, `llmkit.runtimes.llamacpp.load`.
    """
    from llmkit import runtimes
    from llmkit.models import resolve

    resolved = resolve(os.fspath(model), want="gguf")
    return runtimes.load(resolved.path, n_context=n_context, n_threads=n_threads, **options)


def parse_target(target: str) -> Recipe:
    """The recipe that `gguf-<type>` names; raises UnsupportedError listing what there is."""
    from llmkit.quantize.recipes import RECIPES, SHORT_NAMES, find_recipe

    container, _, type = target.lower().partition("-")
    if container == "gguf" and type:
        return find_recipe(type)
    known = ", ".join(f"gguf-{name}" for name in [*SHORT_NAMES, *RECIPES])
    raise UnsupportedError(f"unknown target {target!r}; known: {known}")


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_bytes(size: int | str) -> int:
    """Bytes of "1GiB", "512MiB", "2GB", "1000000"; raises LlmkitError for anything else."""
    match = (
        re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([KMG]?I?)B?\s*", size.upper()) if isinstance(size, str) else None
    )
    if match and match[2] in _UNITS:
        size = int(float(match[1]) * _UNITS[match[2]])
    if isinstance(size, int) and size > 0:
        return size
    raise LlmkitError(f"{size!r} is not a size; write it as 512MiB, 1GiB or 2GB")


def _default_threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
