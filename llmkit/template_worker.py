"""The process in which chat templates run; `llmkit.template` starts it and says what it may use.

It is run as a script and imports nothing of llmkit. After its imports it gives up what it does not need: it can open
no file or socket and (unless the user is root) start no process, so that even a hole in Jinja's sandbox leads nowhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def main(settings: dict[str, Any]) -> None:
    """Answer requests until the input ends; one request is `{"source", "variables"}` as JSON."""
    sys.path.extend(settings["path"])
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    environment = make_environment()
    compiled: dict[str, Any] = {}
    drop_privileges(settings["memory_bytes"])
    while size := requests.read(4):
        request = json.loads(requests.read(int.from_bytes(size, "little")))
        set_timer(settings["cpu_seconds"])
        answer = render(environment, compiled, request["source"], request["variables"], settings["output_chars"])
        set_timer(0)
        data = json.dumps(answer).encode()
        answers.write(len(data).to_bytes(4, "little") + data)
        answers.flush()


def make_environment() -> Any:
    """Jinja's sandbox with the helpers that Hugging Face templates use."""
    # Some of these are for Jinja, which would import them while rendering, when no file can be opened any more.
    import datetime as dt
    import html  # noqa: F401
    import pprint  # noqa: F401
    import textwrap  # noqa: F401

    import jinja2.constants
    import jinja2.debug
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.utils
    from jinja2.ext import Extension

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here its body is simply rendered."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    class Namespace(jinja2.utils.Namespace):
        """A namespace without attributes that begin with an underscore, which lead into the interpreter."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                check_name(name)
            jinja2.utils.Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            super().__setitem__(name, value)

    class Dict:
        """`dict(...)` without the type behind it."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

    def check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have an attribute {name!r}")

    def raise_exception(message: object = "") -> None:
        raise Refused(str(message))

    def strftime_now(format: str) -> str:
        return dt.datetime.now().strftime(format)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": Namespace,
    }
    # Loads codecs, the time zone and the locale while files can be opened.
    environment.from_string("{{ '\\u00e9' }}{{ strftime_now('%c') }}").render()
    return environment


class Refused(Exception):
    """The template called `raise_exception`."""


def render(environment: Any, compiled: dict[str, Any], source: str, variables: Any, limit: int) -> dict[str, Any]:
    """`{"text"}`, or `{"error", "message", "line"}`."""
    from jinja2.exceptions import TemplateSyntaxError

    try:
        if source not in compiled:
            compiled[source] = environment.from_string(source)
        parts, length = [], 0
        for part in compiled[source].generate(**variables):
            length += len(part)
            if length > limit:
                return {"error": "output"}
            parts.append(part)
        return {"text": "".join(parts)}
    except Refused as error:
        return {"error": "refused", "message": str(error)[:4096]}
    except TemplateSyntaxError as error:
        return {"error": "syntax", "message": str(error.message)[:4096], "line": error.lineno}
    except MemoryError:
        return {"error": "memory"}
    except RecursionError:
        return {"error": "failed", "message": "it is nested or calls itself too deeply"}
    except Exception as error:
        message = f"{type(error).__name__}: {error}"[:4096]
        return {"error": "failed", "message": message, "line": template_line(error)}


def template_line(error: Exception) -> int | None:
    """Line of the template at which `error` was raised; Jinja gives such frames the file name `<template>`."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def drop_privileges(memory_bytes: int) -> None:
    """Bound the memory; forbid files, sockets, processes and core dumps."""
    try:
        import resource
    except ImportError:  # a system without such limits
        return
    limits = {"AS": memory_bytes, "CORE": 0, "FSIZE": 0, "NPROC": 0, "NOFILE": 0}
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (AttributeError, OSError, ValueError):  # not on this system
            continue


def set_timer(seconds: float) -> None:
    """Have the system end this process after that much more processor time; 0 switches the timer off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
