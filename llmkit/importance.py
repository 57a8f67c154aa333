"""The function behind `llmkit imatrix`: a model and a text give an importance matrix."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmkit.errors import LlmkitError, OutputError
from llmkit.progress import Silent
from llmkit.protocols import Progress

if TYPE_CHECKING:
    from llmkit.models import ResolvedModel

DEFAULT_OUTPUT: Final = "imatrix.gguf"
DEFAULT_CHUNK: Final = 512
# The text and its tokens are held in memory; calibration texts have a few MB.
_MAX_TEXT_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class ImportanceResult:
    """An importance matrix that was computed, and what the text showed on the way.

    path: the file. n_entries: tensors with data. missing: weight matrices without any (token embeddings are looked up,
    not multiplied, so they are always among them). partial: tensors with experts that no token reached, and how many of
    how many. perplexity: of the second half of each chunk, with its standard error. seconds: the whole run.
    """

    path: Path
    model: str
    n_entries: int
    missing: tuple[str, ...]
    partial: Mapping[str, tuple[int, int]]
    n_chunks: int
    chunk_size: int
    perplexity: float
    perplexity_error: float
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "model": self.model,
            "entries": self.n_entries,
            "missing": list(self.missing),
            "partial": {name: {"without_data": n, "experts": of} for name, (n, of) in self.partial.items()},
            "chunks": self.n_chunks,
            "chunk_size": self.chunk_size,
            "tokens": self.n_chunks * self.chunk_size,
            "perplexity": self.perplexity,
            "perplexity_error": self.perplexity_error,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }


def compute_importance(
    model: str | os.PathLike[str] | ResolvedModel,
    text: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] = DEFAULT_OUTPUT,
    chunks: int | None = None,
    chunk_size: int = DEFAULT_CHUNK,
    threads: int | None = None,
    process_output: bool = False,
    products: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ImportanceResult:
    """Compute an importance matrix, as llama-imatrix does, and write it as a GGUF file that llama-quantize reads too.

    model: a GGUF file, or a checkpoint, which is then converted to bf16 in a temporary file beside the output; named as
        on the command line, or what `llmkit.models.resolve` returned.
    text: a file of UTF-8 text, of the kind the model will work on.
    output: the file to write, or a folder for `imatrix.gguf`.
    chunks: how many chunks of `chunk_size` tokens to use at most; by default all that the text has.
    threads: by default one per physical core that this process may use.
    process_output: include the output matrix, output.weight or, where it is tied to the embedding, token_embd.weight;
        llama-imatrix leaves out the latter.
    products: also note how the activations of so many neighbouring columns go together, with which a conversion to
        4-bit ONNX makes good what rounding changes; the more, the better and the larger. llama-quantize ignores it.

    Raises a subclass of LlmkitError; nothing lies at the output's name then.
    """
    from llmkit.formats.files import read_text
    from llmkit.formats.imatrix import ImatrixFile, write_imatrix
    from llmkit.formats.output import check_output
    from llmkit.models import ResolvedModel, resolve
    from llmkit.runtimes.importance import collect, require_engine

    require_engine()
    started = time.monotonic()
    for name, number in (("chunks", chunks), ("threads", threads)):
        if number is not None and number < 1:
            raise LlmkitError(f"{name} is {number}; at least 1 is needed")
    progress = progress or Silent()
    resolved = model if isinstance(model, ResolvedModel) else resolve(os.fspath(model), progress=progress)
    path = _output_path(os.fspath(output))
    check_output(path, overwrite=overwrite)
    for read in (resolved.path, Path(text)):
        if path.exists() and read.exists() and path.samefile(read):
            raise OutputError(f"{path}: is read here; name another file with -o")
    content = read_text(Path(text), _MAX_TEXT_BYTES, ", and a few million are plenty")
    with _as_gguf(resolved, path.parent, progress) as gguf:
        found = collect(
            gguf,
            content,
            progress,
            chunk_size=chunk_size,
            max_chunks=chunks,
            n_threads=threads,
            process_output=process_output,
            products=products,
        )
        tensors = _weight_matrices(gguf)
    file = ImatrixFile(path, (os.fspath(text),), found.n_chunks, chunk_size, found.entries)
    write_imatrix(path, file, found.products, overwrite=overwrite)
    partial = {}
    for name, entry in found.entries.items():
        if without := int((entry.counts == 0).sum()):
            partial[name] = (without, len(entry.counts))
    return ImportanceResult(
        path=path,
        model=resolved.name,
        n_entries=len(found.entries),
        missing=tuple(name for name in tensors if name not in found.entries),
        partial=partial,
        n_chunks=found.n_chunks,
        chunk_size=chunk_size,
        perplexity=found.perplexity,
        perplexity_error=found.perplexity_error,
        seconds=time.monotonic() - started,
        notes=found.notes,
    )


def _output_path(output: str) -> Path:
    path = Path(output)
    return path / DEFAULT_OUTPUT if path.is_dir() else path


@contextmanager
def _as_gguf(model: ResolvedModel, folder: Path, progress: Progress) -> Iterator[Path]:
    """The model's GGUF file; a checkpoint becomes one in `folder` for the time being."""
    if model.kind == "gguf":
        yield model.path
        return
    from llmkit.api import convert

    with tempfile.TemporaryDirectory(prefix=".imatrix-", dir=folder) as temporary:
        yield convert(model, "gguf-bf16", output=Path(temporary) / "model.gguf", progress=progress).path


def _weight_matrices(path: Path) -> list[str]:
    """The names of all weights of two dimensions or more, of all parts if the model is split."""
    from llmkit.formats.checkpointfiles import whole_set
    from llmkit.formats.gguf import open_gguf

    names = []
    for file in whole_set(path):
        with open_gguf(file) as gguf:
            names += [t.name for t in gguf.tensors.values() if len(t.shape) > 1 and t.name.endswith(".weight")]
    return names
