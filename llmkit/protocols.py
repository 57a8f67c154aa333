"""The interfaces between the parts: what a runtime offers, what a long task reports to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypedDict

import numpy as np
from numpy.typing import NDArray


class Message(TypedDict):
    """One message of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen.

    `temperature` 0 takes the most likely token. `top_k` 0, `top_p` 1, `min_p` 0 and `repeat_penalty` 1
    switch that filter off. `seed` None draws a fresh seed. `max_tokens` None goes on to the end of the
    context. Generation ends before any of the `stop` strings.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(slots=True)
class GenerationStats:
    """Counts and seconds of the latest generation; every generation gets a new object.

    `n_reused` of the `n_prompt` tokens were still in the KV cache. `n_generated` counts the token that ends an answer;
    the first token comes out of the prompt's pass, so `generate_seconds` are those of `n_generated` - 1 steps.
    """

    n_prompt: int = 0
    n_reused: int = 0
    n_generated: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    stop_reason: str = ""  # "end", "stop", "length", "context" or "interrupted"


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a loaded model is."""

    name: str
    engine: str  # engine and version, such as "llama.cpp (llama-cpp-python 0.3.36)"
    architecture: str
    n_params: int
    n_vocab: int
    n_context: int
    n_threads: int
    load_seconds: float
    extra: Mapping[str, str] = field(default_factory=dict)
    bos: int | None = None  # the tokens for the beginning and the end of a text
    eos: int | None = None


class Session(Protocol):
    """A model loaded by some engine. Use it as a context manager; it is not thread-safe.

    An encoder gives embeddings and hidden states only; what needs the next token raises EngineError.
    """

    @property
    def info(self) -> SessionInfo: ...

    @property
    def stats(self) -> GenerationStats: ...

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]: ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    def logits(self, ids: Sequence[int], *, at_a_time: int | None = None) -> NDArray[np.float32]:
        """Logits for every position, float32 [n_tokens, n_vocab], of a fresh context.

        at_a_time: how many tokens pass the model together; with 1 they pass one by one, as in generation.
        """
        ...

    def each_logits(
        self, ids: Sequence[int], *, skip: int = 0, at_a_time: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Logits for every position but the first `skip`, pass by pass: float32 [n, n_vocab], of a fresh context.

        An array is valid until the next one is asked for, since it may be the engine's own memory.
        """
        ...

    def each_continuation(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        """Logits that predict the tokens of each continuation of `prefix`: float32 [n_tokens of it, n_vocab].

        What the KV cache shares with the prefix is not processed again. An array is valid until the next.
        """
        ...

    def hidden_states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The states after the last layer for every token, float32 [n_tokens, n_embd], of a fresh context."""
        ...

    def embed(self, text: str | Sequence[int], *, normalize: bool = True) -> NDArray[np.float32]:
        """The embedding of a text, float32 [n_embd], of length 1 if `normalize`; pooled as the model asks for."""
        ...

    def generate(self, prompt: str | Sequence[int], options: SamplingOptions | None = None) -> Iterator[str]:
        """Continue `prompt`; yields text as it becomes complete UTF-8."""
        ...

    def chat(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Iterator[str]:
        """Answer the last message by the model's own template; what the KV cache holds is not processed again."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class TokenizerJudge(Protocol):
    """Two tokenizers for the same texts, no special tokens added: whether a converted one is right is seen by them."""

    def reference(self, tokenizer_json: str, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of `texts` by the content of a tokenizer.json, as its own library understands it."""
        ...

    def engine(self, gguf: bytes, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of `texts` by the engine that is to run the model, from a GGUF file without tensors."""
        ...


class Progress(Protocol):
    """Receives the progress of a long task; `llmkit.progress` has a bar, plain lines and silence.

    Amounts are bytes, or of another `unit`, such as tokens.
    """

    def start(self, title: str, total: int, unit: str = "B") -> None: ...

    def advance(self, amount: int, label: str = "") -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None:
        """The task failed; a message follows."""
        ...
