"""Runs a text through a model on llama.cpp and adds up the squared activations that each weight column meets.

What llama-imatrix does (llama.cpp, tools/imatrix/imatrix.cpp), through the scheduler's evaluation callback: chunks of
equal length, each from an empty KV cache, BOS in the place of a chunk's first token where the model wants one, and
every token an output, since llama.cpp computes the last block for outputs only.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError
from llmkit.formats.imatrix import ColumnSums
from llmkit.protocols import Progress
from llmkit.runtimes import _llama_log, _llama_model
from llmkit.runtimes._ggml_tensor import Tensor, TensorReader, open_reader
from llmkit.runtimes._interrupt import InterruptFlag, deferred_interrupt
from llmkit.runtimes._llama_embedding import is_encoder
from llmkit.runtimes._llama_vocab import Vocabulary
from llmkit.runtimes._machine import default_threads
from llmkit.runtimes._product_sums import MIN_WIDTH, ProductSums, one_blas_thread
from llmkit.runtimes._square_sums import SquareSums

DEFAULT_CHUNK: Final = 512
# llama-imatrix leaves products of fewer rows out; a shorter chunk would leave everything out.
MIN_CHUNK: Final = 16
_OUTPUTS: Final = ("output.weight", "token_embd.weight")  # what is tied has the name of the embedding
_MOST_TOKENS: Final = 512  # in one pass
_LOGITS_BYTES: Final = 1 << 28  # in one pass; llama.cpp holds them twice
_MOST_SURPRISE: Final = 700.0  # nats; the exponential of more would overflow


@dataclass(frozen=True, slots=True)
class Activations:
    """What a text showed of a model.

    entries: sums and counts by tensor name, in the order of names. products: sums of products, if asked for, of one of
    the matrices that multiply the same. n_chunks, n_tokens: how much of the text was used.
    perplexity: of the second half of each chunk, with its standard error.
    """

    entries: Mapping[str, ColumnSums]
    products: Mapping[str, NDArray[np.float32]]
    n_chunks: int
    n_tokens: int
    perplexity: float
    perplexity_error: float
    notes: tuple[str, ...]


def require_engine() -> None:
    """Raise DependencyError if llama.cpp is not there: before anything is converted for it."""
    _llama_model.bindings()


def collect(
    path: Path,
    text: str,
    progress: Progress,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    max_chunks: int | None = None,
    n_threads: int | None = None,
    process_output: bool = False,
    products: int | None = None,
) -> Activations:
    """Run `text` through the GGUF model at `path`, in chunks of `chunk_size` tokens; a shorter rest is left out.

    process_output: watch the output matrix too, also where the embedding is that (llama-imatrix leaves it out then).
    products: add up products within runs of so many columns, too, but not for experts.

    Raises FormatError for a damaged file, EngineError if llama.cpp cannot load or run it, if the text is shorter than
    one chunk, or activations are not finite; KeyboardInterrupt.
    """
    if chunk_size < MIN_CHUNK:
        raise EngineError(f"chunks of {chunk_size} tokens are too short: at least {MIN_CHUNK} are needed")
    if products is not None and products < MIN_WIDTH:
        raise EngineError(f"products within runs of {products} columns: at least {MIN_WIDTH} are needed")
    _llama_model.check_file(path, chunk_size)
    lib: Any = _llama_model.bindings()
    reader = open_reader(lib)
    model = _llama_model.load_model(lib, path)
    try:
        values = _llama_model.metadata(lib, model)
        if is_encoder(values):
            raise EngineError(f"{path}: an encoder, which predicts no tokens: importance is computed for decoders only")
        vocabulary = Vocabulary(lib, model)
        tokens = np.array(vocabulary.tokenize(text, add_special=True), np.int32)
        n_chunks = min(len(tokens) // chunk_size, max_chunks or len(tokens))
        if not n_chunks:
            raise EngineError(
                f"the text has {len(tokens):,} tokens; one chunk needs {chunk_size:,}, and a good importance matrix "
                "some hundred chunks: give a longer text, or shorter chunks (-c, chunk_size)"
            )
        notes = []
        trained: int = lib.llama_model_n_ctx_train(model)
        if trained and chunk_size > trained:
            notes.append(f"chunks of {chunk_size:,} tokens are longer than the {trained:,} the model was trained for")
        _llama_model.check_cache_fits(lib, model, values, chunk_size)
        watcher = _Watcher(reader, process_output=process_output, width=products)
        run = _Run(lib, model, watcher, chunk_size, n_threads or default_threads(), vocabulary.n_tokens)
        try:
            with nullcontext() if products is None else one_blas_thread():
                surprises = _feed(run, vocabulary, tokens, n_chunks, len(text.encode("utf-8", "replace")), progress)
        finally:
            run.close()
    finally:
        lib.llama_model_free(model)
    perplexity = _perplexity(surprises)
    return Activations(
        entries={name: ColumnSums(s.sums, s.counts) for name, s in sorted(watcher.sums.items())},
        products={name: products.sums for name, products in sorted(watcher.products.items())},
        n_chunks=n_chunks,
        n_tokens=n_chunks * chunk_size,
        perplexity=perplexity,
        perplexity_error=perplexity * float(surprises.std()) / math.sqrt(max(1, surprises.size - 1)),
        notes=tuple(notes),
    )


def _perplexity(surprises: NDArray[np.float64]) -> float:
    return math.exp(min(float(surprises.mean()), _MOST_SURPRISE))


def _feed(
    run: _Run, vocabulary: Vocabulary, tokens: NDArray[np.int32], n_chunks: int, n_bytes: int, progress: Progress
) -> NDArray[np.float64]:
    """Run the chunks; the progress counts the bytes of the text they stand for. Returns all surprises in nats."""
    size = run.chunk_size
    total = n_bytes * n_chunks * size // len(tokens)
    surprises = []
    progress.start("Running the text through the model", total)
    try:
        for number in range(n_chunks):
            chunk = tokens[number * size : (number + 1) * size]
            first = vocabulary.bos if vocabulary.adds_bos else None
            surprises.append(run.chunk(chunk, first))
            done = [total * n // n_chunks for n in (number, number + 1)]
            perplexity = _perplexity(np.concatenate(surprises))
            progress.advance(done[1] - done[0], f"chunk {number + 1} of {n_chunks}, perplexity {perplexity:.2f}")
    except BaseException:
        progress.abort()
        raise
    progress.finish()
    return np.concatenate(surprises)


class _Watcher:
    """Sees every tensor that llama.cpp computes, and adds up what the weights' products multiply."""

    def __init__(self, reader: TensorReader, *, process_output: bool, width: int | None) -> None:
        self.sums: dict[str, SquareSums] = {}
        self.products: dict[str, ProductSums] = {}
        self.flag = InterruptFlag()
        self.failure: BaseException | None = None
        self._reader = reader
        self._process_output = process_output
        self._width = width
        self._firsts: dict[int, str] = {}  # of the matrices of this pass, by the address of what they multiply

    def new_pass(self) -> None:
        """The graph is built anew: its tensors may lie where others lay."""
        self._firsts.clear()

    def __call__(self, address: int, ask: bool, _data: object) -> bool:
        """The scheduler's callback: with `ask`, whether to stop after this tensor; else False ends the pass.

        An exception must not pass through C, so it is kept, and the pass ends at the next tensor.
        """
        try:
            if self.failure is not None or self.flag.is_set:
                return ask
            product = self._reader.tensor(address)
            if ask:
                return self._is_wanted(product)
            self._add(product)
        except BaseException as error:
            self.failure = error
            return ask
        return True

    def _is_wanted(self, product: Tensor) -> bool:
        op = product.op
        if op == "MUL_MAT_ID":
            return True
        if op != "MUL_MAT":
            return False
        rows = product.source(1)
        if rows.shape[2] < MIN_CHUNK or not rows.is_float32:
            return False
        name = weight_name(product.source(0).name)
        return name.startswith("blk.") or (self._process_output and name in _OUTPUTS)

    def _add(self, product: Tensor) -> None:
        weights, rows = product.source(0), product.source(1)
        name = weight_name(weights.name)
        stack = weights.shape[:2]
        n_matrices = stack[0] * stack[1]
        entry = self.sums.setdefault(name, SquareSums(n_matrices, rows.shape[3]))
        if entry.sums.shape != (n_matrices, rows.shape[3]):
            raise EngineError(f"tensor {name!r} multiplies {rows.shape[3]} columns now, {entry.sums.shape[1]} before")
        if product.op == "MUL_MAT_ID":
            ids = self._reader.values(product.source(2))[0, 0].copy()
            if ids.min() < 0 or ids.max() >= n_matrices:
                raise EngineError(f"tensor {name!r}: expert {ids.max()} was chosen of {n_matrices}")
            entry.add_routed(self._reader.values(rows)[0], ids)
        else:
            values = self._reader.values(rows)
            entry.add(values, (stack[0], stack[1]))
            if self._width is not None and n_matrices == 1:
                self._add_products(name, rows, values)
        if not np.isfinite(entry.sums).all():
            raise EngineError(
                f"tensor {name!r}: the activations it multiplies are not finite; the model's weights are damaged, or "
                "overflow on this text"
            )

    def _add_products(self, name: str, rows: Tensor, values: NDArray[np.float32]) -> None:
        """Add the products, if this matrix is the first of those that multiply the same."""
        assert self._width is not None
        if self._firsts.setdefault(rows.address, name) == name:
            self.products.setdefault(name, ProductSums(values.shape[-1], self._width)).add(values)


