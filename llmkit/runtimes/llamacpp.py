"""Runs GGUF files on llama.cpp, through the C API that llama-cpp-python wraps.

The package's own `Llama` class is not used: it keeps an n_ctx x n_vocab array of scores and hides the KV cache.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError
from llmkit.protocols import GenerationStats, Message, SamplingOptions, SessionInfo
from llmkit.runtimes import _llama_model
from llmkit.runtimes._llama_context import OUTPUT_BATCH, Context
from llmkit.runtimes._llama_embedding import choose_pooling, is_encoder, pool
from llmkit.runtimes._llama_vocab import Vocabulary
from llmkit.runtimes._machine import default_threads
from llmkit.runtimes._sampler import checked, sampler_chain
from llmkit.runtimes._stream import TextStream
from llmkit.runtimes.requests import check_fits, check_messages, check_prompt
from llmkit.template import ChatTemplate, choose_template

DEFAULT_CONTEXT: Final = 4096


def load(
    path: str | Path,
    *,
    n_context: int | None = None,
    n_threads: int | None = None,
    template: str | None = None,
    full_precision: bool = False,
    pooling: str | None = None,
) -> LlamaCppSession:
    """Load the GGUF file at `path`.

    `n_context`: positions of the KV cache; by default the context the model was trained for, at most 4096 (the cache
    takes memory for all positions from the start). `n_threads`: by default the physical cores this process may use.
    `template`: which chat template to use, as `llmkit.template.choose_template` explains. `full_precision`: compute
    attention in float32 with a float32 KV cache, twice the memory and slower; llama.cpp's default rounds both to
    float16, which moves logits by some thousandths of their range. `pooling`: how the states of tokens become the
    embedding of a text: "mean", "cls" (the first token's) or "last"; by default what the file says, else the mean for
    encoders and the last token's for others.

    Raises FormatError for a damaged file, EngineError if llama.cpp cannot load it (with llama.cpp's own words),
    DependencyError if llama-cpp-python is not installed.
    """
    for name, value in (("n_context", n_context), ("n_threads", n_threads)):
        if value is not None and not 1 <= value < 2**31:
            raise EngineError(f"{name} is {value}: expected 1 or more")
    _llama_model.check_file(Path(path))
    return LlamaCppSession(
        Path(path),
        n_context=n_context,
        n_threads=n_threads,
        template=template,
        full_precision=full_precision,
        pooling=pooling,
    )


class LlamaCppSession:
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
            self._vocabulary = Vocabulary(lib, self._model)
            self._context = Context(
                lib,
                self._model,
                n_context=n_context,
                n_threads=n_threads,
                n_vocab=self._vocabulary.n_tokens,
                full_precision=full_precision,
                encoder=encoder,
            )
        except BaseException:
            self._release()
            raise
        self._release.detach()
        self._release = weakref.finalize(self, _free, lib, self._model, self._context.pointer)
        self._templates = _llama_model.chat_templates(values)
        self._wanted_template = template
        self._template: ChatTemplate | None = None
        self._known = _KnownText()
        self._generation = 0
        self._stats = GenerationStats()
        self._info = SessionInfo(
            name=path.stem,
            engine=_llama_model.engine(),
            architecture=values.get("general.architecture", "unknown"),
            n_params=lib.llama_model_n_params(self._model),
            n_vocab=self._vocabulary.n_tokens,
            n_context=n_context,
            n_threads=n_threads,
            load_seconds=time.perf_counter() - started,
            extra={
                "path": str(path),
                "description": _llama_model.description(lib, self._model),
                "trained_context": str(trained),
                "templates": ", ".join(self._templates),
                "pooling": self._pooling,
            },
        )

    @property
    def info(self) -> SessionInfo:
        return self._info

    @property
    def stats(self) -> GenerationStats:
        return self._stats

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS and EOS as the model asks for them; `parse_special` reads special tokens spelled out in
        the text (`<|im_start|>`) as those tokens instead of as ordinary characters.
        """
        self._check_open()
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are spelled out."""
        self._check_open()
        self._check_ids(ids)
        return self._vocabulary.detokenize(ids)

    def logits(self, ids: Sequence[int], *, at_a_time: int | None = None) -> NDArray[np.float32]:
        """Logits after every token of `ids`, float32 [n_tokens, n_vocab], computed from an empty KV cache.

        at_a_time: how many tokens pass the model together, at most and by default 128; with 1 they pass one by one
        through the KV cache, as in generation.

        EngineError if there are more ids than the context holds, none, or one outside the vocabulary.
        """
        self._check_generates()
        self._check_ids(ids)
        self._check_fits(len(ids))
        self._generation += 1
        self._known = _KnownText()
        return self._context.logits(ids, min(OUTPUT_BATCH, max(1, at_a_time or OUTPUT_BATCH)))

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
        self._check_ids(ids)
        self._check_fits(len(ids))
        self._generation += 1
        self._known = _KnownText()
        return self._context.hidden_states(ids)

    def generate(self, prompt: str | Sequence[int], options: SamplingOptions | None = None) -> Iterator[str]:
        """Continue `prompt`; yields text as it becomes complete UTF-8.

        Special tokens spelled out in a text prompt count as such, and BOS comes first if the model asks for it. Token
        ids are taken as they are. The KV cache keeps what the prompt shares with the previous one. The same seed gives
        the same text, on one machine and build, if the cache held the same before: tokens processed one by one are
        rounded otherwise than in batches.
        """
        self._check_generates()
        check_prompt(prompt)
        options = checked(options)
        if isinstance(prompt, str):
            return self._run(self._text_ids(prompt), prompt, options)
        self._check_ids(prompt)
        return self._run(list(prompt), None, options)

    def chat(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Iterator[str]:
        """Answer the last message by the model's own template; what the KV cache holds is not processed again.

        EngineError for what are no messages; TemplateError if there is no template, or it refuses them.
        """
        self._check_generates()
        check_messages(messages)
        options = checked(options)
        if self._template is None:
            name, source = choose_template(self._templates, self._wanted_template, self._info.extra["path"])
            self._template = ChatTemplate(source, name=name, variables=self._vocabulary.special_texts())
        text = self._template.render(messages)
        return self._run(self._text_ids(text), text, options)

    def close(self) -> None:
        """Free the model and its context; the session cannot be used afterwards."""
        self._generation += 1
        if self._template is not None:
            self._template.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _text_ids(self, text: str) -> list[int]:
        known = self._known.ids_of_beginning(text)
        if known is not None:
            rest = self._vocabulary.tokenize(text[len(self._known.text) :], parse_special=True)
            if not rest or self._vocabulary.splits_text(rest[0]):
                return known + rest
        ids = self._vocabulary.prompt_ids(text)
        if not ids and self._vocabulary.bos is not None:
            return [self._vocabulary.bos]
        return ids

    def _run(self, ids: list[int], text: str | None, options: SamplingOptions) -> Iterator[str]:
        """Generate after `ids`; `text` is what they were made from."""
        self._check_fits(len(ids))
        self._generation += 1
        return self._steps(ids, text, options, self._generation)

    def _steps(self, ids: list[int], text: str | None, options: SamplingOptions, generation: int) -> Iterator[str]:
        self._check_current(generation)
        context, vocabulary = self._context, self._vocabulary
        stats = self._stats = GenerationStats(n_prompt=len(ids), stop_reason="interrupted")
        self._known = _KnownText()
        stream = TextStream(options.stop)
        generated: list[int] = []
        limit = options.max_tokens if options.max_tokens is not None else context.n_context
        started = time.perf_counter()
        stats.n_reused = context.keep_prefix(ids)
        history = [token for token in ids if not vocabulary.is_control(token)] if options.repeat_penalty != 1 else []
        with sampler_chain(
            self._lib, options, n_vocab=vocabulary.n_tokens, n_context=context.n_context, history=history
        ) as chain:
            context.feed(ids[stats.n_reused :])
            stats.prompt_seconds = time.perf_counter() - started
            try:
                while True:
                    if len(generated) >= limit:
                        stats.stop_reason = "length"
                        break
                    started = time.perf_counter()
                    if generated:
                        if len(context.cached) >= context.n_context:
                            stats.stop_reason = "context"
                            break
                        context.step(generated[-1])
                    token: int = self._lib.llama_sampler_sample(chain, context.pointer, -1)
                    seconds = time.perf_counter() - started
                    stats.n_generated += 1
                    if generated:
                        stats.generate_seconds += seconds
                    else:
                        stats.prompt_seconds += seconds
                    if vocabulary.is_end(token):
                        stats.stop_reason = "end"
                        break
                    generated.append(token)
                    piece = stream.feed(vocabulary.piece(token))
                    if piece:
                        yield piece
                        self._check_current(generation)
                    if stream.stopped:
                        stats.stop_reason = "stop"
                        break
                tail = stream.finish()
                if tail:
                    yield tail
            finally:
                if text is not None and generation == self._generation:
                    self._known = _KnownText.of(text, ids, generated, vocabulary)

    def _check_open(self) -> None:
        if not self._release.alive:
            raise EngineError("this session is closed")

    def _check_generates(self) -> None:
        self._check_open()
        if self._context.is_encoder:
            raise EngineError(
                f"{self._info.extra['path']} is an encoder: it gives embeddings (embed), but neither logits nor text"
            )

    def _check_current(self, generation: int) -> None:
        self._check_open()
        if generation != self._generation:
            raise EngineError("the session has begun another task: one generation at a time")

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((token for token in ids if not 0 <= token < self._vocabulary.n_tokens), None)
        if wrong is not None:
            raise EngineError(f"token id {wrong} is outside the vocabulary of {self._vocabulary.n_tokens}")

    def _check_fits(self, n_tokens: int) -> None:
        check_fits(
            n_tokens,
            self._context.n_context,
            "shorten it, or load the model with a larger context (--context, n_context; it was trained for "
            f"{self._info.extra['trained_context']})",
        )


class _KnownText:
    """The text of the latest prompt and answer with the tokens that were really processed.

    A template renders the whole conversation again at each turn. Tokenizing the model's own answer can give other
    tokens than it generated, and everything from there on would be processed again; so the tokens of a text that
    begins with the known one are taken from here.
    """

    def __init__(self, text: str = "", ids: Sequence[int] = ()) -> None:
        self.text = text
        self.ids = list(ids)

    @classmethod
    def of(cls, prompt: str, ids: Sequence[int], generated: Sequence[int], vocabulary: Vocabulary) -> _KnownText:
        try:
            answer = b"".join(map(vocabulary.piece, generated)).decode("utf-8")
        except UnicodeDecodeError:  # ended within a character
            return cls()
        return cls(prompt + answer, [*ids, *generated])

    def ids_of_beginning(self, text: str) -> list[int] | None:
        """Tokens of the known text if `text` begins with it."""
        return self.ids if self.text and text.startswith(self.text) else None


def _free(lib: Any, model: Any, context: Any) -> None:
    if context is not None:
        lib.llama_free(context)
    lib.llama_model_free(model)
