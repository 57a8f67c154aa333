"""Runs GGUF files on llama.cpp, through the C API that llama-cpp-python wraps.

The package's own `Llama` class is not used: it keeps an n_ctx x n_vocab array of scores and hides the KV cache.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError
from llmkit.protocols import SamplingOptions, SessionInfo
from llmkit.runtimes import _llama_model
from llmkit.runtimes._llama_context import OUTPUT_BATCH, Context
from llmkit.runtimes._llama_embedding import choose_pooling, is_encoder, pool
from llmkit.runtimes._llama_sampler import choosing
from llmkit.runtimes._llama_vocab import Vocabulary
from llmkit.runtimes._machine import default_threads
from llmkit.runtimes._options import check_counts
from llmkit.runtimes._session import DecoderSession
from llmkit.runtimes.requests import check_prompt

DEFAULT_CONTEXT: Final = 4096
MOST_BRANCHES: Final = 64  # llama.cpp takes 256 sequences; each has a state of its own in recurrent models


def load(
    path: str | Path,
    *,
    n_context: int | None = None,
    n_threads: int | None = None,
    template: str | None = None,
    full_precision: bool = False,
    pooling: str | None = None,
    n_branches: int = 0,
) -> LlamaCppSession:
    """Load the GGUF file at `path`.

    `n_context`: positions of the KV cache; by default the context the model was trained for, at most 4096 (the cache
    takes memory for all positions from the start). `n_threads`: by default the physical cores this process may use.
    `template`: which chat template to use, as `llmkit.template.choose_template` explains. `full_precision`: compute
    attention in float32 with a float32 KV cache, twice the memory and slower; llama.cpp's default rounds both to
    float16, which moves logits by some thousandths of their range. `pooling`: how the states of tokens become the
    embedding of a text: "mean", "cls" (the first token's) or "last"; by default what the file says, else the mean for
    encoders and the last token's for others. `n_branches`: how many continuations of a prompt pass the model together
    in `each_continuation`; without, one after the other.

    Raises FormatError for a damaged file, EngineError if llama.cpp cannot load it (with llama.cpp's own words),
    DependencyError if llama-cpp-python is not installed.
    """
    check_counts(n_context=n_context, n_threads=n_threads)
    if not 0 <= n_branches <= MOST_BRANCHES:
        raise EngineError(f"n_branches is {n_branches}: expected at most {MOST_BRANCHES}")
    _llama_model.check_file(Path(path), n_context)
    return LlamaCppSession(
        Path(path),
        n_context=n_context,
        n_threads=n_threads,
        template=template,
        full_precision=full_precision,
        pooling=pooling,
        n_branches=n_branches,
    )


class LlamaCppSession(DecoderSession):
    """A GGUF model on llama.cpp; implements `llmkit.protocols.Session`. `load` makes one.

    An encoder, such as BERT, has embeddings only: what asks for the next token raises EngineError.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_context: int | None,
        n_threads: int | None,
        template: str | None,
        full_precision: bool,
        pooling: str | None,
        n_branches: int,
    ) -> None:
        started = time.perf_counter()
        lib: Any = _llama_model.bindings()
        self._lib = lib
        self._model = _llama_model.load_model(lib, path)
        self._release = weakref.finalize(self, _free, lib, self._model, None)
        try:
            values = _llama_model.metadata(lib, self._model)
            trained: int = lib.llama_model_n_ctx_train(self._model)
            n_context = n_context or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
            n_threads = n_threads or default_threads()
            encoder = is_encoder(values)
            if encoder and n_context > trained:
                raise EngineError(
                    f"a context of {n_context} tokens: {path} is an encoder of {trained} positions (n_context)"
                )
            if not encoder:
                _llama_model.check_cache_fits(lib, self._model, values, n_context, full_precision)
            self._pooling = choose_pooling(pooling, values, encoder)
            vocabulary = Vocabulary(lib, self._model)
            self._llama_context = Context(
                lib,
                self._model,
                n_context=n_context,
                n_threads=n_threads,
                n_vocab=vocabulary.n_tokens,
                full_precision=full_precision,
                encoder=encoder,
                n_branches=0 if encoder else n_branches,
            )
        except BaseException:
            self._release()
            raise
        self._release.detach()
        self._release = weakref.finalize(self, _free, lib, self._model, self._llama_context.pointer)
        templates = _llama_model.chat_templates(values)
        info = SessionInfo(
            name=path.stem,
            engine=_llama_model.engine(),
            architecture=values.get("general.architecture", "unknown"),
            n_params=lib.llama_model_n_params(self._model),
            n_vocab=vocabulary.n_tokens,
            n_context=n_context,
            n_threads=n_threads,
            load_seconds=time.perf_counter() - started,
            bos=vocabulary.bos,
            eos=vocabulary.eos,
            extra={
                "path": str(path),
                "description": _llama_model.description(lib, self._model),
                "trained_context": str(trained),
                "templates": ", ".join(templates),
                "pooling": self._pooling,
                "attention": "float32" if full_precision else "float16",
            },
        )
        super().__init__(vocabulary, self._llama_context, info, templates=templates, template=template)

    def embed(self, text: str | Sequence[int], *, normalize: bool = True) -> NDArray[np.float32]:
        """The embedding of a text, float32 [n_embd], of length 1 if `normalize`.

        The text is tokenised as in training, with the special tokens around it; token ids are taken as they are. How
        the tokens' states become one vector, `load` decides.

        EngineError if the text has more tokens than the context holds, or there are none.
        """
        self._check_open()
        check_prompt(text)
        ids = self._vocabulary.tokenize(text, add_special=True, parse_special=True) if isinstance(text, str) else text
        return pool(self.hidden_states(ids), self._pooling, normalize=normalize)

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The states after the last layer (and its norm) for every token of `ids`, float32 [n_tokens, n_embd].

        EngineError if there are more ids than the context holds, none, or one outside the vocabulary.
        """
        self._check_open()
        self._begin(ids)
        return self._llama_context.hidden_states(ids)

    def _continued(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        if not self._llama_context.n_branches or max(map(len, continuations), default=0) > OUTPUT_BATCH:
            return super()._continued(prefix, continuations)
        return self._llama_context.branches(prefix, continuations)

    def _choosing(self, options: SamplingOptions, history: Sequence[int]) -> AbstractContextManager[Callable[[], int]]:
        return choosing(self._lib, options, self._llama_context, n_vocab=self._vocabulary.n_tokens, history=history)

    def _check_open(self) -> None:
        if not self._release.alive:
            raise EngineError("this session is closed")

    def _release_engine(self) -> None:
        self._release()

    def _check_generates(self) -> None:
        super()._check_generates()
        if self._llama_context.is_encoder:
            raise EngineError(
                f"{self._info.extra['path']} is an encoder: it gives embeddings (embed), but neither logits nor text"
            )


def _free(lib: Any, model: Any, context: Any) -> None:
    if context is not None:
        lib.llama_free(context)
    lib.llama_model_free(model)