def weight_name(name: str) -> str:
    """A weight's own name: the scheduler calls its copy on another device `CUDA0#blk.0.attn_k.weight#0`."""
    return name.split("#")[1] if "#" in name else name


class _Run:
    """A context that takes one chunk of `chunk_size` tokens at a time and shows `watcher` all it computes."""

    def __init__(self, lib: Any, model: Any, watcher: _Watcher, chunk_size: int, n_threads: int, n_vocab: int) -> None:
        most = min(_MOST_TOKENS, max(2 * MIN_CHUNK, _LOGITS_BYTES // (4 * n_vocab)))
        # Parts of one length: a short rest would fall under the limit for small products.
        self._part = math.ceil(chunk_size / math.ceil(chunk_size / most))
        self._lib = lib
        self._watcher = watcher
        self._callback = lib.ggml_backend_sched_eval_callback(watcher)
        self._n_vocab = n_vocab
        self.chunk_size = chunk_size
        params = lib.llama_context_default_params()
        params.n_ctx = chunk_size
        params.n_batch = params.n_ubatch = self._part
        params.n_outputs_max = params.n_outputs_max_per_seq = self._part
        params.n_threads = params.n_threads_batch = n_threads
        params.cb_eval = self._callback
        self._pointer = lib.llama_init_from_model(model, params)
        if not self._pointer:
            reason = _llama_log.last_errors() or "no reason given"
            raise EngineError(f"llama.cpp could not set up a context of {chunk_size} tokens: {reason}")
        self._memory = lib.llama_get_memory(self._pointer)
        self._tokens = np.zeros(self._part, np.int32)
        self._positions = np.zeros(self._part, np.int32)
        self._outputs = np.ones(self._part, np.int8)
        self._batch = lib.llama_batch()
        self._batch.token = self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._batch.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def close(self) -> None:
        self._lib.llama_free(self._pointer)

    def chunk(self, tokens: NDArray[np.int32], first: int | None) -> NDArray[np.float64]:
        """Run one chunk, with `first` in the place of its first token unless that is None.

        Returns the surprise, -ln p, at each token of the second half; the first half is its context.
        """
        self._lib.llama_memory_clear(self._memory, True)
        fed = tokens.copy()
        if first is not None:
            fed[0] = first
        half = self.chunk_size // 2
        surprises = []
        for start in range(0, self.chunk_size, self._part):
            part = fed[start : start + self._part]
            logits = self._decode(part, start)
            begin, end = max(start, half), min(start + len(part), self.chunk_size - 1)
            if begin < end:
                surprises.append(surprise(logits[begin - start : end - start], tokens[begin + 1 : end + 1]))
        found = np.concatenate(surprises)
        if not np.isfinite(found).all():
            raise EngineError("the model's logits are not finite: its weights are damaged, or overflow on this text")
        return found

    def _decode(self, part: NDArray[np.int32], start: int) -> NDArray[np.float32]:
        count = len(part)
        self._tokens[:count] = part
        self._positions[:count] = np.arange(start, start + count)
        self._batch.n_tokens = count
        self._watcher.new_pass()
        with deferred_interrupt(self._watcher.flag):
            code = self._lib.llama_decode(self._pointer, self._batch)
            self._lib.llama_synchronize(self._pointer)
        if self._watcher.failure is not None:
            raise self._watcher.failure
        if code:
            raise EngineError(f"llama.cpp could not process the tokens (code {code}): {_llama_log.last_errors()}")
        logits: NDArray[np.float32] = np.ctypeslib.as_array(
            self._lib.llama_get_logits(self._pointer), (count, self._n_vocab)
        )
        return logits


def surprise(logits: NDArray[np.float32], targets: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float64]:
    """-ln p of each target by its row of `logits`, float32 [n, n_vocab]; not finite where the logits are not."""
    found = np.empty(len(targets), np.float64)
    with np.errstate(invalid="ignore"):
        for row, target in enumerate(targets):
            top = logits[row].max()
            total = np.exp(logits[row] - top).sum(dtype=np.float64)
            found[row] = np.log(total) - float(logits[row, target] - top)
    return found
