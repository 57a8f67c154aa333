"""What `chat` and `generate` share: options for the model and for sampling, and how a prompt is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import click

from llmkit.models import resolve
from llmkit.protocols import SamplingOptions, Session

_DEFAULTS: Final = SamplingOptions()


def _stop_strings(_ctx: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    if "" in texts:
        raise click.BadParameter("a stop string cannot be empty")
    return texts


_OPTIONS: Final = (
    click.option("--temp", "temperature", type=click.FloatRange(min=0), default=_DEFAULTS.temperature,
                 show_default=True, help="Temperature; 0 takes the most likely token each time."),
    click.option("--top-k", type=click.IntRange(min=0), default=_DEFAULTS.top_k, show_default=True,
                 help="Keep the K most likely tokens; 0 keeps all."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=_DEFAULTS.top_p, show_default=True,
                 help="Keep the likeliest tokens that together reach this probability; 1 keeps all."),
    click.option("--min-p", type=click.FloatRange(0, 1), default=_DEFAULTS.min_p, show_default=True,
                 help="Drop tokens below this share of the best one's probability; 0 keeps all."),
    click.option("--repeat-penalty", type=click.FloatRange(min=0, min_open=True), default=_DEFAULTS.repeat_penalty,
                 show_default=True, help="Make tokens of the last 64 less likely; 1 is off."),
    click.option("--seed", type=click.IntRange(0, 0xFFFFFFFE), help="Same seed, same answer.  [default: a fresh one]"),
    click.option("--stop", multiple=True, metavar="TEXT", callback=_stop_strings,
                 help="End before this text; may be given several times."),
    click.option("--context", "--ctx", "n_context", type=click.IntRange(1, 2**31 - 1),
                 help="Tokens that prompt and answers may have together.  [default: the model's own, at most 4096]"),
    click.option("--threads", "n_threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: one per core]"),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]),
                 help="Of ONNX models: where they run; auto takes CUDA if it is there.  [default: auto]"),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per answer, with its statistics."),
)  # fmt: skip


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a click command, which has `max_tokens` itself.

    It gets `sampling` (SamplingOptions), `n_context`, `n_threads`, `device` and `as_json`.
    """

    def with_options(**values: Any) -> Any:
        names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "max_tokens", "stop")
        sampling = SamplingOptions(**{name: values.pop(name) for name in names})
        return command(sampling=sampling, **values)

    with_options.__doc__ = command.__doc__
    with_options.__name__ = command.__name__
    wrapped: Callable[..., Any] = with_options
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def load_model(model: str, note: Callable[[str], None], device: str | None = None, **options: Any) -> Session:
    """Find and load MODEL, and tell what was chosen for it. A `device` is for ONNX and the like only."""
    from llmkit import runtimes

    resolved = resolve(model, want="runnable", download=False)
    if resolved.note:
        note(f"note: {resolved.note}")
    if resolved.kind in ("onnx", "exported"):
        options["device"] = device or "auto"
    elif device is not None:
        raise click.UsageError(f"--device is for ONNX models; {resolved.path} runs on llama.cpp")
    session = runtimes.load(resolved.path, **options)
    if device == "auto":
        note(f"note: runs on {session.info.extra['device']}")
    trained = session.info.extra.get("trained_context", "")
    if trained.isdecimal() and 0 < int(trained) < session.info.n_context:
        note(f"note: the model was trained for contexts of {trained} tokens; beyond them answers get worse")
    return session


def read_prompt(prompt: str) -> str:
    """The text of -p: `-` reads standard input, without the newline at its end."""
    if prompt == "-":
        return without_newline(decode(sys.stdin.buffer.read(), "standard input"))
    return prompt


def input_lines() -> Iterator[str]:
    """The lines of standard input as they come."""
    for number, line in enumerate(iter(sys.stdin.buffer.readline, b""), 1):
        yield without_newline(decode(line, f"line {number} of standard input"))


def decode(data: bytes, what: str) -> str:
    """UTF-8 text; a usage error if it is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{what} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def without_newline(text: str) -> str:
    """`text` without one line end behind it."""
    return text.removesuffix("\n").removesuffix("\r")


def notes(quiet: bool) -> Callable[[str], None]:
    """Prints a line to stderr, or nothing when quiet."""

    def note(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    return note


def lenient_output() -> None:
    """Let characters that the output's encoding lacks appear as `?` instead of ending the program."""
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
