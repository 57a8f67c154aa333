"""JSON from strangers: bounded in size, valid UTF-8, no duplicate keys, no unbounded nesting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from llmkit.errors import FormatError
from llmkit.formats.files import open_regular, read_exactly

MAX_CONFIG_BYTES: Final = 16 << 20


class _RefusedError(ValueError):
    """Valid for Python's parser, but not for us."""


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"key {key!r} occurs twice in one object")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> float:
    raise _RefusedError(f"{name} is not a JSON value")


def parse_json(text: bytes, path: Path, *, what: str = "content", allow_nonfinite: bool = False) -> Any:
    """Parse `text`; `path` and `what` are for messages.

    `allow_nonfinite` admits NaN and Infinity, which Python's own writer puts into config files.
    Raises FormatError for anything but one JSON value in UTF-8 without duplicate keys.
    """
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(path, f"{what} is not valid UTF-8 (byte {error.start})") from None
    try:
        return json.loads(
            decoded,
            object_pairs_hook=_object_without_duplicates,
            parse_constant=None if allow_nonfinite else _refuse_constant,
        )
    except json.JSONDecodeError as error:
        problem = f"{error.msg}, line {error.lineno} column {error.colno}"
        raise FormatError(path, f"{what} is not valid JSON: {problem}") from None
    except _RefusedError as error:
        raise FormatError(path, f"{what}: {error}") from None
    except RecursionError:
        raise FormatError(path, f"{what} is JSON nested too deeply") from None
    except ValueError:  # an integer beyond sys.get_int_max_str_digits()
        raise FormatError(path, f"{what} has an integer of thousands of digits") from None


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON file whose top level is an object, such as config.json.

    Raises FormatError when it is missing, larger than `max_bytes`, not valid JSON, or another value.
    """
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise FormatError(path, f"expected a JSON object, found {json_kind(value)}")
    return value


def read_json(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> Any:
    """The value in a JSON file. Raises FormatError when it is missing, larger than `max_bytes`, or not valid JSON."""
    file, size = open_regular(path)
    with file:
        if size > max_bytes:
            raise FormatError(path, f"{size:,} bytes; expected at most {max_bytes:,}")
        text = read_exactly(file, size, path)
    return parse_json(text, path, allow_nonfinite=True)


def json_kind(value: object) -> str:
    """The JSON name of a parsed value's type, for messages."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = ((str, "a string"), (int, "an integer"), (float, "a fraction"), (list, "an array"), (dict, "an object"))
    return next(name for kind, name in names if isinstance(value, kind))
