"""Chat templates: Jinja programs that come with a model and turn messages into its prompt.

They are written by strangers, so they run in Jinja's immutable sandbox, and in a process of their own
(`template_worker.py`) whose processor time, memory and output the operating system bounds. In-process guards alone
cannot do that: one `'a' * 10**9`, `9 ** 9 ** 9` or nested loop in a single C call is out of reach of any check in
Python. The process starts once per model (about 0.1 s) and then renders a conversation in about a millisecond.

The dialect is that of Hugging Face transformers (`utils/chat_template_utils.py` of version 5): trim_blocks,
lstrip_blocks, loop controls, `raise_exception`, `strftime_now`, a plain-JSON `tojson`, `{% generation %}`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from llmkit.errors import DependencyError, TemplateError
from llmkit.protocols import Message

DEFAULT_NAME: Final = "default"
# The worker's own timer, and the kill after `wall_seconds`.
_TIMER_SIGNALS: Final = {getattr(signal, name, 0) for name in ("SIGPROF", "SIGKILL")}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a template may use.

    `source_chars` and `output_chars` count characters, `cpu_seconds` the processor time of one rendering,
    `memory_bytes` the address space of the process. `wall_seconds` is the last resort where the system has no such
    limits (and bounds the start of the process).
    """

    source_chars: int = 1 << 20
    output_chars: int = 1 << 24
    cpu_seconds: float = 2.0
    memory_bytes: int = 384 << 20
    wall_seconds: float = 20.0


def choose_template(templates: Mapping[str, str], wanted: str | None, model: str) -> tuple[str, str]:
    """Name and source of the template to use, of those in the file `model`.

    `wanted` is the name of one of them, or the path of a Jinja file that replaces them. Without it: the one called
    "default" (the file's unnamed template), or the only one. TemplateError says what there is to choose from.
    """
    names = ", ".join(map(repr, templates))
    if wanted is not None:
        if wanted in templates:
            return wanted, templates[wanted]
        if Path(wanted).is_file():
            return Path(wanted).name, _read(Path(wanted))
        has = f"it has {names}" if templates else "it has none"
        raise TemplateError(f"{model}: no chat template is called {wanted!r} ({has}), and there is no such file")
    if DEFAULT_NAME in templates:
        return DEFAULT_NAME, templates[DEFAULT_NAME]
    if len(templates) == 1:
        return next(iter(templates.items()))
    if templates:
        raise TemplateError(f"{model}: choose one of its chat templates with --template: {names}")
    raise TemplateError(
        f"{model} has no chat template, so it may not be a chat model. Give it one with --template FILE.jinja, or "
        f"continue plain text with: llmkit generate {model} -p TEXT"
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 * Limits().source_chars).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path}: a chat template is UTF-8 text, and this is not: {error}") from error
    except OSError as error:
        raise TemplateError(f"{path}: cannot be read: {error.strerror}") from error


class ChatTemplate:
    """One template, ready to render conversations; use it as a context manager or call `close`.

    `variables` are texts the template may use besides the messages: `bos_token`, `eos_token` and the like. `name`
    appears in error messages.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str = DEFAULT_NAME,
        variables: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._what = f"chat template {name!r}"
        if len(source) > self._limits.source_chars:
            raise TemplateError(
                f"{self._what} has {len(source)} characters: at most {self._limits.source_chars} are accepted"
            )
        self._source = source
        self._variables = dict(variables or {})
        self._worker: _Worker | None = None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The prompt for `messages`; `add_generation_prompt` ends it where the assistant's answer begins.

        `extra` are further variables for the template; all values must be what JSON can hold. TemplateError if the
        template is not valid Jinja, refuses the messages (in its own words), fails, or exceeds the limits.
        """
        variables = {"tools": None, "documents": None, **self._variables, **extra}
        variables |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            request = json.dumps({"source": self._source, "variables": variables}).encode()
        except (TypeError, ValueError) as error:
            raise TemplateError(f"messages for a chat template must be plain JSON data: {error}") from error
        answer = self._ask(request)
        if "text" in answer:
            return str(answer["text"])
        raise TemplateError(self._explain(answer))

    def close(self) -> None:
        """End the process; rendering again starts another."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, request: bytes) -> dict[str, Any]:
        if self._worker is None:
            self._worker = _Worker(self._limits)
        finished = False
        try:
            answer = self._worker.ask(request, self._limits.wall_seconds)
            finished = answer is not None
        finally:
            if not finished:  # dead, or interrupted within an answer: the next rendering needs a fresh one
                worker, self._worker = self._worker, None
                status = worker.stop()
        if answer is None:
            return {"error": "ended", "status": status}
        return answer

    def _explain(self, answer: dict[str, Any]) -> str:
        limits = self._limits
        line = f" (line {answer['line']})" if answer.get("line") else ""
        message = _printable(str(answer.get("message", "")))
        match answer["error"]:
            case "refused":
                return f"the model's {self._what} refuses these messages: {message}"
            case "syntax":
                return f"{self._what} is not valid Jinja{line}: {message}"
            case "output":
                return f"{self._what} writes more than {limits.output_chars} characters and was stopped"
            case "memory":
                return f"{self._what} needs more than {limits.memory_bytes >> 20} MiB of memory and was stopped"
            case "ended" if -answer["status"] in _TIMER_SIGNALS:
                return f"{self._what} took more than {limits.cpu_seconds:g} s of processor time and was stopped"
            case "ended" if answer["status"] < 0:
                return f"{self._what} crashed the process it ran in (signal {-answer['status']})"
            case "ended":
                return f"the process for chat templates ({sys.executable}) did not start: status {answer['status']}"
            case _:
                return f"{self._what} failed{line}: {message}"


def _printable(text: str) -> str:
    """At most 500 characters, and none that could steer a terminal."""
    text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:500])
    return text.strip()


class _Worker:
    """The process that renders; requests and answers are JSON with a length of four bytes in front."""

    def __init__(self, limits: Limits) -> None:
        folders = []
        for package in ("jinja2", "markupsafe"):
            spec = find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                raise DependencyError(package, "llama", "rendering chat templates")
            folders.append(str(Path(spec.submodule_search_locations[0]).parent))
        if not sys.executable:
            raise TemplateError("chat templates run in a Python process of their own; this program has no interpreter")
        script = Path(__file__).with_name("template_worker.py")
        settings = {
            "path": folders,
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": limits.cpu_seconds,
            "output_chars": limits.output_chars,
        }
        # A session of its own: Ctrl-C on the terminal must not reach it. It ends when its input closes.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._finalizer = weakref.finalize(self, _end, self._process)

    def ask(self, request: bytes, wall_seconds: float) -> dict[str, Any] | None:
        """The answer to one request; None if the process ended instead."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        timer = threading.Timer(wall_seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            stdin.write(len(request).to_bytes(4, "little") + request)
            stdin.flush()
            size = stdout.read(4)
            data = stdout.read(int.from_bytes(size, "little"))
            answer: dict[str, Any] = json.loads(data)
        except (BrokenPipeError, ValueError):
            return None
        finally:
            timer.cancel()
        return answer

    def stop(self) -> int:
        """End the process; its status, negative for the signal that ended it."""
        self._finalizer()
        return self._process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.05 if process.poll() is None else None)
    except subprocess.TimeoutExpired:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # a request that nobody read
                pipe.close()
    process.wait()
