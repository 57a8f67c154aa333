"""A session without a model: for tests of everything that talks to sessions.

Its tokens are the bytes of UTF-8. Answers come from a function of the prompt, so they are the same every time; the
sampling options that concern text (`max_tokens`, `stop`) are obeyed, the others have nothing to act on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError, TemplateError
from llmkit.protocols import GenerationStats, Message, SamplingOptions, SessionInfo
from llmkit.runtimes._llama_embedding import pool
from llmkit.runtimes._options import checked
from llmkit.runtimes._prefix import common_prefix
from llmkit.runtimes._stream import TextStream
from llmkit.runtimes.requests import check_fits, check_messages, check_prompt

N_VOCAB = 256


def echo(prompt: str) -> str:
    """The default answer: the last line of the prompt that has words, in quotes."""
    lines = [line for line in prompt.splitlines() if line.strip() and line != "assistant:"]
    return f"You said: {lines[-1].removeprefix('user: ') if lines else ''}"


class FakeSession:
    """Implements `llmkit.protocols.Session`; `answer` makes the answer from the rendered prompt.

    A conversation is rendered as lines `role: content`. `calls` records the messages and options of every chat.
    """

    def __init__(self, answer: Callable[[str], str] = echo, *, n_context: int = 4096) -> None:
        self._answer = answer
        self._n_context = n_context
        self._cached: list[int] = []
        self._stats = GenerationStats()
        self._open = True
        self.calls: list[tuple[list[Message], SamplingOptions]] = []

    @property
    def info(self) -> SessionInfo:
        return SessionInfo(
            name="fake",
            engine="fake",
            architecture="bytes",
            n_params=0,
            n_vocab=N_VOCAB,
            n_context=self._n_context,
            n_threads=1,
            load_seconds=0.0,
        )

    @property
    def stats(self) -> GenerationStats:
        return self._stats

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        return list(text.encode())

    def detokenize(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def logits(self, ids: Sequence[int], *, at_a_time: int | None = None) -> NDArray[np.float32]:
        """Every token predicts its successor in byte order; float32 [n_tokens, 256]."""
        self._check(len(ids))
        rows = np.zeros((len(ids), N_VOCAB), np.float32)
        rows[np.arange(len(ids)), (np.asarray(ids) + 1) % N_VOCAB] = 10.0
        return rows

    def each_logits(
        self, ids: Sequence[int], *, skip: int = 0, at_a_time: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        rows, step = self.logits(ids), at_a_time or len(ids)
        return (rows[start : start + step] for start in range(skip, len(ids), step))

    def each_continuation(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        return (self.logits([*prefix, *ids])[len(prefix) - 1 : -1] for ids in continuations)

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Every token's state is 1 in the place of its byte; float32 [n_tokens, 256]."""
        self._check(len(ids))
        rows = np.zeros((len(ids), N_VOCAB), np.float32)
        rows[np.arange(len(ids)), np.asarray(ids)] = 1.0
        return rows

    def embed(self, text: str | Sequence[int], *, normalize: bool = True) -> NDArray[np.float32]:
        """The mean over the tokens: how often a text has each byte; float32 [256]."""
        check_prompt(text)
        ids = self.tokenize(text) if isinstance(text, str) else list(text)
        return pool(self.hidden_states(ids), "mean", normalize=normalize)

    def generate(self, prompt: str | Sequence[int], options: SamplingOptions | None = None) -> Iterator[str]:
        check_prompt(prompt)
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        options = checked(options)
        self._check(len(ids))
        return self._steps(ids, options)

    def chat(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Iterator[str]:
        check_messages(messages)
        checked(options)
        if messages[-1]["role"] != "user":
            raise TemplateError("the fake template wants a user message at the end")
        self.calls.append(([dict(message) for message in messages], options or SamplingOptions()))  # type: ignore[misc]
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant:\n"
        return self.generate(text, options)

    def close(self) -> None:
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _steps(self, ids: list[int], options: SamplingOptions) -> Iterator[str]:
        reused = common_prefix(self._cached, ids)
        stats = self._stats = GenerationStats(n_prompt=len(ids), n_reused=reused, stop_reason="interrupted")
        self._cached = list(ids)
        stream = TextStream(options.stop)
        for byte in self._answer(self.detokenize(ids)).encode():
            if len(self._cached) >= self._n_context:
                stats.stop_reason = "context"
                break
            if options.max_tokens is not None and stats.n_generated >= options.max_tokens:
                stats.stop_reason = "length"
                break
            stats.n_generated += 1
            self._cached.append(byte)
            text = stream.feed(bytes([byte]))
            if text:
                yield text
            if stream.stopped:
                stats.stop_reason = "stop"
                break
        else:
            stats.stop_reason = "end"
        tail = stream.finish()
        if tail:
            yield tail

    def _check(self, n_tokens: int) -> None:
        if not self._open:
            raise EngineError("this session is closed")
        check_fits(n_tokens, self._n_context)
