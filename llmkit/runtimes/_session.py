"""What sessions of decoders have in common, whatever engine runs them: prompts, chats, the loop of generation.

An engine brings a vocabulary, a context that holds the KV cache, and a way to choose the next token.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError
from llmkit.protocols import GenerationStats, Message, SamplingOptions, SessionInfo
from llmkit.runtimes._choose import TokenChooser
from llmkit.runtimes._options import checked
from llmkit.runtimes._stream import TextStream
from llmkit.runtimes.requests import check_fits, check_messages, check_prompt
from llmkit.template import ChatTemplate, choose_template

# Tokens of a prompt that pass a model together: between them Ctrl-C is heard. Rows of logits come in the same numbers
# from all engines, or models could not be compared pass by pass.
AT_ONCE: Final = 128


class Vocabulary(Protocol):
    """An engine's tokens: text to tokens and back."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def bos(self) -> int | None: ...

    @property
    def eos(self) -> int | None: ...

    def special_texts(self) -> dict[str, str]:
        """The texts that chat templates know as `bos_token`, `eos_token` and so on."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        ...

    def is_control(self, token: int) -> bool: ...

    def splits_text(self, token: int) -> bool:
        """Whether the tokenizer cuts the text at this token before anything else, so that no merge crosses it."""
        ...

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]: ...

    def prompt_ids(self, text: str) -> list[int]:
        """Tokens of a prompt: special tokens in the text count, BOS comes first if the model asks for it, once only."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    def piece(self, token: int) -> bytes:
        """Bytes that a generated token adds to the text; control tokens add none."""
        ...


class Context(Protocol):
    """The KV cache and the model's passes. `cached` are the tokens that the cache holds."""

    @property
    def n_context(self) -> int: ...

    @property
    def cached(self) -> Sequence[int]: ...

    def keep_prefix(self, ids: Sequence[int]) -> int:
        """Keep what the cache shares with `ids`, but for the last one; returns how many tokens that are."""
        ...

    def feed(self, ids: Sequence[int]) -> None:
        """Process further tokens; the logits after the last one are there then."""
        ...

    def step(self, token: int) -> None:
        """The same for one token."""
        ...

    def passes(
        self, ids: Sequence[int], skip: int, at_a_time: int | None, *, reuse: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        """Logits after every token but the first `skip`, pass by pass; valid until the next.

        Of a fresh context, or, with `reuse`, of one that keeps what the cache shares with the tokens that are skipped.
        """
        ...


class DecoderSession(ABC):
    """Implements `llmkit.protocols.Session` but for embeddings, over an engine's vocabulary and context."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        context: Context,
        info: SessionInfo,
        *,
        templates: dict[str, str],
        template: str | None,
    ) -> None:
        """`templates` are the model's, by name; `template` is the one that is wanted, see `choose_template`."""
        self._vocabulary = vocabulary
        self._context = context
        self._info = info
        self._templates = templates
        self._wanted_template = template
        self._template: ChatTemplate | None = None
        self._known = _KnownText()
        self._generation = 0
        self._stats = GenerationStats()

    @abstractmethod
    def _choosing(self, options: SamplingOptions, history: Sequence[int]) -> AbstractContextManager[Callable[[], int]]:
        """What chooses the next token from the context's latest logits; `history` are the tokens before the first."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise EngineError if the session is closed."""

    @abstractmethod
    def _release_engine(self) -> None:
        """Free the model and its context."""

    def _check_generates(self) -> None:
        """Raise EngineError if the session is closed, or its model does not predict tokens."""
        self._check_open()

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
        passes = self.each_logits(ids, at_a_time=at_a_time)
        result, end = np.empty((len(ids), self._vocabulary.n_tokens), np.float32), 0
        for rows in passes:
            result[end : end + len(rows)] = rows
            end += len(rows)
        return result

    def each_logits(
        self, ids: Sequence[int], *, skip: int = 0, at_a_time: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Logits after every token of `ids` but the first `skip`, float32 [n, n_vocab] of each pass.

        They may be the engine's own memory, and are valid until the next are asked for. at_a_time: as in `logits`; what
        is skipped passes in larger numbers. Errors: as in `logits`.
        """
        self._check_generates()
        self._begin(ids)
        return self._passes(ids, skip, at_a_time, self._generation)

    def _passes(
        self, ids: Sequence[int], skip: int, at_a_time: int | None, generation: int
    ) -> Iterator[NDArray[np.float32]]:
        self._check_current(generation)
        for rows in self._context.passes(ids, skip, at_a_time):
            yield rows
            del rows  # its memory goes before the next are computed
            self._check_current(generation)

    def each_continuation(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        """Logits that predict the tokens of each continuation of `prefix`: float32 [n_tokens of it, n_vocab].

        What the KV cache shares with the prefix is not processed again, as in generation. An array is valid until the
        next one is asked for.

        EngineError for no prefix, an empty continuation, and as in `logits`.
        """
        self._check_generates()
        if not prefix or not all(continuations):
            raise EngineError("a prefix and its continuations need one token each at least")
        for ids in (prefix, *continuations):
            self._check_ids(ids)
        self._check_fits(len(prefix) + max(map(len, continuations), default=1) - 1)
        self._generation += 1
        self._known = _KnownText()
        return self._continue(prefix, continuations, self._generation)

    def _continue(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]], generation: int
    ) -> Iterator[NDArray[np.float32]]:
        self._check_current(generation)
        for rows in self._continued(prefix, continuations):
            yield rows
            self._check_current(generation)

    def _continued(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        """One after the other; an engine may take several at once."""
        for continuation in continuations:
            ids = [*prefix, *continuation[:-1]]
            # The parts may be the engine's own memory.
            parts = [part.copy() for part in self._context.passes(ids, len(prefix) - 1, None, reuse=True)]
            yield np.concatenate(parts)

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
        self._release_engine()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _begin(self, ids: Sequence[int]) -> None:
        """Check what is to be processed in a fresh context, and forget what the cache held."""
        self._check_ids(ids)
        self._check_fits(len(ids))
        self._generation += 1
        self._known = _KnownText()

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
        with self._choosing(options, history) as choose:
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
                    token = choose()
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


class LogitsContext(Context, Protocol):
    """A context that hands its logits over."""

    @property
    def is_open(self) -> bool: ...

    def close(self) -> None: ...

    def latest(self) -> NDArray[np.float32]:
        """Logits after the last token, float32 [n_vocab]."""
        ...


class LogitsSession(DecoderSession):
    """A session of an engine whose logits are handed over: the next token is chosen here."""

    _context: LogitsContext

    @contextmanager
    def _choosing(self, options: SamplingOptions, history: Sequence[int]) -> Iterator[Callable[[], int]]:
        context = self._context
        chooser = TokenChooser(options, n_context=context.n_context, history=history)
        yield lambda: chooser.choose(context.latest())

    def _check_open(self) -> None:
        if not self._context.is_open:
            raise EngineError("this session is closed")

    def _release_engine(self) -> None:
        self._context.close()


class GraphSession(LogitsSession):
    """A session of a model that has no other output than logits."""

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The model has no such output: raises EngineError."""
        raise EngineError(f"{self._info.extra['path']} gives logits only: embeddings need a GGUF file")

    def embed(self, text: str | Sequence[int], *, normalize: bool = True) -> NDArray[np.float32]:
        """The model has no such output: raises EngineError."""
        return self.hidden_states(())


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
